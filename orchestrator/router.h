// Jobs to engines: which engine samples a turn, what happens when it is lost, when its tokens may be forgotten.
//
// Invariants
//   1. A job is sent only to an engine that is up and holds at least job.min_version (contract 2), and whose queue has room.
//   2. The engine of a session is its first choice by rendezvous hashing, so that later turns find their KV cache; an engine over
//      5/4 of the mean load is passed over (bounded load).
//   3. Streamed tokens are never sampled twice: after a loss the rest is issued as a new job whose prefix includes them, whose
//      min_version is that of the last of them, and whose Philox key is the same.
//   4. ACK follows the commit of the tokens (journal.h). A job the router does not know is cancelled at whoever speaks of it.
//   5. No job waits for a word that was lost. An engine that knows the job repeats at a JOB what is not acknowledged, and one that does
//      not begins it: so JOB is said again when tokens are missing, and after silence_ms and more without new ones. Only new tokens
//      and ends count as progress, since the thread that repeats old ones is not the one that makes them.
#ifndef ORCHESTRATOR_ROUTER_H
#define ORCHESTRATOR_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "orchestrator/table.h"
#include "proto/msg.h"

struct orch;
struct peer;
struct episode;

#define ROUTER_ISSUES_MAX 8 // times one turn is issued before its episode fails with reason engine
// TOKENS with others missing before them that are borne: those that were on their way when the engine was told, and a few losses.
#define ROUTER_GAPS_MAX 64

struct job {
    uint64_t id; // changes with every issue
    struct episode *ep;
    struct peer *engine;     // NULL = waits
    struct job *prev, *next; // in the list of waiting jobs, or of its engine's jobs
    uint64_t session;
    uint64_t trajectory;
    uint32_t attempt, segment;
    int64_t min_version;
    struct msg_sampling sampling; // of the whole turn
    const int32_t *prefix;        // [n_prefix] the episode's tokens; stable while the job lives
    int32_t n_prefix;
    int32_t base; // tokens sampled before the present issue
    int32_t n, cap;
    int32_t *ids;    // [n] of the turn so far
    float *logprobs; // [n]
    int32_t n_spans, cap_spans;
    struct msg_span *spans; // count from the turn's first token
    int32_t n_kv, cap_kv;
    struct msg_kv *kv;
    enum msg_finish finish;
    int issues;
    int gaps;            // TOKENS that did not continue ours, since the last that did
    int64_t said_ms;     // last JOB
    int64_t progress_ms; // last new tokens, or the issue
    int32_t cached_tokens;
};

struct job_list {
    struct job *first, *last;
    int n;
};

struct router {
    struct table jobs; // by id
    struct job_list waiting;
    uint64_t next_job;
    int64_t generated_tokens; // streamed since the start
};

// Takes over nothing but what job says; ep gets exactly one episode_on_tokens (finished) or episode_on_engine_failure, never from
// inside the call.
struct job *router_start(struct orch *o, const struct job *spec);
void router_cancel(struct orch *o, struct job *j); // frees; NULL is fine
// Tells the engine that the job's tokens are durable and forgets the job. After the episode has used its arrays.
void router_done(struct orch *o, struct job *j, bool durable_later);

void router_on_tokens(struct orch *o, struct peer *p, const struct msg_tokens *t);
void router_engine_lost(struct orch *o, struct peer *p);
void router_engine_resend(struct orch *o, struct peer *p); // the same engine after a reconnect
void router_pump(struct orch *o);
void router_close(struct orch *o);

// The engine for a session among n candidates: pure, for router.c and its test. load, room [n]: jobs it has, jobs it may have.
// Returns -1 when none has room.
int router_choose(uint64_t session, const uint64_t *names, const int *load, const int *room, int n);

#endif
