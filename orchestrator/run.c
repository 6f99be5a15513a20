// The orchestrator's life: opening, the turn of its loop, stopping, failing. One thread; see orch.h for the tour.
//
// A stop: no new groups; what runs may finish for drain_ms; the next step, if one comes together, carries a checkpoint; then state
// "stopped". A second request ends now. Both are resumable: everything that counts is in the ledger already.
#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "orchestrator/api.h"
#include "orchestrator/orch.h"
#include "proto/keys.h"

#define TICK_MS 20
#define FILES                                                                                                \
    512 // open at once beside calls and connections of HTTP, which count their own: ledger, figures, peers

#define WIRE_BATCH 256 // messages taken in one turn of the loop

int64_t orch_now(const struct orch *o)
{
    return clock_mono_ms(o->clock);
}

void orch_kick(struct orch *o)
{
    // From within a pump a little later, so that what keeps finding work cannot keep the sockets from being read.
    loop_timer_set(o->kick_timer, o->pumping ? 1 : 0, 0);
}

void orch_fail(struct orch *o, const struct error *err)
{
    char text[1100];
    if (o->failed)
        return;
    o->failed = true;
    // A configuration that cannot work is wrong usage; the rest is a failure that a restart may cure or not, but loses nothing.
    o->exit_code = err->status == STATUS_UNSUPPORTED ? 2 : 1;
    snprintf(o->last_error, sizeof o->last_error, "%s", err->text);
    log_event(LOG_ERROR, "failed", "step=%lld cause=%s", (long long)o->committed_steps,
              log_quote(err->text, text, sizeof text));
    ledger_rollback(o->ledger);
    struct error none;
    if (ledger_begin(o->ledger, &none) == STATUS_OK &&
        ledger_meta_set(o->ledger, "state", "failed", &none) == STATUS_OK &&
        ledger_meta_set(o->ledger, "last_error", err->text, &none) == STATUS_OK &&
        ledger_commit(o->ledger, true, &none) == STATUS_OK)
        log_event(LOG_DEBUG, "recorded", "state=failed");
    loop_stop(o->loop);
}

void orch_warn(struct orch *o, const char *event, const char *fmt, ...)
{
    char text[900];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(o->last_error, sizeof o->last_error, "%s: %s", event, text);
    utf8_mend(o->last_error); // it may have been cut
    log_event(LOG_WARN, event, "%s", text);
}

void orch_finish(struct orch *o, const char *state)
{
    struct error err;
    if (o->finished)
        return;
    o->finished = true;
    if (journal_begin(o, &err) || ledger_meta_set(o->ledger, "state", state, &err)) {
        orch_fail(o, &err);
        return;
    }
    if (!journal_flush(o, true))
        return;
    log_event(LOG_INFO, "end", "state=%s steps=%lld", state, (long long)o->committed_steps);
    o->exit_code = 0;
    loop_stop(o->loop);
}

void orch_stop(struct orch *o, bool drain)
{
    if (o->failed)
        return;
    if (o->stopping || !drain) {
        log_event(LOG_INFO, "stop", "drain=0");
        o->stopping = o->stop_now = true;
        o->stop_deadline_ms = orch_now(o);
    } else {
        log_event(LOG_INFO, "stop", "drain=1 drain_ms=%lld", (long long)o->cfg->orchestrator.drain_ms);
        o->stopping = true;
        o->stop_deadline_ms = orch_now(o) + o->cfg->orchestrator.drain_ms;
    }
    orch_kick(o);
}

// Stopping: true when nothing more is to be waited for.
static bool drained(struct orch *o)
{
    const struct run_stage *stage = orch_stage(o);
    if (orch_now(o) >= o->stop_deadline_ms)
        return true;
    if (o->eval.running && !stage_training(o))
        return true; // it starts over; nothing is lost
    if (!stage_training(o))
        return o->stage.phase != PHASE_CHECKPOINT;
    if (o->step.prepared)
        return false;
    if (o->stage.stop_step_done)
        return o->checkpoint.step == o->committed_steps;
    if (!peers_trainer(o))
        return true;
    // No step can come together any more?
    return stage->kind == RUN_STAGE_RL && o->groups.n_running + o->groups.n_ready < stage->groups_per_step;
}

// Drained, but the newest checkpoint is older than the last step: the trainer is asked for one, once, and waited for as long as for
// the draining itself. True while waiting.
static bool checkpoint_awaited(struct orch *o)
{
    if (o->stop_now || o->committed_steps == 0 || o->checkpoint.step == o->committed_steps ||
        !trainer_is_ready(o))
        return false;
    if (!o->stop_checkpoint_ms) {
        o->stop_checkpoint_ms = orch_now(o);
        trainer_ask_checkpoint(o);
    }
    return orch_now(o) - o->stop_checkpoint_ms < o->cfg->orchestrator.drain_ms;
}

