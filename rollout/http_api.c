// The HTTP API's server and its control calls: see http_api.h; /generate is http_generate.c. Runs on the I/O thread.
#include "rollout/http_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "net/http_server.h"
#include "net/url.h"
#include "rollout/http_generate.h"

#define UPDATES_MAX 8

struct update { // an /update_weights_from_disk that waits for its load
    struct http_request *request;
    int64_t version;
};

struct http_api {
    struct http_api_config config;
    char name[64], token[256];
    struct http_server *server;
    struct generate *generate;
    struct update updates[UPDATES_MAX];
    int n_updates;
};

static void reply_status(struct http_request *r, int code, const char *status)
{
    json_t *j = json_pack("{s:s}", "status", status);
    http_reply_json(r, code, j);
    json_decref(j);
}

// Where there is a token: only with it. false: a 401 has been sent.
static bool authorized(struct http_api *a, struct http_request *r)
{
    if (!a->token[0] || http_bearer_matches(http_request_header(r, "Authorization"), a->token))
        return true;
    http_reply_error(r, 401, NULL, "%s",
                     a->config.in_run ? "this engine belongs to a run: send the run's token (Authorization: "
                                        "Bearer <contents of RUN/token>)"
                                      : "send the token of this engine's --token-file (Authorization: Bearer "
                                        "<its contents>)");
    return false;
}

// What the run's own processes account for is not for others to change. false: a 403 has been sent.
static bool left_to_run(struct http_api *a, struct http_request *r, const char *what)
{
    if (!a->config.in_run)
        return true;
    http_reply_error(r, 403, NULL, "this engine belongs to a run: %s", what);
    return false;
}

static void get_health(void *ctx, struct http_request *r)
{
    struct http_api *a = ctx;
    struct worker_stats s;
    worker_stats(a->config.worker, &s);
    if (s.engine.version >= 0)
        reply_status(r, 200, "healthy");
    else
        http_reply_error(r, 503, NULL, "no weights are loaded yet");
}

static void get_weight_version(void *ctx, struct http_request *r)
{
    struct http_api *a = ctx;
    struct worker_stats s;
    worker_stats(a->config.worker, &s);
    char version[32];
    snprintf(version, sizeof version, "%lld", (long long)s.engine.version);
    json_t *j = json_pack("{s:s}", "weight_version", version);
    http_reply_json(r, 200, j);
    json_decref(j);
}

static void put_metric(struct buf *b, const char *engine, const char *name, const char *type,
                       const char *help, double value)
{
    buf_printf(b, "# HELP ooze_%s %s\n# TYPE ooze_%s %s\nooze_%s{engine=\"%s\"} %.17g\n", name, help, name,
               type, name, engine, value);
}

static void get_metrics(void *ctx, struct http_request *r)
{
    struct http_api *a = ctx;
    struct worker_stats s;
    worker_stats(a->config.worker, &s);
    const struct engine_stats *e = &s.engine;
    const struct {
        const char *name, *type, *help;
        double value;
    } metrics[] = {
        {"weights_version", "gauge", "Weights version in use, -1 = none.", (double)e->version},
        {"running_sequences", "gauge", "Sequences being computed.", (double)e->running},
        {"waiting_sequences", "gauge", "Jobs accepted and not yet running.", (double)e->waiting},
        {"kv_used_tokens", "gauge", "Tokens in pages held by running sequences.", (double)e->kv_used},
        {"kv_capacity_tokens", "gauge", "Tokens the KV cache can hold.", (double)e->kv_capacity},
        {"steps_total", "counter", "Forward passes.", (double)e->steps},
        {"generated_tokens_total", "counter", "Tokens sampled.", (double)e->generated_tokens},
        {"prefill_tokens_total", "counter", "Prefix tokens computed.", (double)e->prefill_tokens},
        {"cached_tokens_total", "counter", "Prefix tokens found in the cache.", (double)e->cached_tokens},
        {"preemptions_total", "counter", "Sequences that gave their memory back and were computed again.",
         (double)e->preemptions},
        {"finished_jobs_total", "counter", "Jobs ended.", (double)e->finished},
        {"refits_total", "counter", "Weights swapped in while running.", (double)e->refits},
        {"refit_load_ms", "gauge", "Time the last weights took to load, beside the running engine.",
         s.last_load_ms},
        {"refit_stall_ms", "gauge", "Time the last swap kept the engine from running.", s.last_stall_ms},
        {"busy_seconds_total", "counter", "Time spent in steps.", (double)s.busy_ns * 1e-9},
    };
    struct buf b = {0};
    for (size_t i = 0; i < sizeof metrics / sizeof metrics[0]; i++)
        put_metric(&b, a->name, metrics[i].name, metrics[i].type, metrics[i].help, metrics[i].value);
    http_reply(r, 200, "text/plain; version=0.0.4", b.data, b.len);
    buf_done(&b);
}

