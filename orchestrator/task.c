// Task services; see task.h for the state diagram. Runs on the loop's thread. All errors of a service are bounded by probing with
// growing pauses (200 ms … 2 s); a service of the configuration that never comes up within orchestrator.lease_ms ends the run.
#include "orchestrator/task.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "net/url.h"
#include "orchestrator/orch.h"
#include "orchestrator/sampler.h"

#define PROBE_FIRST_MS 200
#define PROBE_LAST_MS  2000
#define USELESS_MANY   16
#define USELESS_MS     1000

const char *task_state_name(enum task_state s)
{
    static const char *const names[] = {"waiting", "probing", "up", "down", "removed"};
    return names[s];
}

bool task_is_up(const struct task *t)
{
    return t->state == TASK_UP;
}

struct task *tasks_by_id(struct orch *o, int64_t id)
{
    return id >= 0 && id < o->tasks.n ? o->tasks.v[id] : NULL;
}

struct task *tasks_by_name(struct orch *o, const char *name)
{
    for (int i = 0; i < o->tasks.n; i++)
        if (strcmp(o->tasks.v[i]->cfg.name, name) == 0)
            return o->tasks.v[i];
    return NULL;
}

bool tasks_all_up(const struct orch *o)
{
    for (int i = 0; i < o->tasks.n; i++) {
        const struct task *t = o->tasks.v[i];
        if (t->state != TASK_REMOVED && !t->ever_up && strcmp(t->origin, "config") == 0)
            return false;
    }
    return true;
}

static enum status split_size(const json_t *splits, const char *name, int64_t *ret, struct error *err)
{
    const json_t *v = json_object_get(splits, name);
    if (!v || json_is_null(v)) {
        *ret = v ? -1 : 0;
        return STATUS_OK;
    }
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > (json_int_t)1 << 60)
        return error_set(err, STATUS_INVALID, "splits.%s: expected a count or null", name);
    *ret = json_integer_value(v);
    return STATUS_OK;
}

enum status task_describe(struct task *t, const char *body, size_t n, struct error *err)
{
    json_t *j = NULL;
    const char *protocol, *mode;
    int64_t n_train = 0, n_eval = 0, max_turns = 0;
    double lo = 0, hi = 1;
    enum status rc = json_parse(body, n, "GET /task", &j, err);
    if (rc)
        return rc;
    const json_t *splits = json_object_get(j, "splits"), *reward = json_object_get(j, "reward"),
                 *tools = json_object_get(j, "tools");
    if ((rc = json_get_string(j, "protocol", true, NULL, "GET /task", &protocol, err)) ||
        (rc = json_get_string(j, "mode", true, NULL, "GET /task", &mode, err)))
        goto out;
    if (strcmp(protocol, "ooze-task/1") != 0) {
        rc = error_set(err, STATUS_UNSUPPORTED, "protocol is \"%s\", this program speaks ooze-task/1",
                       protocol);
        goto out;
    }
    if (strcmp(mode, "env") != 0) {
        rc = error_set(err, STATUS_UNSUPPORTED, "mode is \"%s\": only mode \"env\" is served by this version",
                       mode);
        goto out;
    }
    if (!json_is_object(splits)) {
        rc = error_set(err, STATUS_INVALID, "splits: expected an object");
        goto out;
    }
    if ((rc = split_size(splits, "train", &n_train, err)) || (rc = split_size(splits, "eval", &n_eval, err)))
        goto out;
    const json_t *turns = json_object_get(j, "max_turns");
    if (turns && !json_is_null(turns) &&
        (rc = json_get_int(j, "max_turns", false, 0, 0, 1 << 20, "GET /task", &max_turns, err)))
        goto out;
    if (json_is_object(reward) &&
        ((rc = json_get_real(reward, "min", false, 0, -1e12, 1e12, "reward", &lo, err)) ||
         (rc = json_get_real(reward, "max", false, 1, -1e12, 1e12, "reward", &hi, err))))
        goto out;
    if (!(lo < hi)) {
        rc = error_set(err, STATUS_INVALID, "reward: min %g is not below max %g", lo, hi);
        goto out;
    }
    if (tools && !json_is_null(tools) && !json_is_array(tools)) {
        rc = error_set(err, STATUS_INVALID, "tools: expected an array");
        goto out;
    }
    json_decref(t->tools);
    t->tools = json_is_array(tools) && json_array_size(tools) ? json_incref((json_t *)tools) : NULL;
    t->n_train = n_train;
    t->n_eval = n_eval;
    t->max_turns = t->cfg.max_turns > 0 ? t->cfg.max_turns : max_turns;
    t->reward_min = lo;
    t->reward_max = hi;
out:
    json_decref(j);
    return rc;
}

