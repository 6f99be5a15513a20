// The life of jobs: see engine.h and the diagram in sequence.h. Runs on the compute thread.
#include "rollout/engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "rollout/sequence.h"

#define SESSIONS_MAX 8192
#define LOGITS_MAX   ((int64_t)4 << 20) // logits computed together, in floats

static int32_t or_default(int32_t v, int32_t def)
{
    return v > 0 ? v : def;
}

static enum status check_config(struct engine_config *c, struct error *err)
{
    c->kv_tokens = or_default(c->kv_tokens, 65536);
    c->page_tokens = or_default(c->page_tokens, 32);
    c->max_batch_tokens = or_default(c->max_batch_tokens, 2048);
    c->max_running = or_default(c->max_running, 256);
    c->prefill_chunk = or_default(c->prefill_chunk, 512);
    c->max_waiting = or_default(c->max_waiting, 65536);
    c->flush_tokens = or_default(c->flush_tokens, 1);
    if (!c->clock)
        c->clock = clock_system();
    if (c->page_tokens % ATTN_BLOCK)
        return error_set(err, STATUS_INVALID, "rollout.page_tokens %d: give a multiple of %d", c->page_tokens,
                         ATTN_BLOCK);
    if (c->kv_tokens < c->page_tokens)
        return error_set(err, STATUS_INVALID, "rollout.kv_tokens %d: give at least one page of %d",
                         c->kv_tokens, c->page_tokens);
    if (c->max_running > c->max_batch_tokens)
        c->max_running = c->max_batch_tokens; // each running sequence needs a row of every step
    if (c->prefill_chunk > c->max_batch_tokens)
        c->prefill_chunk = c->max_batch_tokens;
    return STATUS_OK;
}

static enum status open_buffers(struct engine *e, struct error *err)
{
    const struct engine_config *c = &e->config;
    size_t rows = (size_t)c->max_batch_tokens, seqs = (size_t)c->max_running;
    size_t hidden = (size_t)e->model.hidden, vocab = (size_t)e->model.vocab;
    int64_t fit = LOGITS_MAX / e->model.vocab;
    e->logit_rows = (int32_t)(fit < 16 ? 16 : fit > c->max_batch_tokens ? c->max_batch_tokens : fit);
    size_t n = (size_t)e->logit_rows;
    e->running = mem_must(seqs, sizeof *e->running);
    e->members = mem_must(seqs, sizeof *e->members);
    e->attn = mem_must(seqs, sizeof *e->attn);
    e->ids = mem_must(rows, sizeof *e->ids);
    e->pos = mem_must(rows, sizeof *e->pos);
    e->to_sample = mem_must(seqs, sizeof *e->to_sample);
    e->to_score = mem_must(rows, sizeof *e->to_score);
    e->sampled = mem_must(n, sizeof *e->sampled);
    e->score_inv_temp = mem_must(n, sizeof *e->score_inv_temp);
    e->score_logprob = mem_must(n, sizeof *e->score_logprob);
    e->score_lse = mem_must(n, sizeof *e->score_lse);
    e->score_target = mem_must(n, sizeof *e->score_target);
    size_t chain = (size_t)(e->max_tokens / c->page_tokens + 1);
    e->matched = mem_must(chain, sizeof *e->matched);
    e->matched2 = mem_must(chain, sizeof *e->matched2);
    e->page_versions = mem_must((size_t)c->page_tokens, sizeof *e->page_versions);
    e->hidden = device_alloc(e->d, rows * hidden * sizeof(float));
    e->gathered = device_alloc(e->d, n * hidden * sizeof(float));
    e->logits = device_alloc(e->d, n * vocab * sizeof(float));
    if (!e->hidden || !e->gathered || !e->logits)
        return error_set(err, STATUS_NOMEM, "no memory for the activations of %d rows", c->max_batch_tokens);
    return sampler_open(e->d, e->logit_rows, e->model.vocab, &e->sampler, err);
}

