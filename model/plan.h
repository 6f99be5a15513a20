// The plan of a weights file: which tensor lies where, for a layout and a dtype. The writers of weights files
// and model folders follow it, the reader of weights files demands it.
//
// Invariants
//   1. Order: F32, then BF16, then FP8 tensors, each in layout order, so that every tensor is aligned to its
//   element
//      and matrices that are neighbours in the layout are neighbours in the file.
//   2. A converted matrix X.weight (params with .fp8, DT_FP8) has a second tensor X.weight_scale_inv, F32.
#ifndef MODEL_PLAN_H
#define MODEL_PLAN_H

#include "base/buf.h"
#include "model/config.h"

struct plan_tensor {
    char name[112];
    const struct param *param;
    bool is_scale;
    enum dtype dtype;
    int64_t rows, cols;
    int64_t begin, bytes; // in the data section
};

struct plan {
    struct plan_tensor *tensors;
    int32_t n;
    int64_t data_bytes;
};

// dtype DT_F32, DT_BF16 or DT_FP8. l must outlive the plan.
void plan_init(struct plan *p, const struct layout *l, enum dtype dtype);
void plan_done(struct plan *p);
// The bytes before the data section: length and JSON, padded to 64. version < 0 is left out.
void plan_header(const struct plan *p, enum dtype dtype, int64_t version, struct buf *out);
// dtype of a parameter's values in a file or in packed weights of the given dtype.
enum dtype param_dtype(const struct param *p, enum dtype dtype);
// Rows and columns of 128 x 128 blocks.
int64_t param_scales(const struct param *p);

#endif
