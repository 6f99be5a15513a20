// The router; see router.h for the invariants. Runs on the loop's thread.
//
//   router_start ─► waiting ── job_send ─► at an engine ── router_on_tokens(finish) ─► episode_on_tokens ─► router_done (ACK)
//                      ▲                        │ ▲
//                      │                        │ └── job_send again: tokens missing, or none for silence_ms
//                      └── job_requeue ◄────────┘ engine lost, aborted, error, no progress (job_complete when nothing is left)
#include "orchestrator/router.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "orchestrator/orch.h"

static void list_add(struct job_list *l, struct job *j)
{
    j->prev = l->last;
    j->next = NULL;
    *(l->last ? &l->last->next : &l->first) = j;
    l->last = j;
    l->n++;
}

static void list_remove(struct job_list *l, struct job *j)
{
    *(j->prev ? &j->prev->next : &l->first) = j->next;
    *(j->next ? &j->next->prev : &l->last) = j->prev;
    j->prev = j->next = NULL;
    l->n--;
}

static struct job_list *job_home(struct orch *o, struct job *j)
{
    return j->engine ? &j->engine->jobs : &o->router.waiting;
}

static void job_new_id(struct orch *o, struct job *j)
{
    if (j->id)
        table_remove(&o->router.jobs, j->id);
    j->id = (uint64_t)o->epoch << 40 | ++o->router.next_job;
    table_set(&o->router.jobs, j->id, j);
}

static void job_free(struct orch *o, struct job *j)
{
    table_remove(&o->router.jobs, j->id);
    list_remove(job_home(o, j), j);
    free(j->ids);
    free(j->logprobs);
    free(j->spans);
    free(j->kv);
    free(j);
}

struct job *router_start(struct orch *o, const struct job *spec)
{
    struct job *j = mem_must(1, sizeof *j);
    *j = *spec;
    j->id = 0;
    j->engine = NULL;
    job_new_id(o, j);
    list_add(&o->router.waiting, j);
    orch_kick(o);
    return j;
}

static void send_cancel(struct orch *o, struct peer *p, uint64_t id)
{
    struct msg m = {.type = MSG_CANCEL, .cancel = {.job = id}};
    peers_send(o, p, &m); // lost: the engine's next word on the job is answered the same way
}

void router_cancel(struct orch *o, struct job *j)
{
    if (!j)
        return;
    if (j->engine)
        send_cancel(o, j->engine, j->id);
    job_free(o, j);
    orch_kick(o);
}

static void ack_note(struct orch *o, uint64_t job, uint64_t peer_and_n)
{
    struct peer *p = peers_by_serial(o, (uint32_t)(peer_and_n >> 32));
    struct msg m = {.type = MSG_ACK, .ack = {.job = job, .durable_to = (int32_t)(peer_and_n & 0x7fffffff)}};
    if (p)
        peers_send(o, p, &m);
}

void router_done(struct orch *o, struct job *j, bool durable_later)
{
    if (j->engine) {
        uint64_t b = (uint64_t)j->engine->serial << 32 | (uint32_t)(j->n - j->base);
        if (durable_later)
            journal_after(o, ack_note, j->id, b);
        else
            ack_note(o, j->id, b);
    }
    job_free(o, j);
    orch_kick(o);
}

static bool job_is_stop(const struct job *j, int32_t id)
{
    for (int i = 0; i < j->sampling.n_stop; i++)
        if (j->sampling.stop[i] == id)
            return !j->sampling.ignore_eos;
    return false;
}

// True when the streamed tokens are the whole turn already and only the word "finished" was lost.
static bool job_complete(struct job *j)
{
    if (j->n && job_is_stop(j, j->ids[j->n - 1]))
        j->finish = FINISH_STOP;
    else if (j->n >= j->sampling.max_new)
        j->finish = FINISH_LENGTH;
    return j->finish == FINISH_STOP || j->finish == FINISH_LENGTH;
}

static void job_on_complete(struct orch *o, uint64_t id, uint64_t unused)
{
    (void)unused;
    struct job *j = table_get(&o->router.jobs, id);
    if (j)
        episode_on_tokens(o, j->ep, j);
}

static void job_on_given_up(struct orch *o, uint64_t id, uint64_t unused)
{
    (void)unused;
    struct job *j = table_get(&o->router.jobs, id);
    if (j)
        episode_on_engine_failure(o, j->ep, j);
}