// A parity check under way is waited for as long as anything else is.
static bool check_awaited(struct orch *o)
{
    return check_busy(o) && peers_trainer(o) && orch_now(o) < o->stop_deadline_ms;
}

static void pump(struct orch *o)
{
    if (o->failed || o->finished)
        return;
    if (o->stopping && drained(o)) {
        if (check_failing(o))
            check_conclude(o);
        else if (!check_awaited(o) && !checkpoint_awaited(o))
            orch_finish(o, "stopped");
        return;
    }
    o->pumping = true;
    stage_advance(o);
    groups_admit(o);
    step_try(o);
    eval_tick(o);
    router_pump(o);
    metrics_generating(o);
    o->pumping = false;
}

static void on_kick(void *ctx)
{
    pump(ctx);
}

static void on_tick(void *ctx)
{
    struct orch *o = ctx;
    peers_tick(o);
    tasks_tick(o);
    trainer_tick(o);
    check_tick(o);
    episodes_tick(o);
    pump(o);
}

static void on_wire(void *ctx)
{
    struct orch *o = ctx;
    struct wire_peer from;
    struct msg m;
    struct error err;
    for (int i = 0; i < WIRE_BATCH && !o->failed; i++) {
        enum status rc = wire_recv(o->wire, &from, &m, &err);
        if (rc == STATUS_AGAIN)
            return;
        if (rc) {
            orch_fail(o, &err);
            return;
        }
        peers_on_message(o, &from, &m);
        wire_release(o->wire);
    }
}

static int wire_has_input(void *ctx)
{
    struct orch *o = ctx;
    return wire_pending(o->wire);
}

static void on_signal(void *ctx, int signum)
{
    (void)signum;
    orch_stop(ctx, true);
}

// ---- opening --------------------------------------------------------------------------------------------------------------------

static enum status read_word(const char *run_dir, const char *name, char *ret, size_t n, struct error *err)
{
    char path[RUNCONFIG_PATH + 16], *data = NULL;
    size_t len;
    enum status rc = file_join(path, sizeof path, run_dir, name, err);
    if (rc || (rc = file_read(path, 4096, &data, &len, err)))
        return rc;
    while (len > 0 && isspace((unsigned char)data[len - 1]))
        data[--len] = 0;
    if (len == 0 || len >= n)
        rc = error_set(err, STATUS_INVALID, "%s: expected one word of at most %zu characters", path, n - 1);
    else
        memcpy(ret, data, len + 1);
    free(data);
    return rc;
}

static enum status open_text(struct orch *o, struct error *err)
{
    const struct run_model *m = &o->cfg->model;
    enum status rc;
    bool bytes = strcmp(m->tokenizer, "bytes") == 0 || (!m->tokenizer[0] && !m->path[0]);
    if (bytes) {
        const char *specials[RUNCONFIG_SPECIALS];
        for (int i = 0; i < m->n_specials; i++)
            specials[i] = m->specials[i];
        rc = m->n_specials ? tokenizer_open_bytes(specials, (size_t)m->n_specials, &o->tokenizer, err)
                           : tokenizer_open_bytes(tokenizer_tiny_specials, tokenizer_n_tiny_specials,
                                                  &o->tokenizer, err);
        return rc ? rc : chat_open_template(NULL, "model.tokenizer", o->tokenizer, &o->chat, err);
    }
    const char *from = m->tokenizer[0] ? m->tokenizer : m->path;
    if ((rc = tokenizer_open(from, &o->tokenizer, err)) ||
        (rc = chat_open(m->path[0] ? m->path : from, o->tokenizer, &o->chat, err)))
        return rc;
    const char *family = chat_family_name(chat_family(o->chat));
    bool automatic = !m->chat_template[0] || strcmp(m->chat_template, "auto") == 0;
    bool qwen = strcmp(m->chat_template, "qwen") == 0 && strncmp(family, "qwen", 4) == 0;
    if (!automatic && !qwen && strcmp(family, m->chat_template) != 0)
        return error_set(err, STATUS_UNSUPPORTED, "model.chat_template is %s, but the template in %s is %s",
                         m->chat_template, from, family);
    return STATUS_OK;
}