static void probe_later(struct task *t)
{
    t->backoff_ms = t->backoff_ms ? t->backoff_ms * 2 : PROBE_FIRST_MS;
    if (t->backoff_ms > PROBE_LAST_MS)
        t->backoff_ms = PROBE_LAST_MS;
    t->next_probe_ms = orch_now(t->o) + t->backoff_ms;
}

// A service started by `ooze run` writes its port; a restarted one writes another.
static void read_port(struct task *t)
{
    char path[RUNCONFIG_PATH + 128], *data = NULL;
    size_t n;
    struct error err;
    if (t->cfg.url[0]) {
        snprintf(t->url, sizeof t->url, "%s", t->cfg.url);
        return;
    }
    snprintf(path, sizeof path, "%s/tasks/%s.port", t->o->run_dir, t->cfg.name);
    if (file_read(path, 64, &data, &n, &err))
        return;
    long port = strtol(data, NULL, 10);
    if (port > 0 && port < 65536)
        snprintf(t->url, sizeof t->url, "http://127.0.0.1:%ld", port);
    free(data);
}

static void task_came_up(struct task *t)
{
    struct orch *o = t->o;
    t->state = TASK_UP;
    t->backoff_ms = 0;
    t->logged = false;
    if (!t->ever_up)
        log_event(LOG_INFO, "task_up", "task=%s url=%s train=%lld eval=%lld", t->cfg.name, t->url,
                  (long long)t->n_train, (long long)t->n_eval);
    else
        log_event(LOG_INFO, "task_up_again", "task=%s url=%s", t->cfg.name, t->url);
    t->ever_up = true;
    // It joins at the pass of the others, lest it catch up on all it has missed (stride scheduling).
    double least = INFINITY;
    for (int i = 0; i < o->tasks.n; i++)
        if (o->tasks.v[i] != t && o->tasks.v[i]->state == TASK_UP && o->tasks.v[i]->pass < least)
            least = o->tasks.v[i]->pass;
    if (isfinite(least) && t->pass < least)
        t->pass = least;
    episodes_task_up(o, t);
    orch_kick(o);
}

static void probe_failed(struct task *t, const char *why)
{
    if (!t->logged) {
        orch_warn(t->o, "task_unreachable", "task=%s url=%s cause=\"%s\"", t->cfg.name, t->url, why);
        t->logged = true;
    }
    probe_later(t);
}

static void on_task(void *ctx, const struct http_result *r)
{
    struct task *t = ctx;
    struct orch *o = t->o;
    struct error err;
    t->call = NULL;
    if (r->outcome != HTTP_OUTCOME_OK || r->status != 200) {
        char why[128];
        snprintf(why, sizeof why, "GET /task: %s (HTTP status %d)", http_outcome_text(r->outcome), r->status);
        probe_failed(t, why);
        return;
    }
    if (task_describe(t, r->body, r->body_len, &err) == STATUS_OK) {
        task_came_up(t);
        return;
    }
    error_prefix(&err, "task %s at %s", t->cfg.name, t->url);
    if (strcmp(t->origin, "config") == 0) {
        orch_fail(o, &err);
        return;
    }
    orch_warn(o, "task_refused", "cause=\"%s\"", err.text);
    struct error ignored;
    if (task_remove(o, t->cfg.name, err.text, &ignored))
        orch_fail(o, &ignored);
}

static void on_health(void *ctx, const struct http_result *r)
{
    struct task *t = ctx;
    t->call = NULL;
    if (r->outcome == HTTP_OUTCOME_OK && r->status == 200) {
        task_came_up(t);
        return;
    }
    probe_failed(t, http_outcome_text(r->outcome));
}

