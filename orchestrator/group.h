// Groups: G episodes of one prompt whose rewards are compared. Admission, assembly of results, restoring.
//
//   GROUP_RUNNING ── all members ended ─► group_complete ── more than half valid ─► GROUP_READY ── step.c ─► leased, gone from here
//         └── cannot become valid any more, no signal, task removed, stage over ──► group_drop(reason) ─► gone
//
// Invariants
//   1. running + ready + consumed <= admission_bound (contract 2), consumed = steps prepared in this stage * groups_per_step. All
//      three are functions of the ledger, so a restart restores them.
//   2. Members are numbered; attempts of a member follow one another, one at a time.
//   3. Advantages come from the distinct members with a policy outcome, those later dropped as stale included
//      ("Advantages and filters" of algorithms.md).
#ifndef ORCHESTRATOR_GROUP_H
#define ORCHESTRATOR_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "ledger/ledger.h"

struct orch;
struct task;
struct episode;

enum member_state { MEMBER_RUNNING, MEMBER_SCORED, MEMBER_FAILED };

struct member_result {
    double reward;
    bool truncated;
    int32_t n_sampled, n_segments, n_turns;
    int64_t version_min, version_max;
};

struct member {
    enum member_state state;
    uint64_t trajectory;
    uint32_t attempt;
    struct episode *ep; // while it runs
    struct member_result result;
    double advantage;
};

enum group_state { GROUP_RUNNING, GROUP_READY };

struct group {
    int64_t id;
    enum group_state state;
    struct task *task;
    int64_t index, epoch;
    uint64_t seed;
    int64_t min_version; // of its jobs: what was published when it was admitted
    int size, n_scored, n_failed;
    bool held;                 // its members are being looked at: no end before group_settle
    struct group *prev, *next; // by id
    struct member members[];
};

struct groups {
    struct group *first, *last;
    int n_running, n_ready;
    int64_t issued, stale; // since the start: for figures
    int64_t idle_since_ms;
};

void groups_admit(struct orch *o); // starts as many as the bound allows
enum status groups_restore(struct orch *o, struct error *err) OOZE_MUST_USE;
void groups_close(struct orch *o);
void groups_task_removed(struct orch *o, struct task *t);
void groups_drop_all(struct orch *o, enum drop_reason reason,
                     const char *detail); // at a stage's end, at a stop

void group_on_scored(struct orch *o, struct group *g, int32_t member, const struct member_result *r);
void group_on_failed(struct orch *o, struct group *g, int32_t member, enum drop_reason reason,
                     const char *detail);
// Drops every unit not dropped yet and forgets the group.
void group_drop(struct orch *o, struct group *g, enum drop_reason reason, const char *detail);
// One scored or ready member only.
void group_drop_member(struct orch *o, struct group *g, int32_t member, enum drop_reason reason,
                       const char *detail);
// After members were dropped one by one: ends the group if that settles it. It may be gone afterwards.
void group_settle(struct orch *o, struct group *g);
// It is in a prepared step now: forgotten here.
void group_consumed(struct orch *o, struct group *g);
// Smallest version over the sampled tokens of its members so far, running ones included; -1 = none sampled.
int64_t group_version_min(const struct group *g);

#endif
