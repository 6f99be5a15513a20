// One row of `ooze bench`: runs our program on one or several classes of kernels and the peer (or takes the bound our program measures)
// in turn.
#ifndef CLI_BENCH_ROW_H
#define CLI_BENCH_ROW_H

#include <stddef.h>

#include "cli/bench_result.h"
#include "net/loop.h"

#define BENCH_CLASSES_MAX 8

enum bench_better { BENCH_MORE, BENCH_LESS };

struct bench_row { // bench.def
    const char *name, *unit;
    enum bench_better better;
    double goal, part_goal, bytes_within;
    int run_s;
    bool alone;
    const char *ours, *peer;
    const char *claim;
};
extern const struct bench_row bench_rows[];
extern const size_t bench_n_rows;

struct bench_setting {
    const char *suite;                      // folder of our programs; the peers are in suite/bench/peers
    const char *models, *python;            // of the peers
    const char *threads;                    // passed on; NULL = the program's own
    int n_classes;                          // at least 1
    const char *classes[BENCH_CLASSES_MAX]; // --isa of our program; NULL = its own choice
    int runs;                               // rounds
    int masked_runs;                        // rounds in which the classes after the first take part; 0 = all
    int run_s;                              // deadline of one run; 0 = the row's
    bool quiet;                             // no progress on stderr
    const bool *stop; // set in a callback of the loop: no further run begins, the one under way is given up
};

// One round: our program on each class in turn, then the peer, once for all of them. results [n_classes] are filled in any case: a class
// that fails leaves the others in the race; what ended before its last round has the figures of the rounds it completed. Each takes
// a bench_result_done.
void bench_row_run(struct loop *l, const struct bench_row *row, const struct bench_setting *s,
                   struct bench_result *results);

#endif