static void probe(struct task *t)
{
    struct error err;
    read_port(t);
    if (!t->url[0]) {
        probe_later(t);
        return;
    }
    bool describe = !t->ever_up;
    char *url = url_join(t->url, describe ? "task" : "health");
    struct http_call_spec spec = {
        .method = "GET",
        .url = url,
        .connect_timeout_ms = t->cfg.connect_timeout_ms,
        .timeout_ms = t->cfg.connect_timeout_ms > 5000 ? t->cfg.connect_timeout_ms : 5000,
        .max_reply_bytes = 1 << 20,
        .on_done = describe ? on_task : on_health,
        .ctx = t,
    };
    if (t->state == TASK_WAIT)
        t->state = TASK_PROBE;
    if (http_call_start(t->o->http, &spec, &t->call, &err))
        probe_failed(t, err.text);
    free(url);
}

void task_suspect(struct task *t, const char *cause)
{
    if (t->state != TASK_UP)
        return;
    t->state = TASK_DOWN;
    t->wait_since_ms = orch_now(t->o);
    t->next_probe_ms = 0;
    log_event(LOG_INFO, "task_suspect", "task=%s cause=\"%s\"", t->cfg.name, cause);
    orch_kick(t->o);
}

void task_useless(struct task *t, const char *cause)
{
    t->useless_last_ms = orch_now(t->o);
    if (t->useless++ == 0)
        t->useless_since_ms = t->useless_last_ms;
    snprintf(t->useless_cause, sizeof t->useless_cause, "%s", cause);
    if (t->useless < USELESS_MANY)
        return;
    task_suspect(t, cause);
    if (t->state == TASK_DOWN)
        t->next_probe_ms = t->useless_last_ms + USELESS_MS;
}

void task_useful(struct task *t)
{
    t->useless = 0;
}

// True when the task is past hope and has been dealt with.
static bool task_given_up(struct task *t)
{
    struct orch *o = t->o;
    struct error err;
    int64_t ms = t->useless_last_ms - t->useless_since_ms;
    if (t->useless < USELESS_MANY || ms <= t->cfg.step_timeout_ms)
        return false;
    error_set(&err, STATUS_PEER,
              "task %s at %s: %d replies in a row over %.1f s were of no use; the last: %s", t->cfg.name,
              t->url, t->useless, (double)ms / 1000, t->useless_cause);
    if (strcmp(t->origin, "config") == 0) {
        orch_fail(o, &err);
        return true;
    }
    orch_warn(o, "task_given_up", "cause=\"%s\"", err.text);
    struct error ignored;
    if (task_remove(o, t->cfg.name, err.text, &ignored))
        orch_fail(o, &ignored);
    return true;
}

void tasks_tick(struct orch *o)
{
    int64_t now = orch_now(o);
    for (int i = 0; i < o->tasks.n; i++) {
        struct task *t = o->tasks.v[i];
        struct error err;
        if (t->state == TASK_REMOVED || task_given_up(t))
            continue;
        if (t->ttl_deadline_ms && now > t->ttl_deadline_ms) {
            if (task_remove(o, t->cfg.name, "not registered again within its ttl_s", &err))
                orch_fail(o, &err);
            continue;
        }
        if (t->state == TASK_UP)
            continue;
        if (t->n_queued && now - t->wait_since_ms > t->cfg.step_timeout_ms) {
            t->wait_since_ms = t->ever_up || strcmp(t->origin, "config") ? now : t->wait_since_ms;
            episodes_task_gone(o, t);
        }
        if (t->call || now < t->next_probe_ms)
            continue;
        if (!t->ever_up && strcmp(t->origin, "config") == 0 &&
            now - t->wait_since_ms > o->cfg->orchestrator.lease_ms) {
            error_set(&err, STATUS_TIMEOUT, "task %s did not answer GET /task within %lld ms (%s)",
                      t->cfg.name, (long long)o->cfg->orchestrator.lease_ms,
                      t->url[0] ? t->url : "its port file never appeared");
            orch_fail(o, &err);
            return;
        }
        probe(t);
    }
}

