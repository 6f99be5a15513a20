// Which task's turn it is, and which of its prompts: deterministic functions of the seed and of counters that the ledger keeps.
//
// Tasks: stride scheduling. Each group adds 1/ratio to its task's pass; the smallest pass among the tasks that are up is next, ties to
// the lower id. Prompts: the training split in an order shuffled by (seed, task, epoch), epoch after epoch; an unbounded split in order.
#ifndef ORCHESTRATOR_SAMPLER_H
#define ORCHESTRATOR_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct orch;
struct task;

struct task *sampler_pick(struct orch *o); // NULL: none is up with prompts and room
int64_t sampler_next(struct orch *o, struct task *t, int64_t *ret_epoch); // draws: advances cursor and pass
// Seed of an episode: 53 bits, so that every JSON reader keeps it exact.
uint64_t sampler_seed(const struct orch *o, const struct task *t, int64_t index, int64_t epoch, bool eval);
enum status sampler_save(struct orch *o, struct task *t,
                         struct error *err) OOZE_MUST_USE; // cursor and pass, into the open transaction
void sampler_load(struct orch *o, struct task *t);         // what was saved last, if anything was
// After loading all: a task behind the pass at which another was drawn last cannot have been up then (the smallest is drawn), so it stands
// there now and does not catch up. Tasks that were up are not moved.
void sampler_level(struct orch *o);

// Prompt number `cursor` of a split of n (-1 = unbounded). Pure.
int64_t sampler_prompt(uint64_t seed, const char *task, int64_t n, int64_t cursor, int64_t *ret_epoch);

#endif
