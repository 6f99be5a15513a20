// Putting the process together: see serve.h. Runs on the main thread, which is the loop's.
//
// Order of life: loop, worker, doors; closed in the opposite order, so that no callback finds its callee gone. Before that the worker
// stops, and what it has sampled leaves through the doors.
#include "rollout/serve.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/cores.h"
#include "base/file.h"
#include "base/log.h"
#include "base/runconfig.h"
#include "proto/keys.h"
#include "rollout/client.h"
#include "rollout/http_api.h"

struct serve {
    struct loop *loop;
    struct worker *worker;
    struct client *client; // NULL: no run
    struct http_api *http; // NULL: not served
    struct loop_signal *term, *interrupt;
    bool starting;         // stand-alone: the model is being loaded for the first time
    const char *port_file; // to be written then, or NULL
    struct error failure;  // why the loop was stopped; status OK = SIGTERM
};

// ---- callbacks ------------------------------------------------------------------------------------------------------------

static void stop_with(struct serve *s, const struct error *err)
{
    if (s->failure.status == STATUS_OK)
        s->failure = *err;
    loop_stop(s->loop);
}

static void on_outputs(void *ctx, const struct outputs *o)
{
    struct serve *s = ctx;
    if (s->client)
        client_outputs(s->client, o);
    if (s->http)
        http_api_outputs(s->http, o);
}

static enum status write_port(const struct serve *s, struct error *err)
{
    char text[16];
    int n = snprintf(text, sizeof text, "%d\n", http_api_port(s->http));
    return file_write_atomic(s->port_file, text, (size_t)n, 0600, err);
}

// A model that cannot be loaded at the start: nothing to serve.
static void end_start(struct serve *s, const struct worker_loaded *l)
{
    struct error err = {0};
    s->starting = false;
    if (!l->ok)
        error_set(&err, STATUS_INVALID, "%s", l->error);
    else if (!s->port_file || write_port(s, &err) == STATUS_OK)
        log_event(LOG_INFO, "listening", "port=%d", http_api_port(s->http));
    if (err.status != STATUS_OK)
        stop_with(s, &err);
}

static void on_loaded(void *ctx, const struct worker_loaded *l)
{
    struct serve *s = ctx;
    char quoted[1200];
    if (l->ok)
        log_event(LOG_INFO, "weights", "version=%lld load_ms=%.1f stall_ms=%.3f", (long long)l->load.version,
                  l->load_ms, l->stall_ms);
    else
        log_event(LOG_WARN, "weights_failed", "version=%lld cause=%s", (long long)l->load.version,
                  log_quote(l->error, quoted, sizeof quoted));
    if (s->client)
        client_loaded(s->client, l);
    if (s->http)
        http_api_loaded(s->http, l);
    if (s->starting)
        end_start(s, l);
}

static void on_traced(void *ctx, const struct worker_trace *t)
{
    struct serve *s = ctx;
    if (s->client)
        client_traced(s->client, t);
}

static void on_failed(void *ctx, const struct error *err)
{
    stop_with(ctx, err);
}

static void on_refused(void *ctx, const char *reason)
{
    struct error err;
    error_set(&err, STATUS_REFUSED, "the orchestrator refused this engine: %s", reason);
    stop_with(ctx, &err);
}

static void on_term(void *ctx, int signum)
{
    struct serve *s = ctx;
    (void)signum;
    loop_stop(s->loop);
}

// ---- life -------------------------------------------------------------------------------------------------------------------

static void serve_close(struct serve *s)
{
    worker_stop(s->worker);
    client_finish(s->client, s->failure.status != STATUS_OK);
    client_close(s->client);
    http_api_close(s->http);
    worker_close(s->worker);
    if (s->loop)
        loop_close(s->loop);
}

static enum status open_loop(struct serve *s, bool in_run, struct error *err)
{
    signal(SIGPIPE, SIG_IGN);
    enum status st = loop_open(&s->loop, err);
    if (st == STATUS_OK)
        st = loop_signal_open(s->loop, SIGTERM, on_term, s, &s->term, err);
    if (st == STATUS_OK && in_run)
        signal(SIGINT, SIG_IGN);
    else if (st == STATUS_OK)
        st = loop_signal_open(s->loop, SIGINT, on_term, s, &s->interrupt, err);
    return st;
}

static enum status open_worker(struct serve *s, struct worker_config *c, struct error *err)
{
    c->loop = s->loop;
    c->on_outputs = on_outputs;
    c->on_loaded = on_loaded;
    c->on_traced = on_traced;
    c->on_failed = on_failed;
    c->ctx = s;
    enum status st = worker_open(c, &s->worker, err);
    if (st == STATUS_OK)
        log_event(LOG_INFO, "ready", "device=\"%s\" weights=%s", worker_device_name(s->worker),
                  dtype_name(c->dtype));
    return st;
}