// Back to the waiting list as a new job for what is left.
static void job_requeue(struct orch *o, struct job *j)
{
    list_remove(job_home(o, j), j);
    j->engine = NULL;
    j->base = j->n;
    j->gaps = 0;
    j->finish = FINISH_NONE;
    if (j->n && j->spans[j->n_spans - 1].version > j->min_version)
        j->min_version = j->spans[j->n_spans - 1].version;
    job_new_id(o, j);
    list_add(&o->router.waiting, j);
    if (job_complete(j))
        journal_after(o, job_on_complete, j->id, 0);
    else if (j->issues >= ROUTER_ISSUES_MAX)
        journal_after(o, job_on_given_up, j->id, 0);
    orch_kick(o);
}

void router_engine_lost(struct orch *o, struct peer *p)
{
    int n = p->jobs.n;
    while (p->jobs.first)
        job_requeue(o, p->jobs.first);
    if (n)
        log_event(LOG_WARN, "jobs_moved", "engine=%s jobs=%d", p->name, n);
}

static bool job_send(struct orch *o, struct job *j, struct peer *p)
{
    int32_t n = j->n_prefix + j->base;
    int32_t *ids = NULL;
    struct msg m = {.type = MSG_JOB};
    m.job = (struct msg_job){
        .job = j->id,
        .orchestrator_epoch = o->epoch,
        .run_seed = o->cfg->seed,
        .trajectory = j->trajectory,
        .attempt = j->attempt,
        .segment = j->segment,
        .min_version = j->min_version,
        .session = j->session,
        .sampling = j->sampling,
        .n_ids = n,
        .ids = j->prefix,
    };
    if (j->base) {
        ids = mem_must((size_t)n, sizeof *ids);
        memcpy(ids, j->prefix, (size_t)j->n_prefix * sizeof *ids);
        memcpy(ids + j->n_prefix, j->ids, (size_t)j->base * sizeof *ids);
        m.job.ids = ids;
        m.job.sampling.max_new -= j->base;
        m.job.sampling.min_new = j->sampling.min_new > j->base ? j->sampling.min_new - j->base : 0;
    }
    bool sent = peers_send(o, p, &m);
    if (sent)
        j->said_ms = orch_now(o);
    free(ids);
    return sent;
}

void router_engine_resend(struct orch *o, struct peer *p)
{
    for (struct job *j = p->jobs.first; j; j = j->next)
        if (!job_send(o, j, p))
            return; // jobs_check says it
}

int router_choose(uint64_t session, const uint64_t *names, const int *load, const int *room, int n)
{
    int total = 0, open = 0, best = -1;
    for (int i = 0; i < n; i++) {
        total += load[i];
        open += load[i] < room[i];
    }
    if (!open)
        return -1;
    int64_t cap = ((int64_t)(total + 1) * 5 + 4 * n - 1) / (4 * n); // ceil(5/4 * mean)
    uint64_t best_score = 0;
    for (int pass = 0; pass < 2 && best < 0; pass++)
        for (int i = 0; i < n; i++) {
            if (load[i] >= room[i] || (pass == 0 && load[i] >= cap))
                continue;
            uint64_t score = hash64_seed(&session, sizeof session, names[i]);
            if (best < 0 || score > best_score) {
                best = i;
                best_score = score;
            }
        }
    return best;
}

// The engines that are up, looked at once a pump.
struct choice {
    struct peer *engines[PEERS_MAX];
    int n;
    int64_t version_max;
};

static void choice_init(struct orch *o, struct choice *c)
{
    c->n = 0;
    c->version_max = -1;
    for (int i = 0; i < PEERS_MAX; i++) {
        struct peer *p = &o->peers.v[i];
        if (p->role != ROLE_ENGINE || !p->up || p->jobs.n >= 2 * p->max_running)
            continue;
        c->engines[c->n++] = p;
        if (p->version > c->version_max)
            c->version_max = p->version;
    }
}

static struct peer *engine_for(const struct choice *c, const struct job *j)
{
    uint64_t names[PEERS_MAX];
    int load[PEERS_MAX], room[PEERS_MAX], n = 0;
    struct peer *engines[PEERS_MAX];
    if (j->min_version > c->version_max)
        return NULL;
    for (int i = 0; i < c->n; i++) {
        struct peer *p = c->engines[i];
        if (p->version < j->min_version)
            continue;
        names[n] = p->name_hash;
        load[n] = p->jobs.n;
        room[n] = (int)(2 * p->max_running);
        engines[n++] = p;
    }
    int k = n ? router_choose(j->session, names, load, room, n) : -1;
    return k < 0 ? NULL : engines[k];
}

