// Status and queries; see status.h. Runs on the loop's thread. Read-only verbs are always safe; the others answer after they are durable.
#include "orchestrator/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "orchestrator/orch.h"

static const char *state_name(const struct orch *o)
{
    if (o->failed)
        return "failed";
    if (o->stopping)
        return "stopping";
    return phase_name(o->stage.phase);
}

// A task service says no HELLO: what the supervisor that started it has noted. Of a registered one nothing is known.
static json_t *task_process(const struct orch *o, const struct task *t)
{
    char path[RUNCONFIG_PATH + 128], *text;
    long long pid, restarts;
    size_t n;
    struct error none;
    json_t *row = json_pack("{s:s+, s:n, s:s, s:I, s:n}", "name", "task:", t->cfg.name, "pid", "state",
                            task_state_name(t->state), "restarts", (json_int_t)0, "heartbeat_age_s");
    snprintf(path, sizeof path, "%s/tasks/%s.pid", o->run_dir, t->cfg.name);
    if (!t->cfg.n_command || file_read(path, 64, &text, &n, &none))
        return row;
    if (sscanf(text, "%lld %lld", &pid, &restarts) == 2) {
        json_object_set_new(row, "pid", json_integer(pid));
        json_object_set_new(row, "restarts", json_integer(restarts));
    }
    free(text);
    return row;
}

static json_t *processes(struct orch *o)
{
    json_t *list = json_array();
    json_array_append_new(list, json_pack("{s:s, s:I, s:s, s:I, s:f}", "name", "orchestrator", "pid",
                                          (json_int_t)getpid(), "state", "up", "restarts",
                                          (json_int_t)o->restarts, "heartbeat_age_s", 0.0));
    for (int i = 0; i < PEERS_MAX; i++) {
        const struct peer *p = &o->peers.v[i];
        if (!p->role)
            continue;
        json_t *row = json_pack("{s:s, s:I, s:s, s:I, s:f}", "name", p->name, "pid", (json_int_t)p->pid,
                                "state", p->up ? "up" : "down", "restarts", (json_int_t)p->restarts,
                                "heartbeat_age_s", (double)(orch_now(o) - p->seen_ms) / 1000);
        if (p->role == ROLE_ENGINE) {
            json_object_set_new(row, "version", json_integer(p->version));
            json_object_set_new(row, "jobs", json_integer(p->jobs.n));
            json_object_set_new(row, "generated_tokens", json_integer(p->load.generated_tokens));
            json_object_set_new(row, "remote", json_boolean(p->remote));
            json_object_set_new(row, "kv_used", json_integer(p->load.kv_used));
        }
        json_object_set_new(row, "busy", json_real(p->load.busy));
        json_array_append_new(list, row);
    }
    for (int i = 0; i < o->tasks.n; i++) {
        const struct task *t = o->tasks.v[i];
        if (t->state != TASK_REMOVED)
            json_array_append_new(list, task_process(o, t));
    }
    return list;
}

// The figures of the ledger are a scan of all units, on the thread that everything else waits for: made again only when twenty times
// as long has passed as it took, so that whoever asks, and however often, it costs a long run no more than a twentieth of its time.
static struct ledger_counts counts_now(struct orch *o)
{
    struct error err;
    int64_t now = orch_now(o);
    if (o->counts.made_ms && now - o->counts.made_ms < 20 * o->counts.took_ms)
        return o->counts.last;
    if (ledger_counts_read(o->ledger, &o->counts.last, &err))
        orch_warn(o, "status_incomplete", "cause=\"%s\"", err.text);
    o->counts.made_ms = orch_now(o);
    o->counts.took_ms = o->counts.made_ms - now;
    return o->counts.last;
}