static enum status run_until_stopped(struct serve *s, struct error *err)
{
    loop_run(s->loop);
    if (s->failure.status != STATUS_OK && err)
        *err = s->failure;
    return s->failure.status;
}

// First line of DIR/NAME.
static enum status read_line(const char *dir, const char *name, char *ret, size_t n, struct error *err)
{
    char path[RUNCONFIG_PATH * 2], *text = NULL;
    size_t len;
    enum status st = dir ? file_join(path, sizeof path, dir, name, err) : STATUS_OK;
    if (st == STATUS_OK)
        st = file_read(dir ? path : name, 4096, &text, &len, err);
    if (st != STATUS_OK)
        return st;
    text[strcspn(text, "\r\n")] = 0;
    if (!*text || snprintf(ret, n, "%s", text) >= (int)n)
        st = error_set(err, STATUS_INVALID, "%s holds no usable line", dir ? path : name);
    free(text);
    return st;
}

// ---- a run's engine -----------------------------------------------------------------------------------------------------------

static enum status worker_config_from_run(const struct run_config *c, struct worker_config *ret,
                                          struct error *err)
{
    static const enum dtype dtypes[] = {[RUN_F32] = DT_F32, [RUN_BF16] = DT_BF16, [RUN_FP8] = DT_FP8};
    static const enum kv_choice kv_choices[] = {[RUN_KV_DTYPE_AUTO] = KV_AUTO,
                                                [RUN_KV_DTYPE_F32] = KV_F32,
                                                [RUN_KV_DTYPE_BF16] = KV_BF16,
                                                [RUN_KV_DTYPE_FP8] = KV_FP8};
    enum status st = *c->model.path ? model_config_read(c->model.path, &ret->model, err)
                                    : model_config_from_run(&c->model, &ret->model, err);
    if (st != STATUS_OK)
        return st;
    ret->isa = c->trainer.isa;
    ret->dtype = dtypes[c->rollout.dtype];
    ret->engine = (struct engine_config){
        .kv_tokens = (int32_t)c->rollout.kv_tokens,
        .kv_dtype = kv_choices[c->rollout.kv_dtype],
        .page_tokens = (int32_t)c->rollout.page_tokens,
        .max_batch_tokens = (int32_t)c->rollout.max_batch_tokens,
        .max_running = (int32_t)c->rollout.max_running,
        .prefill_chunk = (int32_t)c->rollout.prefill_chunk,
        .flush_tokens = (int32_t)c->rollout.flush_tokens,
        .recompute_on_refit = c->rollout.kv_on_refit == RUN_KV_RECOMPUTE,
    };
    return STATUS_OK;
}

static enum status open_http_of_run(struct serve *s, const struct options *o, const struct run_config *c,
                                    const struct model_config *model, struct error *err)
{
    char token[256], path[RUNCONFIG_PATH * 2], name[64], text[16];
    enum status st = read_line(o->run_dir, "token", token, sizeof token, err);
    if (st != STATUS_OK)
        return st;
    int index = 0; // engines of one run that ask for one fixed port take it and those after it
    if (c->rollout.http_port > 0)
        sscanf(o->name, "engine-%d", &index);
    const struct http_api_config http = {.loop = s->loop,
                                         .worker = s->worker,
                                         .model = *model,
                                         .port = (int)c->rollout.http_port + index,
                                         .token = token,
                                         .in_run = true,
                                         .name = o->name};
    st = http_api_open(&http, &s->http, err);
    if (st != STATUS_OK)
        return st;
    snprintf(name, sizeof name, "%s.http", o->name);
    int n = snprintf(text, sizeof text, "%d\n", http_api_port(s->http));
    st = file_join(path, sizeof path, o->run_dir, name, err);
    return st == STATUS_OK ? file_write_atomic(path, text, (size_t)n, 0600, err) : st;
}

// Where the orchestrator is. On another host: as --connect says, with the keys of the join folder.
static enum status find_orchestrator(const struct options *o, char *ret_endpoint, size_t n, struct keys *ret,
                                     struct error *err)
{
    char path[RUNCONFIG_PATH * 2], socket[RUNCONFIG_PATH];
    enum status st;
    *ret = (struct keys){"", "", ""};
    if (o->connect) {
        st = file_join(path, sizeof path, o->run_dir, "client.key", err);
        if (st == STATUS_OK)
            st = keys_read(path, true, ret, err);
        snprintf(ret_endpoint, n, "%s", o->connect);
    } else {
        st = run_socket(o->run_dir, "orch", socket, sizeof socket, err);
        if (st == STATUS_OK)
            snprintf(ret_endpoint, n, "ipc://%s", socket);
    }
    return st;
}

// What an engine that was killed had fetched. The join folder is one engine's own.
static void remove_fetched(const char *dir)
{
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d));)
        if (strncmp(e->d_name, "ooze-fetch-", 11) == 0)
            unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
}