enum status engine_open(struct device *d, const struct model_config *model, enum dtype weights_dtype,
                        const struct engine_config *config, struct engine **ret, struct error *err)
{
    struct engine_config c = *config;
    enum status st = check_config(&c, err);
    if (st != STATUS_OK)
        return st;
    struct engine *e = mem_must(1, sizeof *e);
    e->d = d;
    e->model = *model;
    e->config = c;
    e->version = -1;
    arena_init(&e->step, 0);
    int32_t n_pages = c.kv_tokens / c.page_tokens;
    int64_t capacity = (int64_t)n_pages * c.page_tokens;
    e->max_tokens = (int32_t)(capacity < model->max_position ? capacity : model->max_position);
    enum dtype kv_dtype = kv_dtype_choose(c.kv_dtype, weights_dtype);
    st = kv_open(d, model, kv_dtype, n_pages, c.page_tokens, &e->kv, err);
    if (st != STATUS_OK) {
        error_prefix(err, "rollout.kv_tokens %d", c.kv_tokens);
        goto fail;
    }
    st = pages_open(n_pages, c.page_tokens, &e->pages, err);
    if (st != STATUS_OK)
        goto fail;
    e->sessions = sessions_open(n_pages < SESSIONS_MAX ? n_pages : SESSIONS_MAX);
    st = open_buffers(e, err);
    if (st != STATUS_OK)
        goto fail;
    *ret = e;
    return STATUS_OK;
fail:
    engine_close(e);
    return st;
}

static void sequence_free(struct sequence *s)
{
    free(s->ids);
    free(s->logprobs);
    free(s->top_ids);
    free(s->top_logprobs);
    free(s->prompt_logprobs);
    free(s->spans);
    free(s->kv);
    free(s->pages);
    free(s->runs);
    free(s);
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    for (int32_t b = 0; b < JOB_BUCKETS; b++)
        for (struct sequence *s = e->buckets[b], *next; s; s = next) {
            next = s->chain;
            sequence_free(s);
        }
    sampler_close(e->sampler);
    sessions_close(e->sessions);
    pages_close(e->pages);
    kv_close(e->kv);
    device_free(e->d, e->hidden);
    device_free(e->d, e->gathered);
    device_free(e->d, e->logits);
    free(e->running);
    free(e->members);
    free(e->attn);
    free(e->ids);
    free(e->pos);
    free(e->to_sample);
    free(e->to_score);
    free(e->sampled);
    free(e->score_inv_temp);
    free(e->score_logprob);
    free(e->score_lse);
    free(e->score_target);
    free(e->matched);
    free(e->matched2);
    free(e->page_versions);
    free(e->finished);
    arena_done(&e->step);
    free(e);
}

// ---- job table and waiting queue ------------------------------------------------------------------------------------

static struct sequence **find(struct engine *e, uint64_t job)
{
    uint64_t mixed = job * 0x9E3779B97F4A7C15u;
    struct sequence **at = &e->buckets[mixed >> 52]; // the top 12 bits: JOB_BUCKETS
    while (*at && (*at)->job != job)
        at = &(*at)->chain;
    return at;
}

static void queue_back(struct engine *e, struct sequence *s)
{
    s->older = e->last;
    s->newer = NULL;
    *(e->last ? &e->last->newer : &e->first) = s;
    e->last = s;
    e->n_waiting++;
}

static void queue_front(struct engine *e, struct sequence *s)
{
    s->newer = e->first;
    s->older = NULL;
    *(e->first ? &e->first->older : &e->last) = s;
    e->first = s;
    e->n_waiting++;
}

void sequence_unqueue(struct engine *e, struct sequence *s)
{
    *(s->older ? &s->older->newer : &e->first) = s->newer;
    *(s->newer ? &s->newer->older : &e->last) = s->older;
    s->older = s->newer = NULL;
    e->n_waiting--;
}

// ---- submit and cancel ----------------------------------------------------------------------------------------------

static enum status check_job(struct engine *e, const struct engine_job *j, struct error *err)
{
    const struct msg_job *m = &j->msg;
    enum status st = sampler_check(&m->sampling, e->model.vocab, err);
    if (st != STATUS_OK)
        return st;
    if (m->n_ids < 1)
        return error_set(err, STATUS_INVALID,
                         "the prefix is empty: give at least one token (a model's start token)");
    for (int32_t i = 0; i < m->n_ids; i++)
        if (m->ids[i] < 0 || m->ids[i] >= e->model.vocab)
            return error_set(err, STATUS_INVALID, "token %d at position %d is not in the vocabulary of %lld",
                             m->ids[i], i, (long long)e->model.vocab);
    int32_t room = e->max_tokens - m->n_ids;
    if (room < (m->sampling.max_new > 0 ? 1 : 0))
        return error_set(err, STATUS_INVALID,
                         "a prefix of %d tokens leaves no room: at most %d tokens a sequence (max_position "
                         "%lld, kv_tokens %d)",
                         m->n_ids, e->max_tokens, (long long)e->model.max_position, e->config.kv_tokens);
    if (m->sampling.max_new == 0 && !m->prompt_logprobs)
        return error_set(err, STATUS_INVALID, "max_new 0 without prompt_logprobs: nothing to do");
    if (j->top_logprobs < 0 || j->top_logprobs > SAMPLER_TOP_MAX)
        return error_set(err, STATUS_INVALID, "%d top logprobs: give 0 to %d", j->top_logprobs,
                         SAMPLER_TOP_MAX);
    return STATUS_OK;
}