// What only the orchestrator can know to be impossible.
static enum status check_config(const struct orch *o, struct error *err)
{
    for (int i = 0; i < o->cfg->n_stages; i++) {
        const struct run_stage *s = &o->cfg->stages[i];
        if (s->kind == RUN_STAGE_RL && o->cfg->n_tasks == 0)
            return error_set(err, STATUS_UNSUPPORTED, "stage %s is rl, but there are no tasks", s->name);
        if (s->kind == RUN_STAGE_RL && s->max_lag + 1 < s->sync_interval)
            return error_set(
                err, STATUS_UNSUPPORTED,
                "stage %s: max_lag %lld allows no step between two pushes every sync_interval %lld", s->name,
                (long long)s->max_lag, (long long)s->sync_interval);
        if (s->kind == RUN_STAGE_RL && s->groups_per_step * s->group_size > MSG_MEMBERS)
            return error_set(err, STATUS_UNSUPPORTED, "stage %s: a step has more than %d members", s->name,
                             MSG_MEMBERS);
    }
    return STATUS_OK;
}

static enum status restore(struct orch *o, struct error *err)
{
    struct ledger_state s;
    char *known = NULL;
    struct error none;
    enum status rc;
    if (ledger_meta_get(o->ledger, "run_id", &known, &none) == STATUS_OK) {
        bool same = strcmp(known, o->run_id) == 0;
        free(known);
        if (!same)
            return error_set(err, STATUS_CORRUPT, "%s/ledger.sqlite belongs to another run than %s/id",
                             o->run_dir, o->run_dir);
    }
    if ((rc = ledger_state_read(o->ledger, &s, err)))
        return rc;
    o->next_group = s.next_group;
    o->next_trajectory = s.next_trajectory;
    o->committed_steps = s.committed_steps;
    o->step.prepared = s.has_prepared;
    o->weights.version = -1;
    if ((rc = journal_begin(o, err)) || (rc = ledger_meta_set(o->ledger, "run_id", o->run_id, err)) ||
        (rc = ledger_meta_set(o->ledger, "state", "running", err)) ||
        (rc = ledger_next_epoch(o->ledger, "orchestrator", &o->epoch, err)) || (rc = tasks_open(o, err)) ||
        (rc = trainer_open(o, err)))
        return rc;
    if (!journal_flush(o, true))
        return error_set(err, STATUS_IO, "%s", o->last_error);
    int current = stage_of_committed(o);
    // What a crash left of a stage whose last step is committed.
    if (current > 0 && o->cfg->stages[current - 1].kind == RUN_STAGE_RL &&
        o->committed_steps == stage_first_step(o, current)) {
        o->stage.index = current - 1;
        if ((rc = groups_restore(o, err)))
            return rc;
        groups_drop_all(o, DROP_SURPLUS, "the stage is over");
    }
    o->stage.index = current;
    if (o->stage.index < o->cfg->n_stages && orch_stage(o)->kind == RUN_STAGE_RL)
        rc = groups_restore(o, err);
    log_event(LOG_INFO, "restored", "epoch=%lld steps=%lld prepared=%d checkpoint=%lld weights=%lld",
              (long long)o->epoch, (long long)o->committed_steps, o->step.prepared,
              (long long)o->checkpoint.step, (long long)o->weights.version);
    return rc;
}

// The socket for other hosts. An address with port * keeps its port over restarts of this process as long as it is free: engines
// go on trying the one they were given.
static enum status listen_further(struct orch *o, struct error *err)
{
    const char *listen = o->cfg->orchestrator.listen;
    char path[RUNCONFIG_PATH + 32], known[RUNCONFIG_NAME + 32], line[RUNCONFIG_NAME + 33];
    struct error none;
    size_t n = strlen(listen);
    enum status rc = file_join(path, sizeof path, o->run_dir, "orchestrator.listen", err);
    if (rc)
        return rc;
    bool same = n > 1 && listen[n - 1] == '*' && file_exists(path) &&
                read_word(o->run_dir, "orchestrator.listen", known, sizeof known, &none) == STATUS_OK &&
                strncmp(known, listen, n - 1) == 0 && wire_bind_more(o->wire, known, &none) == STATUS_OK;
    if (!same && (rc = wire_bind_more(o->wire, listen, err)))
        return error_prefix(err, "orchestrator.listen");
    log_event(LOG_INFO, "listening", "engines=%s", wire_address(o->wire));
    int len = snprintf(line, sizeof line, "%s\n", wire_address(o->wire));
    return len >= (int)sizeof line ? error_set(err, STATUS_LIMIT, "orchestrator.listen: address too long")
                                   : file_write_atomic(path, line, (size_t)len, 0600, err);
}

static enum status open_wire(struct orch *o, const char *endpoint, struct error *err)
{
    char server[RUNCONFIG_PATH + 32], allowed[RUNCONFIG_PATH + 32];
    struct keys k;
    if (!o->cfg->orchestrator.listen[0])
        return wire_bind(endpoint, NULL, &o->wire, err);
    enum status rc = file_join(server, sizeof server, o->run_dir, "keys/server.key", err);
    if (rc || (rc = file_join(allowed, sizeof allowed, o->run_dir, "keys/allowed", err)) ||
        (rc = keys_read(server, false, &k, err)))
        return rc;
    const struct wire_curve curve = {.secret_key = k.secret, .public_key = k.public, .allow_file = allowed};
    rc = wire_bind(endpoint, &curve, &o->wire, err);
    keys_wipe(&k);
    return rc ? rc : listen_further(o, err);
}