static enum status open_client(struct serve *s, const struct options *o, const struct run_config *c,
                               struct error *err)
{
    char run[128], endpoint[RUNCONFIG_PATH + 8];
    struct keys k;
    enum status st = read_line(o->run_dir, "id", run, sizeof run, err);
    if (st == STATUS_OK)
        st = find_orchestrator(o, endpoint, sizeof endpoint, &k, err);
    if (st != STATUS_OK)
        return st;
    if (o->connect)
        remove_fetched(o->run_dir);
    const struct wire_curve curve = {.secret_key = k.secret, .public_key = k.public, .server_key = k.server};
    const struct client_config client = {.loop = s->loop,
                                         .worker = s->worker,
                                         .endpoint = endpoint,
                                         .curve = o->connect ? &curve : NULL,
                                         .remote = o->connect != NULL,
                                         .run = run,
                                         .name = o->name,
                                         .restarts = o->restarts,
                                         .flush_tokens = (int32_t)c->rollout.flush_tokens,
                                         .fetch_dir = o->run_dir,
                                         .on_refused = on_refused,
                                         .ctx = s};
    st = client_open(&client, &s->client, err);
    keys_wipe(&k);
    return st;
}

// On the run's host beside its trainer and other engines; an engine that joined from another host has that to itself.
static enum status share_cores(const struct options *o, const struct run_config *c, struct cores_share *ret,
                               struct error *err)
{
    struct cores_list allowed;
    int index = 0;
    cores_allowed(&allowed);
    if (o->connect) {
        int64_t wanted = o->threads ? o->threads : c->rollout.threads; // of its own host's cores
        ret->threads = (int)(wanted ? wanted : allowed.n);
        return STATUS_OK;
    }
    sscanf(o->name, "engine-%d", &index);
    enum status st = cores_for_engine(c, &allowed, index, ret, err);
    if (st == STATUS_OK && *ret->warning)
        log_event(LOG_WARN, "oversubscribed", "cause=\"%s\"", ret->warning);
    return st;
}

static enum status serve_config(const struct options *o, const struct run_config *c, struct error *err)
{
    struct serve s = {0};
    struct worker_config w = {0};
    struct cores_share *share = mem_must(1, sizeof *share);
    enum status st = worker_config_from_run(c, &w, err);
    if (st == STATUS_OK)
        st = share_cores(o, c, share, err);
    w.threads = share->threads;
    w.pin = share->pin.n ? share->pin.cpus : NULL;
    if (st == STATUS_OK)
        st = open_loop(&s, !o->connect, err);
    if (st == STATUS_OK)
        st = open_worker(&s, &w, err);
    if (st == STATUS_OK && c->rollout.http)
        st = open_http_of_run(&s, o, c, &w.model, err);
    if (st == STATUS_OK)
        st = open_client(&s, o, c, err);
    if (st == STATUS_OK)
        st = run_until_stopped(&s, err);
    serve_close(&s);
    free(share);
    return st;
}

enum status serve_run(const struct options *o, bool *ret_config_bad, struct error *err)
{
    if (!o->connect) // else nobody supervises it: it may be left behind by the shell that started it
        prctl(PR_SET_PDEATHSIG, SIGTERM);
    *ret_config_bad = false;
    struct run_config *c = mem_must(1, sizeof *c);
    enum status st = runconfig_load_run(o->run_dir, c, err);
    *ret_config_bad = st != STATUS_OK;
    if (st == STATUS_OK)
        st = serve_config(o, c, err);
    free(c);
    return st;
}

// ---- a model folder ---------------------------------------------------------------------------------------------------------

enum status serve_model(const struct options *o, struct error *err)
{
    char token[256] = "";
    struct serve s = {.starting = true, .port_file = o->port_file};
    struct worker_config w = {.isa = o->isa, .threads = o->threads, .dtype = o->dtype, .engine = o->engine};
    struct worker_load load = {.version = 0, .folder = true};
    enum status st = model_config_read(o->model_dir, &w.model, err);
    if (st == STATUS_OK && snprintf(load.path, sizeof load.path, "%s", o->model_dir) >= (int)sizeof load.path)
        st = error_set(err, STATUS_LIMIT, "the path of the model is too long");
    if (st == STATUS_OK && o->token_file)
        st = read_line(NULL, o->token_file, token, sizeof token, err);
    if (st == STATUS_OK)
        st = open_loop(&s, false, err);
    if (st == STATUS_OK)
        st = open_worker(&s, &w, err);
    if (st == STATUS_OK) {
        const struct http_api_config http = {.loop = s.loop,
                                             .worker = s.worker,
                                             .model = w.model,
                                             .host = o->http_host,
                                             .port = o->http_port,
                                             .token = *token ? token : NULL,
                                             .name = o->name};
        st = http_api_open(&http, &s.http, err);
    }
    if (st == STATUS_OK)
        st = worker_load_start(s.worker, &load, err);
    if (st == STATUS_OK)
        st = run_until_stopped(&s, err);
    serve_close(&s);
    return st;
}