static enum status task_save(struct orch *o, const struct task *t, struct error *err)
{
    struct ledger_task row = {
        .id = t->id,
        .name = t->cfg.name,
        .url = t->cfg.url,
        .origin = t->origin,
        .ratio = t->cfg.ratio,
        .max_concurrency = t->cfg.max_concurrency,
        .removed = t->state == TASK_REMOVED,
    };
    char key[96], ttl[32];
    snprintf(key, sizeof key, "task_ttl/%s", t->cfg.name);
    snprintf(ttl, sizeof ttl, "%lld", (long long)t->ttl_s);
    enum status rc = journal_begin(o, err);
    if (!rc)
        rc = ledger_task_set(o->ledger, &row, err);
    return rc ? rc : ledger_meta_set(o->ledger, key, ttl, err);
}

static struct task *task_new(struct orch *o, const char *origin)
{
    struct task *t = mem_must(1, sizeof *t);
    t->o = o;
    t->id = o->tasks.n;
    t->origin = origin;
    t->wait_since_ms = orch_now(o);
    o->tasks.v[o->tasks.n++] = t;
    return t;
}

static const struct run_task defaults = {.ratio = 1,
                                         .max_concurrency = 64,
                                         .step_timeout_ms = 60000,
                                         .connect_timeout_ms = 5000,
                                         .max_attempts = 3};

// A task registered at run time: patience as for the first task of the configuration.
static struct run_task runtime_defaults(const struct orch *o)
{
    struct run_task t = defaults;
    if (o->cfg->n_tasks) {
        t.step_timeout_ms = o->cfg->tasks[0].step_timeout_ms;
        t.connect_timeout_ms = o->cfg->tasks[0].connect_timeout_ms;
        t.max_attempts = o->cfg->tasks[0].max_attempts;
    }
    return t;
}

static const struct run_task *config_task(const struct orch *o, const char *name)
{
    for (int i = 0; i < o->cfg->n_tasks; i++)
        if (strcmp(o->cfg->tasks[i].name, name) == 0)
            return &o->cfg->tasks[i];
    return NULL;
}

static enum status restore_task(void *ctx, const struct ledger_task *row, struct error *err)
{
    struct orch *o = ctx;
    if (row->id != o->tasks.n || o->tasks.n >= TASKS_MAX)
        return error_set(err, STATUS_CORRUPT, "the ledger's task %lld is out of order", (long long)row->id);
    const struct run_task *c = config_task(o, row->name);
    const bool of_config = strcmp(row->origin, "config") == 0;
    struct task *t = task_new(o, of_config ? "config" : strcmp(row->origin, "cli") == 0 ? "cli" : "service");
    t->cfg = c ? *c : runtime_defaults(o);
    snprintf(t->cfg.name, sizeof t->cfg.name, "%s", row->name);
    if (!c ||
        !of_config) { // registered while the run went on: what was said then, also of a task of the configuration
        snprintf(t->cfg.url, sizeof t->cfg.url, "%s", row->url);
        t->cfg.ratio = row->ratio;
        t->cfg.max_concurrency = row->max_concurrency;
    }
    if (row->removed || (of_config && !c))
        t->state = TASK_REMOVED; // removed before, or no longer in the configuration
    return STATUS_OK;
}

// What the ledger keeps of a task beside its row: where its share stands, and how long a registration is good for.
static enum status restore_notes(struct task *t, struct error *err)
{
    struct orch *o = t->o;
    char key[96], *value = NULL;
    struct error none;
    sampler_load(o, t);
    snprintf(key, sizeof key, "task_ttl/%s", t->cfg.name);
    if (t->state != TASK_REMOVED && ledger_meta_get(o->ledger, key, &value, &none) == STATUS_OK) {
        t->ttl_s = strtoll(value, NULL, 10);
        t->ttl_deadline_ms = t->ttl_s ? orch_now(o) + t->ttl_s * 1000 : 0;
        free(value);
    }
    enum status rc = t->cfg.url[0] ? url_check(t->cfg.url, err) : STATUS_OK;
    if (rc)
        error_prefix(err, "task %s", t->cfg.name);
    return rc;
}

enum status tasks_open(struct orch *o, struct error *err)
{
    enum status rc = ledger_tasks(o->ledger, restore_task, o, err);
    for (int i = 0; i < o->cfg->n_tasks && !rc; i++) {
        if (tasks_by_name(o, o->cfg->tasks[i].name))
            continue;
        struct task *t = task_new(o, "config");
        t->cfg = o->cfg->tasks[i];
        rc = task_save(o, t, err);
    }
    for (int i = 0; i < o->tasks.n && !rc; i++)
        rc = restore_notes(o->tasks.v[i], err);
    sampler_level(o);
    return rc;
}