static void add_stop(struct sequence *s, int32_t id)
{
    for (int32_t i = 0; i < s->n_stop; i++)
        if (s->stop[i] == id)
            return;
    s->stop[s->n_stop++] = id;
}

static struct sequence *sequence_new(struct engine *e, const struct engine_job *j)
{
    const struct msg_job *m = &j->msg;
    struct sequence *s = mem_must(1, sizeof *s);
    s->job = m->job;
    s->sampling = m->sampling;
    int32_t room = e->max_tokens - m->n_ids;
    if (s->sampling.max_new > room)
        s->sampling.max_new = room;
    s->inv_temp = sampler_inv_temp(m->sampling.temperature);
    s->key = (struct rng_token_key){m->run_seed, m->trajectory, m->attempt, m->segment};
    s->session = m->session;
    s->min_version = m->min_version;
    s->deadline_ms = m->deadline_ms > 0 ? clock_mono_ms(e->config.clock) + m->deadline_ms : INT64_MAX;
    s->n_top = j->top_logprobs;
    s->flush_tokens = or_default(j->flush_tokens, e->config.flush_tokens);
    for (int32_t i = 0; i < m->sampling.n_stop; i++)
        add_stop(s, m->sampling.stop[i]);
    for (int64_t i = 0; i < e->model.n_eos && !m->sampling.ignore_eos; i++)
        add_stop(s, (int32_t)e->model.eos_ids[i]);
    s->n_prompt = s->n_ids = m->n_ids;
    s->cap_ids = m->n_ids + s->sampling.max_new;
    size_t n_new = (size_t)s->sampling.max_new;
    s->ids = mem_must((size_t)s->cap_ids, sizeof *s->ids);
    memcpy(s->ids, m->ids, (size_t)m->n_ids * sizeof *s->ids);
    s->logprobs = mem_must(n_new, sizeof *s->logprobs);
    if (s->n_top > 0) {
        s->top_ids = mem_must(n_new * (size_t)s->n_top, sizeof *s->top_ids);
        s->top_logprobs = mem_must(n_new * (size_t)s->n_top, sizeof *s->top_logprobs);
    }
    if (m->prompt_logprobs) {
        s->prompt_logprobs = mem_must((size_t)m->n_ids, sizeof *s->prompt_logprobs);
        s->n_prompt_scored = 1; // nothing comes before the first token
    }
    return s;
}

enum status engine_submit(struct engine *e, const struct engine_job *job, struct error *err)
{
    enum status st = check_job(e, job, err);
    if (st != STATUS_OK)
        return st;
    struct sequence **at = find(e, job->msg.job);
    if (*at)
        return error_set(err, STATUS_EXISTS, "job %llu is here already", (unsigned long long)job->msg.job);
    if (e->n_waiting >= e->config.max_waiting)
        return error_set(err, STATUS_AGAIN, "%d jobs wait already", e->n_waiting);
    struct sequence *s = sequence_new(e, job);
    *at = s;
    queue_back(e, s);
    if (s->deadline_ms != INT64_MAX)
        e->n_deadlines++;
    return STATUS_OK;
}

// Takes the sequence out of `running` (it keeps its pages).
static void leave_running(struct engine *e, struct sequence *s)
{
    int32_t i = 0;
    while (e->running[i] != s)
        i++;
    memmove(&e->running[i], &e->running[i + 1], (size_t)(e->n_running - i - 1) * sizeof(struct sequence *));
    e->n_running--;
}

void sequence_end(struct engine *e, struct sequence *s, enum msg_finish finish, const char *error)
{
    if (s->state == SEQ_WAITING) {
        sequence_unqueue(e, s);
    } else {
        leave_running(e, s);
        sequence_release_pages(e, s);
    }
    s->state = SEQ_FINISHED;
    s->finish = finish;
    s->error = error;
    if (s->deadline_ms != INT64_MAX)
        e->n_deadlines--;
    if (e->n_finished == e->cap_finished) {
        e->cap_finished = e->cap_finished ? 2 * e->cap_finished : 64;
        e->finished = mem_grow(e->finished, (size_t)e->cap_finished, sizeof(struct sequence *));
    }
    e->finished[e->n_finished++] = s;
    e->stats.finished++;
}