json_t *status_json(struct orch *o)
{
    struct ledger_counts c = counts_now(o);
    const struct run_stage *stage = orch_stage(o);
    json_t *dropped = json_object(), *groups = json_object();
    for (int r = 1; r < DROP_REASON_COUNT; r++)
        if (c.dropped[r])
            json_object_set_new(dropped, drop_reason_name((enum drop_reason)r), json_integer(c.dropped[r]));
    for (int i = 0; i < UNIT_DROPPED; i++)
        json_object_set_new(groups, unit_state_name((enum unit_state)i), json_integer(c.units[i]));
    json_object_set_new(groups, "dropped", dropped);
    json_t *j =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:f}", "run", o->cfg->name, "state", state_name(o), "stage",
                  stage ? stage->name : "", "step", (json_int_t)o->committed_steps, "weights_version",
                  (json_int_t)o->weights.version, "uptime_s", (double)(orch_now(o) - o->started_ms) / 1000);
    json_object_set_new(j, "steps_total", json_integer(stage_first_step(o, (int)o->cfg->n_stages)));
    json_object_set_new(j, "groups", groups);
    json_object_set_new(j, "tokens",
                        json_pack("{s:I, s:I, s:I}", "generated", (json_int_t)c.tokens_generated, "trained",
                                  (json_int_t)c.tokens_trained, "dropped", (json_int_t)c.tokens_dropped));
    metrics_status(o, j);
    json_object_set_new(j, "parity", check_status(o));
    if (o->eval.running)
        json_object_set_new(
            j, "eval",
            json_pack("{s:s, s:i, s:i}", "label", o->eval.label, "done", o->eval.n_done, "of", o->eval.n));
    json_object_set_new(j, "processes", processes(o));
    json_object_set_new(j, "last_error", o->last_error[0] ? json_string(o->last_error) : json_null());
    return j;
}

json_t *status_tasks(struct orch *o)
{
    json_t *list = json_array();
    for (int i = 0; i < o->tasks.n; i++) {
        const struct task *t = o->tasks.v[i];
        if (t->state == TASK_REMOVED)
            continue;
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:s, s:s, s:f, s:I, s:i, s:i, s:I, s:I}", "name", t->cfg.name, "url",
                            t->url[0] ? t->url : t->cfg.url, "origin", t->origin, "state",
                            task_state_name(t->state), "ratio", t->cfg.ratio, "max_concurrency",
                            (json_int_t)t->cfg.max_concurrency, "running", t->running, "queued", t->n_queued,
                            "episodes", (json_int_t)t->episodes, "failures", (json_int_t)t->failures));
    }
    return json_pack("{s:o}", "tasks", list);
}

static enum status run_verb(struct orch *o, const char *verb, const json_t *args, json_t **ret,
                            struct error *err)
{
    enum status rc = STATUS_OK;
    if (strcmp(verb, "status") == 0) {
        *ret = status_json(o);
        return STATUS_OK;
    }
    if (strcmp(verb, "task_list") == 0) {
        *ret = status_tasks(o);
        return STATUS_OK;
    }
    if (strcmp(verb, "task_register") == 0) {
        if ((rc = task_register(o, args, "cli", err)))
            return rc;
        *ret = status_tasks(o);
    } else if (strcmp(verb, "task_remove") == 0) {
        const char *name;
        if ((rc = json_get_string(args, "name", true, NULL, "task_remove", &name, err)) ||
            (rc = task_remove(o, name, "asked to", err)))
            return rc;
        *ret = status_tasks(o);
    } else if (strcmp(verb, "stop") == 0) {
        bool drain;
        if ((rc = json_get_bool(args, "drain", false, true, "stop", &drain, err)))
            return rc;
        orch_stop(o, drain);
        *ret = json_pack("{s:s}", "state", "stopping");
    } else {
        return error_set(err, STATUS_UNSUPPORTED,
                         "no query \"%.40s\"; there are status, task_list, task_register, task_remove, stop",
                         verb);
    }
    if (!journal_flush(o, true)) {
        json_decref(*ret);
        return error_set(err, STATUS_IO, "%s", o->last_error);
    }
    return STATUS_OK;
}

// Consumes j.
static void reply(struct orch *o, const struct wire_peer *to, const struct msg_query *q, enum status rc,
                  json_t *j)
{
    char *text = json_text(j);
    struct msg m = {.type = MSG_REPLY, .reply = {.id = q->id, .status = rc, .json = text}};
    struct error ignored;
    if (wire_send(o->wire, to, &m, &ignored))
        log_event(LOG_DEBUG, "reply_lost", "verb=%s", q->verb); // who asked asks again
    free(text);
    json_decref(j);
}

void query_refuse(struct orch *o, const struct wire_peer *from, const struct msg_query *q)
{
    reply(o, from, q, STATUS_REFUSED,
          json_pack("{s:s}", "error", "queries are answered on the run's own host only"));
}

void query_on_message(struct orch *o, const struct wire_peer *from, const struct msg_query *q)
{
    struct error err;
    json_t *args = NULL, *answer = NULL;
    enum status rc = STATUS_OK;
    if (q->args && q->args[0])
        rc = json_parse(q->args, strlen(q->args), "query arguments", &args, &err);
    if (!args)
        args = json_object();
    if (!rc)
        rc = run_verb(o, q->verb, args, &answer, &err);
    if (rc)
        answer = json_pack("{s:s}", "error", err.text);
    reply(o, from, q, rc, answer);
    json_decref(args);
}