// JOB may have been lost, or TOKENS, which looks just like waiting in the engine's queue: it is said again after silence_ms without
// progress, then after pauses that double. A job that does wait is known there, and nothing of it is there to be repeated.
static bool job_is_due(const struct orch *o, const struct job *j, int64_t now)
{
    int64_t pause = now - j->said_ms;
    return j->finish == FINISH_NONE && now - j->progress_ms > o->cfg->orchestrator.silence_ms &&
           pause > o->cfg->orchestrator.silence_ms && pause > j->said_ms - j->progress_ms;
}

static void jobs_check(struct orch *o, struct peer *p, int64_t now)
{
    int64_t lease_ms = o->cfg->orchestrator.lease_ms;
    for (struct job *j = p->jobs.first, *next; j; j = next) {
        next = j->next;
        // Waiting in the engine's own queue is no failure as long as the engine makes tokens.
        if (now - j->progress_ms > lease_ms && now - p->progress_ms > lease_ms) {
            log_event(LOG_WARN, "job_stuck", "engine=%s job=%llu tokens=%d", p->name,
                      (unsigned long long)j->id, j->n);
            send_cancel(o, p, j->id);
            job_requeue(o, j);
        } else if (job_is_due(o, j, now) && !job_send(o, j, p)) {
            return; // its queue is full: in a second
        }
    }
}

void router_pump(struct orch *o)
{
    int64_t now = orch_now(o);
    struct choice c;
    choice_init(o, &c);
    for (struct job *j = o->router.waiting.first, *next; j && c.n; j = next) {
        next = j->next;
        if (j->finish != FINISH_NONE || j->issues >= ROUTER_ISSUES_MAX)
            continue; // its note runs after the commit
        struct peer *p = engine_for(&c, j);
        if (!p)
            continue;
        if (!job_send(o, j, p))
            break;
        list_remove(&o->router.waiting, j);
        j->engine = p;
        j->issues++;
        j->progress_ms = now;
        list_add(&p->jobs, j);
        if (p->jobs.n >= 2 * p->max_running)
            choice_init(o, &c);
    }
    if (now < o->router_check_ms)
        return;
    o->router_check_ms = now + 1000;
    for (int i = 0; i < PEERS_MAX; i++)
        jobs_check(o, &o->peers.v[i], now);
}

static void job_add_tokens(struct job *j, const struct msg_tokens *t, int32_t skip)
{
    int32_t n = t->n - skip, shift = j->base;
    if (j->n + n > j->cap) {
        j->cap = (j->n + n) * 2;
        j->ids = mem_grow(j->ids, (size_t)j->cap, sizeof *j->ids);
        j->logprobs = mem_grow(j->logprobs, (size_t)j->cap, sizeof *j->logprobs);
    }
    memcpy(j->ids + j->n, t->ids + skip, (size_t)n * sizeof *j->ids);
    memcpy(j->logprobs + j->n, t->logprobs + skip, (size_t)n * sizeof *j->logprobs);
    for (int32_t i = 0; i < t->n_spans; i++) {
        struct msg_span s = {t->spans[i].version, t->spans[i].start + shift, t->spans[i].end + shift};
        if (s.start < j->n)
            s.start = j->n > s.end ? s.end : j->n;
        if (s.end <= s.start)
            continue;
        if (j->n_spans && j->spans[j->n_spans - 1].version == s.version &&
            j->spans[j->n_spans - 1].end == s.start) {
            j->spans[j->n_spans - 1].end = s.end;
            continue;
        }
        if (j->n_spans == j->cap_spans) {
            j->cap_spans = j->cap_spans ? j->cap_spans * 2 : 2;
            j->spans = mem_grow(j->spans, (size_t)j->cap_spans, sizeof *j->spans);
        }
        j->spans[j->n_spans++] = s;
    }
    for (int32_t i = 0; i < t->n_kv; i++) {
        if (t->kv[i].at_token < j->n_prefix + j->n)
            continue; // came with tokens that are said again
        if (j->n_kv == j->cap_kv) {
            j->cap_kv = j->cap_kv ? j->cap_kv * 2 : 4;
            j->kv = mem_grow(j->kv, (size_t)j->cap_kv, sizeof *j->kv);
        }
        j->kv[j->n_kv++] = t->kv[i];
    }
    j->n += n;
}

