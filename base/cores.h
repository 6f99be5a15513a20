// Who gets which cores: the one place that divides a host among the trainer and the engines of a run, and the lists of CPUs that
// threads are pinned to. Pure functions of the configuration, and of what the process may run on where that is asked for.
//
// Threads with `trainer.threads` / `rollout.threads` 0, on C cores with E engines here (every process has at least one):
//   trainer and engines compute at the same time:  trainer C/2 rounded up, engines the rest divided by E (the first ones get
//                                                  what is left over)
//   they take turns (all stages sft, or max_lag 0, or nothing but an evaluation):  trainer C, engines C divided by E
// What is given explicitly is taken as it is, and the other side gets the rest.
//
// Pinning (`trainer.pin`, `rollout.pin`): "off" = the system decides; "auto" = the trainer's threads on the first cores, each
// engine's on the next (from the first one on when they take turns); a list like "0-3,8": thread k of the trainer, or of the engines
// counted through, on the k-th of it, from the front again when it is used up.
#ifndef BASE_CORES_H
#define BASE_CORES_H

#include "base/runconfig.h"

#define CORES_MAX 1024 // CPUs are numbered below this

struct cores_list {
    int n;
    int cpus[CORES_MAX];
};

struct cores_share {
    int threads;           // of the process
    struct cores_list pin; // thread k on cpus[k]; n 0 = not pinned, else n = threads
    char warning[160];     // more threads than cores, ""
};

// The CPUs this process may run on, in ascending order; at least one.
void cores_allowed(struct cores_list *ret);
int cores_count(void);

// "0-3,8" in the order written; STATUS_INVALID says what is wrong with it.
enum status cores_parse(const char *text, struct cores_list *ret, struct error *err) OOZE_MUST_USE;

// The trainer's share of `allowed`, and that of engine `index`. STATUS_INVALID: pinned to a CPU that is not allowed.
enum status cores_for_trainer(const struct run_config *c, const struct cores_list *allowed,
                              struct cores_share *ret, struct error *err) OOZE_MUST_USE;
enum status cores_for_engine(const struct run_config *c, const struct cores_list *allowed, int index,
                             struct cores_share *ret, struct error *err) OOZE_MUST_USE;

#endif
