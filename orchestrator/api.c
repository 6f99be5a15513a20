// HTTP; see api.h. Runs on the loop's thread.
#include "orchestrator/api.h"

#include <stdio.h>

#include "base/file.h"
#include "base/log.h"
#include "orchestrator/orch.h"
#include "orchestrator/status.h"

static void on_health(void *ctx, struct http_request *r)
{
    struct orch *o = ctx;
    bool well = !o->failed;
    const char *body = well ? "{\"status\":\"healthy\"}" : "{\"status\":\"failed\"}";
    http_reply(r, well ? 200 : 503, "application/json", body, well ? 20 : 19);
}

static void on_metrics(void *ctx, struct http_request *r)
{
    struct buf b = {0};
    metrics_prometheus(ctx, &b);
    http_reply(r, 200, "text/plain; version=0.0.4", b.data ? b.data : "", b.len);
    buf_done(&b);
}

// What a run does and where its tasks are is told freely on this host only; /health and /metrics also to probes elsewhere.
// false: a 401 has been sent.
static bool may_read(struct orch *o, struct http_request *r)
{
    if (http_server_loopback(o->server) ||
        http_bearer_matches(http_request_header(r, "Authorization"), o->token))
        return true;
    http_reply_error(r, 401, NULL, "from other hosts this call needs the contents of RUN/token as bearer");
    return false;
}

static void on_tasks(void *ctx, struct http_request *r)
{
    if (!may_read(ctx, r))
        return;
    json_t *j = status_tasks(ctx);
    http_reply_json(r, 200, j);
    json_decref(j);
}

static void on_status(void *ctx, struct http_request *r)
{
    if (!may_read(ctx, r))
        return;
    json_t *j = status_json(ctx);
    http_reply_json(r, 200, j);
    json_decref(j);
}

static void on_register(void *ctx, struct http_request *r)
{
    struct orch *o = ctx;
    struct error err;
    json_t *args;
    if (!http_request_json(r, &args))
        return;
    enum status rc = task_register(o, args, "service", &err);
    json_decref(args);
    if (!rc && !journal_flush(o, true))
        rc = error_set(&err, STATUS_IO, "%s", o->last_error);
    if (rc) {
        int code = rc == STATUS_EXISTS ? 409 : rc == STATUS_REFUSED ? 403 : rc == STATUS_IO ? 500 : 400;
        http_reply_error(r, code, NULL, "%s", err.text);
        return;
    }
    json_t *j = json_pack("{s:s}", "status", "registered");
    http_reply_json(r, 200, j);
    json_decref(j);
}

static const struct http_route routes[] = {
    {"GET", "/health", on_health},      {"GET", "/metrics", on_metrics},  {"GET", "/v1/tasks", on_tasks},
    {"POST", "/v1/tasks", on_register}, {"GET", "/v1/status", on_status},
};

static void on_request(void *ctx, struct http_request *r)
{
    http_route_dispatch(routes, sizeof routes / sizeof *routes, ctx, r);
}

enum status api_open(struct orch *o, struct error *err)
{
    struct http_server_config c = {
        .host = o->cfg->orchestrator.http_host[0] ? o->cfg->orchestrator.http_host : NULL,
        .port = (int)o->cfg->orchestrator.http_port,
        .handler = on_request,
        .ctx = o,
        .token = o->token,
        .max_body_bytes = 1 << 20,
        .max_connections = 256,
    };
    char path[RUNCONFIG_PATH + 32], text[16];
    enum status rc = http_server_open(o->loop, &c, &o->server, err);
    if (rc)
        return rc;
    snprintf(path, sizeof path, "%s/orchestrator.port", o->run_dir);
    int n = snprintf(text, sizeof text, "%d\n", http_server_port(o->server));
    log_event(LOG_INFO, "listening", "http=%s:%d", c.host ? c.host : "127.0.0.1",
              http_server_port(o->server));
    return file_write_atomic(path, text, (size_t)n, 0600, err);
}

void api_close(struct orch *o)
{
    http_server_close(o->server);
    o->server = NULL;
}
