// Packing: sequences of any length into micro-batches of at most `budget` rows.
//
// First-fit decreasing: longest sequence first, each into the first micro-batch with room. Sequences of equal length are
// ordered by a hash of (seed, member), so that a step's packing is a function of its content and its packing_seed alone:
// never of threads, time or addresses. A sequence longer than the budget gets a micro-batch of its own.
#ifndef TRAINER_PACKING_H
#define TRAINER_PACKING_H

#include <stdint.h>

#include "base/status.h"

struct packing {
    int32_t n_bins;
    int32_t *start; // [n_bins + 1] into members
    int32_t *
        members; // members of bin b: members[start[b]] … members[start[b + 1] - 1], in the order of their rows
    int32_t max_rows; // rows of the fullest bin
};

// members [n]: which ones to pack; rows [indexed by member]: length of each, 0 = left out.
enum status packing_init(struct packing *ret, int32_t n, const int32_t *members, const int32_t *rows,
                         int32_t budget, uint64_t seed, struct error *err) OOZE_MUST_USE;
void packing_done(struct packing *p);

#endif
