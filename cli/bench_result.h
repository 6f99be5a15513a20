// What a row of `ooze bench` gave on one class of kernels: medians of both sides, their ratio, whether the goal holds; and as JSON.
#ifndef CLI_BENCH_RESULT_H
#define CLI_BENCH_RESULT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/json.h"

#define BENCH_RUNS_MAX 99

struct bench_row;

struct bench_side {
    char name[128];
    int runs; // that the median is of
    double median, low, high;
    json_t *ready; // first line of the program; NULL for a bound
};

struct bench_part {
    char name[64];
    double ours, other, ratio;
};

struct bench_result {
    const struct bench_row *row;
    const char *isa;               // class that was asked for; NULL = the program's own choice
    bool measured;                 // there are figures: at least one round was completed
    bool complete;                 // all rounds were, the peer's too
    struct error error;            // not complete: why
    struct bench_side ours, other; // other: the peer or the bound
    double ratio, ratio_low, ratio_high, goal;
    bool holds;
    char why[256]; // when it does not hold for another reason than the ratio
    struct bench_part *parts;
    size_t n_parts;
    double waiting_cpu; // share of one core that the programs took whose turn it was not
    json_t *figures;    // medians of every further number of our answers
};

// Compares: ours, other = arrays of the answers of both sides, one a run; other NULL: ours hold a bound each. Both sides' names and
// first lines, row and waiting_cpu are there already. STATUS_PEER: an answer lacks something that another has.
enum status bench_result_conclude(struct bench_result *r, const json_t *ours, const json_t *other,
                                  struct error *err) OOZE_MUST_USE;
void bench_result_done(struct bench_result *r);
// Measured: {name, unit, ours, peer:{name, value}, ratio, goal, holds, processor, runs, complete, …}, with "error" when not complete;
// else {name, isa, error}. A new reference.
json_t *bench_result_json(const struct bench_result *r);

#endif