static enum status open_sockets(struct orch *o, struct error *err)
{
    char address[RUNCONFIG_PATH], endpoint[RUNCONFIG_PATH + 8];
    enum status rc = run_socket(o->run_dir, "orch", address, sizeof address, err);
    if (rc)
        return rc;
    snprintf(endpoint, sizeof endpoint, "%s%s", strncmp(address, "ipc://", 6) == 0 ? "" : "ipc://", address);
    if ((rc = open_wire(o, endpoint, err)))
        return rc;
    if ((rc = loop_pump_open(o->loop, wire_fd(o->wire), wire_has_input, on_wire, o, &o->wire_pump, err)))
        return rc;
    return api_open(o, err);
}

enum status orch_open(const struct orch_options *opt, struct orch **ret, struct error *err)
{
    struct orch *o = mem_must(1, sizeof *o);
    enum status rc;
    o->cfg = mem_must(1, sizeof *o->cfg);
    o->clock = opt->clock ? opt->clock : clock_system();
    o->restarts = opt->restarts;
    o->weights.version = -1;
    o->eval.last_version = -1;
    o->step.loaded = -1;
    arena_init(&o->step.arena, 0);
    o->started_ms = orch_now(o);
    o->started_wall_ms = clock_wall_ms(o->clock);
    if (strlen(opt->run_dir) >= sizeof o->run_dir) {
        rc = error_set(err, STATUS_LIMIT, "run directory: path longer than %d", RUNCONFIG_PATH - 1);
        goto out;
    }
    snprintf(o->run_dir, sizeof o->run_dir, "%s", opt->run_dir);
    struct http_client_config http = {0};
    if ((rc = runconfig_load_run(o->run_dir, o->cfg, err)) || (rc = check_config(o, err)) ||
        (rc = read_word(o->run_dir, "id", o->run_id, sizeof o->run_id, err)) ||
        (rc = read_word(o->run_dir, "token", o->token, sizeof o->token, err)) || (rc = open_text(o, err)) ||
        (rc = ledger_open(o->run_dir, o->clock, &o->ledger, err)) || (rc = loop_open(&o->loop, err)))
        goto out;
    http.max_in_flight = (int)o->cfg->orchestrator.max_inflight_http;
    o->tick_timer = loop_timer_open(o->loop, on_tick, o);
    o->kick_timer = loop_timer_open(o->loop, on_kick, o);
    journal_open(o);
    if (loop_need_fds(FILES, err))
        log_event(LOG_WARN, "few_files", "cause=\"%s\"", err->text);
    else
        o->files_counted = true;
    if ((rc = metrics_open(o, err)) || (rc = http_client_open(o->loop, &http, &o->http, err)) ||
        (rc = restore(o, err)) || (rc = metrics_catch_up(o, err)) || (rc = check_open(o, err)))
        goto out;
    if (o->committed_steps == 0 && !o->cfg->eval.only && (rc = sft_check(o, err)))
        goto out;
    if ((rc = open_sockets(o, err)))
        goto out;
    if (opt->signals && ((rc = loop_signal_open(o->loop, SIGTERM, on_signal, o, &o->on_term, err)) ||
                         (rc = loop_signal_open(o->loop, SIGINT, on_signal, o, &o->on_int, err))))
        goto out;
    *ret = o;
    return STATUS_OK;
out:
    orch_close(o);
    return rc;
}

int orch_run(struct orch *o)
{
    loop_timer_set(o->tick_timer, 0, TICK_MS);
    if (!o->failed)
        loop_run(o->loop);
    return o->exit_code;
}

void orch_close(struct orch *o)
{
    if (!o)
        return;
    if (o->files_counted)
        loop_release_fds(FILES);
    if (o->loop) {
        loop_signal_close(o->on_term);
        loop_signal_close(o->on_int);
        loop_pump_close(o->wire_pump);
        api_close(o);
        router_close(o);
        episodes_close(o);
        groups_close(o);
        eval_close(o);
        tasks_close(o);
        if (o->http)
            http_client_close(o->http);
        journal_close(o);
        loop_timer_close(o->tick_timer);
        loop_timer_close(o->kick_timer);
    }
    wire_close(o->wire);
    chunks_close(&o->chunks);
    metrics_close(o);
    step_close(o);
    check_close(o);
    sft_close(o);
    ledger_close(o->ledger);
    chat_close(o->chat);
    tokenizer_close(o->tokenizer);
    if (o->loop)
        loop_close(o->loop);
    free(o->cfg);
    free(o);
}