// The newest weights that tokens can be of. What the engines hold may have to be made again first, after a loss of the files: then it
// is the newest that were committed.
static int64_t newest_version(const struct orch *o)
{
    return o->weights.version >= 0 ? o->weights.version : o->committed_steps;
}

// What a TOKENS message that leaves no gap says against what is held: NULL when it fits, else what is wrong.
static const char *tokens_misfit(const struct orch *o, const struct job *j, const struct msg_tokens *t,
                                 int32_t *ret_skip)
{
    int32_t skip = j->n - j->base - t->offset;
    if (skip > t->n)
        skip = t->n;
    int32_t at = j->base + t->offset;
    if (skip && memcmp(j->ids + at, t->ids, (size_t)skip * sizeof *t->ids) != 0)
        return "repeated tokens differ from the first time";
    if (j->n + t->n - skip > j->sampling.max_new)
        return "more tokens than were asked for";
    if (t->n_spans && t->spans[t->n_spans - 1].version > newest_version(o))
        return "weights version that this run does not have";
    if (t->n > skip && j->n_spans && t->n_spans &&
        t->spans[t->n_spans - 1].version < j->spans[j->n_spans - 1].version)
        return "weights version goes back";
    *ret_skip = skip;
    return NULL;
}

// Tokens before these were lost, as can happen when a connection breaks and mends: the engine is told once, and again when nothing
// comes of it (jobs_check). False when it goes on so for too long.
static bool gap_mended(struct orch *o, struct job *j, const struct msg_tokens *t)
{
    if (++j->gaps > ROUTER_GAPS_MAX)
        return false;
    if (j->gaps == 1) {
        log_event(LOG_INFO, "tokens_missing", "engine=%s job=%llu have=%d offset=%d", j->engine->name,
                  (unsigned long long)j->id, j->n - j->base, t->offset);
        job_send(o, j, j->engine); // not sent: jobs_check
    }
    return true;
}

void router_on_tokens(struct orch *o, struct peer *p, const struct msg_tokens *t)
{
    struct job *j = table_get(&o->router.jobs, t->job);
    if (!j || j->engine != p) {
        send_cancel(o, p, t->job);
        return;
    }
    int32_t skip = 0;
    bool gap = t->offset > j->n - j->base;
    if (gap && gap_mended(o, j, t))
        return;
    const char *wrong = gap ? "tokens are missing before these" : tokens_misfit(o, j, t, &skip);
    if (wrong) {
        log_event(LOG_WARN, "tokens_refused", "engine=%s job=%llu offset=%d n=%d cause=\"%s\"", p->name,
                  (unsigned long long)t->job, t->offset, t->n, wrong);
        send_cancel(o, p, t->job);
        job_requeue(o, j);
        return;
    }
    j->gaps = 0;
    if (t->n > skip || t->finish != FINISH_NONE)
        j->progress_ms = p->progress_ms = orch_now(o);
    if (t->n > skip) {
        o->router.generated_tokens += t->n - skip;
        job_add_tokens(j, t, skip);
    }
    j->cached_tokens = t->cached_tokens;
    switch ((enum msg_finish)t->finish) {
    case FINISH_NONE:
        return;
    case FINISH_STOP:
    case FINISH_LENGTH:
        j->finish = (enum msg_finish)t->finish;
        episode_on_tokens(o, j->ep, j);
        return;
    case FINISH_ABORT:
    case FINISH_ERROR:
        if (t->finish == FINISH_ERROR) {
            char text[256];
            log_event(LOG_WARN, "job_failed", "engine=%s job=%llu cause=%s", p->name,
                      (unsigned long long)t->job, log_quote(t->error ? t->error : "", text, sizeof text));
        }
        send_cancel(o, p, t->job);
        job_requeue(o, j);
        return;
    }
}

void router_close(struct orch *o)
{
    for (size_t i = 0; i < o->router.jobs.cap; i++)
        if (o->router.jobs.slots[i].key) {
            struct job *j = o->router.jobs.slots[i].value;
            free(j->ids);
            free(j->logprobs);
            free(j->spans);
            free(j->kv);
            free(j);
        }
    table_done(&o->router.jobs);
    o->router = (struct router){0};
    for (int i = 0; i < PEERS_MAX; i++)
        o->peers.v[i].jobs = (struct job_list){0};
}
