// Inside the room: what weights get out of a file that weights_file_write laid out, cut into parts. Made once per weights object and
// kept with it: from version to version nothing of it changes but how many digits the version has.
#ifndef MODEL_PARTS_H
#define MODEL_PARTS_H

#include <stddef.h>

#include "model/plan.h"
#include "model/weights.h"

enum part_kind { PART_REST, PART_MATRIX, PART_EMBEDDING };

struct part {
    enum part_kind kind;
    size_t begin, end;          // in the data section; REST: empty, at its beginning
    struct gemm_weight *weight; // MATRIX: whose rows it has
    int64_t row, rows;          // MATRIX, EMBEDDING; rows: at most FP8_BLOCK
};

struct parts {
    struct plan plan;  // its params are those of the weights
    struct buf header; // of version 0
    size_t digit;      // where that version stands in it
    size_t *places; // [2 * params]: where in the data section the values of a parameter begin, and its scales
    struct part *parts; // in order of begin
    int n, cap;
};

// Of these weights, not opened for training. The first call makes them; whoever fills the weights calls.
const struct parts *parts_of(struct weights *w);
void parts_free(struct parts *p); // NULL is fine
// Are these the bytes of a file whose header is, byte for byte, what plan_header writes for this plan and any version, and whose
// data has the plan's size? Then there is nothing to parse: what the header says is the plan. *ret_header: its bytes.
bool parts_begin_file(const struct parts *p, const void *data, size_t bytes, size_t *ret_header);

#endif
