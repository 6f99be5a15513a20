// One conversation between a task service (mode env) and the policy.
//
//   EP_QUEUED ─ episodes_next ─► EP_CREATING ─ on_create ─► EP_COMMIT ─ generate ─► EP_GENERATING ─ episode_on_tokens ─► EP_COMMIT
//                                    ▲                          ▲                                                          │
//                                    │ call_again               └────── tail ── on_step ◄── EP_STEPPING ◄──── step ◄───────┘
//                                 EP_PAUSED (the service is down, or the call is repeated)   │ done, limit
//                                                                                            ▼
//   any ─ episode_cancel / episode_fail ─► gone                              finish ─► group_on_scored or eval_on_result
//
// Invariants
//   1. Tokens reach the service only once they are durable; its reply is durable before the next generation starts (training episodes;
//      evaluations never touch the ledger's units and start over after a crash).
//   2. A call of (trajectory, attempt, turn) always carries the same Idempotency-Key, so repeating it is safe.
//   3. A failure that the policy did not cause is never a reward. What the service does not answer (hang, broken connection, 5xx) during
//      a step is the policy's doing only if the canary (GET /health) is well and the repeated call fails the same way: crashing the
//      sandbox is no way out of a bad reward. Everything else is environment, timeout or grader and gets a new attempt, at most
//      max_attempts of them.
//   4. Waiting is bounded: calls by step_timeout_ms, a service that is down by the same again, jobs by orchestrator.lease_ms.
#ifndef ORCHESTRATOR_EPISODE_H
#define ORCHESTRATOR_EPISODE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/runconfig.h"
#include "ledger/ledger.h"
#include "orchestrator/session.h"
#include "orchestrator/table.h"

struct orch;
struct task;
struct group;
struct job;
struct http_call;

enum episode_state { EP_QUEUED, EP_CREATING, EP_COMMIT, EP_GENERATING, EP_STEPPING, EP_PAUSED };

struct episode {
    struct orch *o;
    uint64_t serial; // unique in this process
    enum episode_state state;
    struct task *task;
    struct episode *queue_prev, *queue_next; // task's queue
    bool has_place;                          // counted in task->running
    // whose
    struct group *group; // training: with member
    int32_t member;      // evaluation: index of the item
    bool eval;
    uint64_t trajectory;
    uint32_t attempt;
    int64_t index;
    uint64_t seed;
    int64_t group_id;
    const struct run_stage *stage; // limits and sampling
    double temperature;
    int64_t min_version;
    // under way
    char *id; // the service's episode id
    struct session session;
    int32_t turn;  // of the assistant, from 0
    bool cut;      // the turn under way ended by length
    char *message; // assistant message of the turn, JSON
    bool calls;    // it holds tool calls
    struct job *job;
    struct http_call *call;
    int64_t resume_ms, pause_deadline_ms; // EP_PAUSED
    int repeats, deaths; // of the call under way: by a well service; after which it was not well
    double last_reward;
    bool has_reward;
    char *components; // of the last reply, JSON or NULL
    struct drop_note {
        enum drop_reason reason;
        char text[200];
    } trouble; // what the paused call failed with
};

struct episodes {
    struct table by_serial;
    uint64_t next_serial;
    struct episode_gone { // DELETE waits for the commit that makes the end durable
        int64_t task;
        char *id;
    } * gone; // [first_gone, n_gone)
    size_t first_gone, n_gone, cap_gone;
};

struct episode_spec {
    struct task *task;
    struct group *group;
    int32_t member;
    bool eval;
    uint64_t trajectory;
    uint32_t attempt;
    int64_t index, group_id;
    uint64_t seed;
    const struct run_stage *stage;
    double temperature;
    int64_t min_version;
};

// Queues it at its task.
struct episode *episode_start(struct orch *o, const struct episode_spec *s);
// A training episode out of the ledger: goes on at its last durable turn. NULL: it failed (gateway), which its group knows by now.
struct episode *episode_restore(struct orch *o, const struct episode_spec *s, const char *episode_id);
// Ends it without a result: job and call are cancelled, the service is told. NULL is fine.
void episode_cancel(struct orch *o, struct episode *ep);
void episodes_close(struct orch *o);
void episodes_tick(struct orch *o);
void episodes_task_up(struct orch *o, struct task *t);   // paused calls go on
void episodes_task_gone(struct orch *o, struct task *t); // down for step_timeout_ms: what waits for it fails
void episodes_next(struct orch *o, struct task *t);      // fills free places

// From the router.
void episode_on_tokens(struct orch *o, struct episode *ep, struct job *j);
void episode_on_engine_failure(struct orch *o, struct episode *ep, struct job *j);

#endif