void tasks_close(struct orch *o)
{
    for (int i = 0; i < o->tasks.n; i++) {
        struct task *t = o->tasks.v[i];
        if (t->call)
            http_call_cancel(t->call);
        json_decref(t->tools);
        free(t);
    }
    o->tasks = (struct tasks){0};
}

static bool name_ok(const char *s)
{
    size_t n = strlen(s);
    if (n == 0 || n >= RUNCONFIG_NAME || !isalpha((unsigned char)s[0]))
        return false;
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && *s != '-' && *s != '_')
            return false;
    return true;
}

enum status task_register(struct orch *o, const json_t *args, const char *origin, struct error *err)
{
    const char *url, *name, *what = "task registration";
    double ratio;
    int64_t concurrency, ttl;
    enum status rc;
    if ((rc = json_get_string(args, "url", true, NULL, what, &url, err)) ||
        (rc = json_get_string(args, "name", true, NULL, what, &name, err)) ||
        (rc = json_get_real(args, "ratio", false, 1, 1e-6, 1e6, what, &ratio, err)) ||
        (rc = json_get_int(args, "max_concurrency", false, defaults.max_concurrency, 1, 1 << 20, what,
                           &concurrency, err)) ||
        (rc = json_get_int(args, "ttl_s", false, 0, 0, 86400 * 30, what, &ttl, err)) ||
        (rc = url_check(url, err)))
        return rc;
    if (!name_ok(name))
        return error_set(err, STATUS_INVALID,
                         "%s: name \"%.80s\": letters, digits, - and _, at most %d, starting with a letter",
                         what, name, RUNCONFIG_NAME - 1);
    if (strlen(url) >= RUNCONFIG_PATH)
        return error_set(err, STATUS_LIMIT, "%s: url is longer than %d", what, RUNCONFIG_PATH - 1);
    struct task *t = tasks_by_name(o, name);
    if (t && strcmp(t->origin, "config") == 0 && t->state != TASK_REMOVED)
        return error_set(err, STATUS_EXISTS, "task %s is in the run's configuration", name);
    if (!t) {
        if (o->tasks.n >= TASKS_MAX)
            return error_set(err, STATUS_LIMIT, "a run has at most %d tasks", TASKS_MAX);
        t = task_new(o, origin);
        t->cfg = runtime_defaults(o);
        snprintf(t->cfg.name, sizeof t->cfg.name, "%s", name);
    }
    bool moved = strcmp(t->cfg.url, url) != 0;
    snprintf(t->cfg.url, sizeof t->cfg.url, "%s", url);
    t->cfg.ratio = ratio;
    t->cfg.max_concurrency = concurrency;
    t->ttl_s = ttl;
    t->ttl_deadline_ms = ttl ? orch_now(o) + ttl * 1000 : 0;
    if (t->state == TASK_REMOVED) { // back under new terms: nothing of what it was told before holds
        t->origin = origin;
        t->wait_since_ms = orch_now(o);
        t->backoff_ms = 0;
    }
    if (t->state == TASK_REMOVED || (moved && t->state != TASK_UP)) {
        t->state = TASK_WAIT;
        t->useless = 0;
        t->ever_up = false;
        t->next_probe_ms = 0;
    } else if (moved) {
        snprintf(t->url, sizeof t->url, "%s", url);
    }
    log_event(LOG_INFO, "task_registered", "task=%s url=%s ratio=%g", name, url, ratio);
    orch_kick(o);
    return task_save(o, t, err);
}

enum status task_remove(struct orch *o, const char *name, const char *cause, struct error *err)
{
    struct task *t = tasks_by_name(o, name);
    if (!t || t->state == TASK_REMOVED)
        return error_set(err, STATUS_NOTFOUND, "no task %s", name);
    t->state = TASK_REMOVED;
    if (t->call)
        http_call_cancel(t->call);
    t->call = NULL;
    t->ttl_s = t->ttl_deadline_ms = 0;
    log_event(LOG_INFO, "task_removed", "task=%s cause=\"%s\"", name, cause);
    groups_task_removed(o, t);
    eval_task_removed(o, t);
    orch_kick(o);
    return task_save(o, t, err);
}