static void post_generate(void *ctx, struct http_request *r)
{
    struct http_api *a = ctx;
    generate_request(a->generate, r);
}

static void post_pause(void *ctx, struct http_request *r)
{
    struct http_api *a = ctx;
    json_t *body = NULL;
    if (!authorized(a, r) || !http_request_json(r, &body))
        return;
    static const struct {
        const char *name;
        enum engine_pause how;
    } modes[] = {{"abort", ENGINE_PAUSE_ABORT},
                 {"retract", ENGINE_PAUSE_RETRACT},
                 {"in_place", ENGINE_PAUSE_IN_PLACE}};
    const json_t *mode = json_object_get(body, "mode");
    const char *name = mode ? json_string_value(mode) : "abort";
    int found = -1;
    for (int i = 0; i < 3 && name; i++)
        if (strcmp(name, modes[i].name) == 0)
            found = i;
    json_decref(body);
    if (found >= 0 && modes[found].how == ENGINE_PAUSE_ABORT &&
        !left_to_run(a, r, "only its orchestrator ends all jobs; give mode \"retract\" or \"in_place\""))
        return;
    if (found < 0) {
        http_reply_error(r, 400, NULL, "mode: give \"abort\", \"retract\" or \"in_place\"");
        return;
    }
    worker_pause(a->config.worker, modes[found].how);
    reply_status(r, 200, "ok");
}

static void post_continue(void *ctx, struct http_request *r)
{
    struct http_api *a = ctx;
    if (!authorized(a, r))
        return;
    worker_continue(a->config.worker);
    reply_status(r, 200, "ok");
}

static void post_flush_cache(void *ctx, struct http_request *r)
{
    struct http_api *a = ctx;
    if (!authorized(a, r))
        return;
    worker_flush_cache(a->config.worker);
    reply_status(r, 200, "ok");
}

static void post_abort(void *ctx, struct http_request *r)
{
    struct http_api *a = ctx;
    json_t *body = NULL;
    if (!http_request_json(r, &body))
        return;
    const char *rid = json_string_value(json_object_get(body, "rid"));
    bool all = json_is_true(json_object_get(body, "abort_all"));
    if (!all && (!rid || !*rid)) {
        http_reply_error(r, 400, NULL, "give rid, or abort_all: true");
    } else if (!all || (left_to_run(a, r, "only its orchestrator ends all jobs") && authorized(a, r))) {
        int n = generate_abort(a->generate, all ? NULL : rid);
        if (all)
            worker_cancel_all(a->config.worker);
        json_t *j = json_pack("{s:s,s:i}", "status", "ok", "aborted", n);
        http_reply_json(r, 200, j);
        json_decref(j);
    }
    json_decref(body);
}

// weight_version: a decimal number, as text or not; absent = one more than the newest.
static enum status read_update(struct http_api *a, const json_t *body, struct worker_load *l,
                               struct error *err)
{
    const char *path = NULL;
    enum status st = json_get_string(body, "model_path", true, NULL, "the request", &path, err);
    if (st != STATUS_OK)
        return st;
    if (strlen(path) >= sizeof l->path)
        return error_set(err, STATUS_LIMIT, "model_path: at most %zu bytes", sizeof l->path - 1);
    *l = (struct worker_load){.version = worker_newest(a->config.worker) + 1};
    memcpy(l->path, path, strlen(path) + 1);
    const json_t *v = json_object_get(body, "weight_version");
    const char *text = json_string_value(v);
    if (json_is_integer(v)) {
        l->version = json_integer_value(v);
    } else if (v && !json_is_null(v)) {
        char *end = NULL;
        l->version = text ? strtoll(text, &end, 10)
                          : 0; // one too long for int64 is cut, and then refused as too large
        if (!text || !*text || *end)
            return error_set(err, STATUS_INVALID,
                             "weight_version \"%.40s\": versions of this engine are numbers that grow",
                             text ? text : "");
    }
    struct stat info;
    if (stat(path, &info) != 0)
        return error_set(err, STATUS_NOTFOUND, "model_path %.200s does not exist", path);
    if (!S_ISDIR(info.st_mode) && !S_ISREG(info.st_mode)) // opening a FIFO would wait for its writer
        return error_set(err, STATUS_INVALID, "model_path %.200s is neither a folder nor a file", path);
    l->folder = S_ISDIR(info.st_mode);
    return STATUS_OK;
}

