// Evaluation on held-out prompts: prompts 0 … n-1 of each task's "eval" split, `samples` answers each, at one weights version.
//
// Invariants
//   1. Nothing of it is a unit of the ledger: it cannot enter training.
//   2. Its results are written in one transaction when all are there; until then a crash means doing it again.
//   3. At a stage's end the engines hold exactly the stage's last version, so every token comes from it; evaluations of eval.every run
//      beside training and start at the version in their label.
#ifndef ORCHESTRATOR_EVAL_H
#define ORCHESTRATOR_EVAL_H

#include <stdbool.h>
#include <stdint.h>

#include "ledger/ledger.h"

struct orch;
struct task;
struct episode;

struct eval_result {
    double reward;
    bool success;
    int32_t n_tokens;
};

struct eval_item {
    struct task *task;
    int64_t index;
    int32_t sample;
    uint32_t attempt;
    bool done, failed;
    struct eval_result result;
    struct episode *ep;
};

struct eval {
    bool running;
    int64_t round; // evaluations begun by this incarnation
    char label[80];
    int64_t version;
    int stage;
    int64_t started_ms;
    struct eval_item *items;
    int32_t n, next, n_done, n_failed;
    // mean over tasks of the last finished one
    int64_t last_version;
    double last_mean;
};

bool eval_is_done(struct orch *o, const char *label);
void eval_start(struct orch *o, const char *label); // at o->weights.version
void eval_on_result(struct orch *o, int32_t item, const struct eval_result *r);
void eval_on_failure(struct orch *o, int32_t item, enum drop_reason reason, const char *detail, bool again);
void eval_task_removed(struct orch *o, struct task *t);
void eval_tick(struct orch *o);
void eval_close(struct orch *o);
double eval_mean_of(const struct orch *o, int64_t version); // NAN when unknown

// Chance that at least one of k answers drawn from n, of which c are right, is right: 1 - C(n-c, k) / C(n, k). Pure.
double eval_pass_at(int n, int c, int k);

#endif