bool engine_cancel(struct engine *e, uint64_t job)
{
    struct sequence *s = *find(e, job);
    if (!s)
        return false;
    if (s->state != SEQ_FINISHED)
        sequence_end(e, s, FINISH_ABORT, NULL);
    return true;
}

void engine_cancel_all(struct engine *e)
{
    while (e->n_running > 0)
        sequence_end(e, e->running[e->n_running - 1], FINISH_ABORT, NULL);
    while (e->first)
        sequence_end(e, e->first, FINISH_ABORT, NULL);
}

static void expire(struct engine *e)
{
    if (e->n_deadlines == 0)
        return;
    int64_t now = clock_mono_ms(e->config.clock);
    for (int32_t i = e->n_running - 1; i >= 0; i--)
        if (e->running[i]->deadline_ms <= now)
            sequence_end(e, e->running[i], FINISH_ERROR, "the job's deadline passed");
    for (struct sequence *s = e->first, *next; s; s = next) {
        next = s->newer;
        if (s->deadline_ms <= now)
            sequence_end(e, s, FINISH_ERROR, "the job's deadline passed before it could run");
    }
}

// ---- rows and pages ---------------------------------------------------------------------------------------------------

void sequence_add_kv(struct sequence *s, enum msg_kv_event kind, int32_t from, int32_t to, int64_t version)
{
    if (s->n_kv == s->cap_kv) {
        s->cap_kv = s->cap_kv ? 2 * s->cap_kv : 4;
        s->kv = mem_grow(s->kv, (size_t)s->cap_kv, sizeof *s->kv);
    }
    s->kv[s->n_kv++] = (struct msg_kv){
        .kind = (int32_t)kind, .at_token = s->n_ids, .from = from, .to = to, .version = version};
}

void sequence_release_pages(struct engine *e, struct sequence *s)
{
    if (s->session && s->n_registered > 0)
        sessions_put(e->sessions, s->session, e->pages, s->pages, s->n_registered);
    for (int32_t i = s->n_pages - 1; i >= 0; i--) // the last first: pages.h, invariant 2
        pages_release(e->pages, s->pages[i]);
    s->n_pages = s->n_registered = s->n_computed = s->n_runs = 0;
    s->next_page_key = 0;
}

void sequence_retract(struct engine *e, int32_t index, enum msg_kv_event why)
{
    struct sequence *s = e->running[index];
    leave_running(e, s);
    if (s->n_computed > 0 || s->n_ids > s->n_prompt)
        s->restarted = (int32_t)why;
    sequence_release_pages(e, s);
    s->state = SEQ_WAITING;
    queue_front(e, s);
}

static void note_run(struct sequence *s, int32_t end, int64_t version)
{
    if (s->n_runs > 0 && s->runs[s->n_runs - 1].version == version) {
        s->runs[s->n_runs - 1].end = end;
        return;
    }
    if (s->n_runs == s->cap_runs) {
        s->cap_runs = s->cap_runs ? 2 * s->cap_runs : 2;
        s->runs = mem_grow(s->runs, (size_t)s->cap_runs, sizeof *s->runs);
    }
    s->runs[s->n_runs++] = (struct row_run){end, version};
}

static void fill_versions(const struct engine *e, const struct sequence *s, int32_t from)
{
    int32_t r = 0;
    for (int32_t i = 0; i < e->config.page_tokens; i++) {
        while (s->runs[r].end <= from + i)
            r++;
        e->page_versions[i] = (int32_t)s->runs[r].version;
    }
}

void sequence_advance(struct engine *e, struct sequence *s, int32_t rows)
{
    s->n_computed += rows;
    note_run(s, s->n_computed, e->version);
    int32_t pt = e->config.page_tokens;
    if (e->config.no_prefix_cache)
        return;
    while ((s->n_registered + 1) * pt <= s->n_computed) {
        int32_t i = s->n_registered;
        fill_versions(e, s, i * pt);
        s->pages[i] = pages_register(e->pages, s->pages[i], i > 0 ? s->pages[i - 1] : -1, s->ids + i * pt,
                                     e->page_versions, s->session != 0);
        s->n_registered++;
    }
}