static void reply_update(struct http_request *r, int code, bool ok, const char *message)
{
    json_t *j = json_pack("{s:b,s:s}", "success", (int)ok, "message", message);
    http_reply_json(r, code, j);
    json_decref(j);
}

static void post_update(void *ctx, struct http_request *r)
{
    struct http_api *a = ctx;
    json_t *body = NULL;
    if (!left_to_run(a, r, "its weights come from its trainer") || !authorized(a, r) ||
        !http_request_json(r, &body))
        return;
    struct worker_load load;
    struct error err = {0};
    enum status st = read_update(a, body, &load, &err);
    json_decref(body);
    if (st == STATUS_OK && a->n_updates == UPDATES_MAX)
        st = error_set(&err, STATUS_BUSY, "%d updates wait already", UPDATES_MAX);
    if (st == STATUS_OK)
        st = worker_load_start(a->config.worker, &load, &err);
    if (st != STATUS_OK)
        reply_update(r, st == STATUS_BUSY || st == STATUS_AGAIN ? 503 : 400, false, err.text);
    else
        a->updates[a->n_updates++] = (struct update){r, load.version};
}

void http_api_loaded(struct http_api *a, const struct worker_loaded *l)
{
    for (int i = 0; i < a->n_updates; i++) {
        if (a->updates[i].version != l->load.version)
            continue;
        struct http_request *r = a->updates[i].request;
        a->updates[i] = a->updates[--a->n_updates];
        char message[256];
        snprintf(message, sizeof message, "version %lld loaded in %.1f ms, swapped in %.3f ms",
                 (long long)l->load.version, l->load_ms, l->stall_ms);
        reply_update(r, l->ok ? 200 : 400, l->ok, l->ok ? message : l->error);
        return;
    }
}

void http_api_outputs(struct http_api *a, const struct outputs *o)
{
    for (size_t i = 0; i < o->n_items; i++)
        if (o->items[i].job & HTTP_JOB_BIT)
            generate_output(a->generate, o, &o->items[i]);
}

static void handle(void *ctx, struct http_request *r)
{
    static const struct http_route routes[] = {
        {"POST", "/generate", post_generate},
        {"GET", "/health", get_health},
        {"GET", "/get_weight_version", get_weight_version},
        {"GET", "/metrics", get_metrics},
        {"POST", "/pause_generation", post_pause},
        {"POST", "/continue_generation", post_continue},
        {"POST", "/abort_request", post_abort},
        {"POST", "/flush_cache", post_flush_cache},
        {"POST", "/update_weights_from_disk", post_update},
    };
    http_route_dispatch(routes, sizeof routes / sizeof routes[0], ctx, r);
}

enum status http_api_open(const struct http_api_config *c, struct http_api **ret, struct error *err)
{
    struct http_api *a = mem_must(1, sizeof *a);
    bool loopback = !c->host || url_host_is_loopback(c->host);
    a->config = *c;
    snprintf(a->name, sizeof a->name, "%s", c->name ? c->name : "engine");
    snprintf(a->token, sizeof a->token, "%s", c->token ? c->token : "");
    a->generate = generate_open(c->worker, &c->model);
    const struct http_server_config server = {.host = c->host,
                                              .port = c->port,
                                              .handler = handle,
                                              .ctx = a,
                                              .token = loopback ? NULL : c->token,
                                              .max_body_bytes = 64u << 20};
    enum status st = STATUS_OK;
    if (!loopback && !a->token[0])
        st = error_set(err, STATUS_REFUSED,
                       "at %s other hosts reach this engine: the HTTP API needs a token there (--token-file)",
                       c->host);
    if (st == STATUS_OK)
        st = http_server_open(c->loop, &server, &a->server, err);
    if (st != STATUS_OK) {
        http_api_close(a);
        return st;
    }
    *ret = a;
    return STATUS_OK;
}

void http_api_close(struct http_api *a)
{
    if (!a)
        return;
    if (a->server)
        http_server_close(a->server);
    for (int i = 0; i < a->n_updates; i++)
        http_reply_error(a->updates[i].request, 503, NULL, "the engine is stopping");
    generate_close(a->generate);
    free(a);
}

int http_api_port(const struct http_api *a)
{
    return http_server_port(a->server);
}
