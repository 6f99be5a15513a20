// One row of `ooze bench`: runs our program and the peer (or takes the bound our program measures) in turn, and compares medians.
#ifndef CLI_BENCH_ROW_H
#define CLI_BENCH_ROW_H

#include <stddef.h>

#include "base/json.h"
#include "net/loop.h"

#define BENCH_RUNS_MAX 99

enum bench_better { BENCH_MORE, BENCH_LESS };

struct bench_row { // bench.def
    const char *name, *unit;
    enum bench_better better;
    double goal, part_goal, bytes_within;
    int run_s;
    const char *ours, *peer;
    const char *claim;
};
extern const struct bench_row bench_rows[];
extern const size_t bench_n_rows;

struct bench_setting {
    const char *suite;           // folder of our programs; the peers are in suite/bench/peers
    const char *models, *python; // of the peers
    const char *isa, *threads;   // passed on; NULL = the program's own
    int runs;
    int run_s;  // deadline of one run; 0 = the row's
    bool quiet; // no progress on stderr
};

struct bench_side {
    char name[128];
    double median, low, high;
    json_t *ready; // first line of the program; NULL for a bound
};

struct bench_part {
    char name[64];
    double ours, other, ratio;
};

struct bench_result {
    const struct bench_row *row;
    int runs;
    struct bench_side ours, other; // other: the peer or the bound
    double ratio, ratio_low, ratio_high, goal;
    bool holds;
    char why[256]; // when it does not hold for another reason than the ratio
    struct bench_part *parts;
    size_t n_parts;
    json_t *figures; // medians of every further number of our answers
};

// *ret is written on STATUS_OK only; bench_result_done gives it back.
enum status bench_row_run(struct loop *l, const struct bench_row *row, const struct bench_setting *s,
                          struct bench_result *ret, struct error *err) OOZE_MUST_USE;
void bench_result_done(struct bench_result *r);
// {name, unit, ours, peer:{name, value}, ratio, goal, holds, processor, …}; a new reference.
json_t *bench_result_json(const struct bench_result *r);

#endif