// ---- step -------------------------------------------------------------------------------------------------------------

static void forget_finished(struct engine *e)
{
    for (int32_t i = 0; i < e->n_finished; i++) {
        struct sequence *s = e->finished[i];
        *find(e, s->job) = s->chain;
        sequence_free(s);
    }
    e->n_finished = 0;
}

enum status engine_step(struct engine *e, struct outputs *out, struct error *err)
{
    expire(e);
    e->n_rows = e->n_seqs = e->n_to_sample = e->n_to_score = 0;
    if (e->weights && !e->paused) {
        schedule_step(e);
        if (e->n_rows > 0) {
            arena_reset(&e->step);
            enum status st = decode_step(e, err);
            if (st != STATUS_OK)
                return st;
            e->stats.steps++;
        }
    }
    decode_flush(e, out);
    forget_finished(e);
    return STATUS_OK;
}

bool engine_ready(const struct engine *e)
{
    return e->n_finished > 0 || (e->weights && !e->paused && schedule_ready(e));
}

int64_t engine_wake_ms(const struct engine *e)
{
    int64_t wake = INT64_MAX;
    if (e->n_deadlines == 0)
        return wake;
    for (int32_t i = 0; i < e->n_running; i++)
        wake = e->running[i]->deadline_ms < wake ? e->running[i]->deadline_ms : wake;
    for (const struct sequence *s = e->first; s; s = s->newer)
        wake = s->deadline_ms < wake ? s->deadline_ms : wake;
    return wake;
}

// ---- weights, pauses, statistics ----------------------------------------------------------------------------------------

const struct weights *engine_set_weights(struct engine *e, const struct weights *w, int64_t version)
{
    const struct weights *old = e->weights;
    bool recompute = old && e->config.recompute_on_refit;
    if (recompute) {
        // From the last to the first, each to the front of the queue: they come back in the same order.
        for (int32_t i = e->n_running - 1; i >= 0; i--)
            sequence_retract(e, i, KV_REFIT);
    } else if (old) {
        for (int32_t i = 0; i < e->n_running; i++) {
            struct sequence *s = e->running[i];
            sequence_add_kv(s, KV_REFIT, s->n_computed, s->n_ids, version);
        }
    }
    if (recompute || version <= e->version) {
        pages_forget(e->pages);
        sessions_forget(e->sessions);
    }
    e->stats.refits += old != NULL;
    e->weights = w;
    e->version = version;
    return old;
}

int64_t engine_version(const struct engine *e)
{
    return e->version;
}

enum status engine_trace(struct engine *e, int64_t version, int32_t n, const int32_t *ids, struct trace *ret,
                         struct error *err)
{
    if (!e->weights || version != e->version)
        return error_set(err, STATUS_REFUSED, "weights %lld are in use, not %lld", (long long)e->version,
                         (long long)version);
    if (n < 2 || n - 1 > e->model.max_position)
        return error_set(err, STATUS_INVALID, "a trace of %d tokens: give 2 to %lld", n,
                         (long long)e->model.max_position + 1);
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= e->model.vocab)
            return error_set(err, STATUS_INVALID, "token %d at position %d is not in the vocabulary of %lld",
                             ids[i], i, (long long)e->model.vocab);
    return trace_engine(e->weights, kv_dtype_choose(e->config.kv_dtype, weights_dtype(e->weights)), n, ids,
                        ret, err);
}

void engine_pause(struct engine *e, enum engine_pause how)
{
    if (how == ENGINE_PAUSE_ABORT)
        engine_cancel_all(e);
    if (how == ENGINE_PAUSE_RETRACT)
        for (int32_t i = e->n_running - 1; i >= 0; i--)
            sequence_retract(e, i, KV_PREEMPTION);
    e->paused = true;
}

void engine_continue(struct engine *e)
{
    e->paused = false;
}

void engine_flush_cache(struct engine *e)
{
    pages_forget(e->pages);
    sessions_forget(e->sessions);
}

void engine_stats(const struct engine *e, struct engine_stats *ret)
{
    *ret = e->stats;
    ret->version = e->version;
    ret->running = e->n_running;
    ret->waiting = e->n_waiting;
    ret->max_running = e->config.max_running;
    ret->kv_capacity = (int64_t)pages_total(e->pages) * e->config.page_tokens;
    ret->kv_used = ret->kv_capacity - (int64_t)pages_available(e->pages) * e->config.page_tokens;
    ret->paused = e->paused;
}
