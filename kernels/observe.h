// Watching a device work: an observed device calls an observer before and after each op of its table, with what the op is, where
// in the model it stands, what it costs at least, and what it has written. Two users: the profile (time per op) and the trace
// (digests of outputs, model/trace.h). A device that is not observed runs its own table: watching costs nothing when off.
#ifndef KERNELS_OBSERVE_H
#define KERNELS_OBSERVE_H

#include "kernels/kernels.h"

// Ops are numbered by their field in struct kernels.
#define OP_INDEX(field) ((int32_t)(offsetof(struct kernels, field) / sizeof(void (*)(void))))
#define OP_COUNT        ((int32_t)(sizeof(struct kernels) / sizeof(void (*)(void))))

// Rows of an array that an op writes; row r starts at p + r * stride_bytes.
struct op_output {
    const void *p;
    int64_t rows;
    size_t row_bytes, stride_bytes;
};

struct op_call {
    int32_t op;        // OP_INDEX(gemm), …
    const char *name;  // the field's name: "gemm"
    int32_t layer;     // as marked: -1 = before the first layer, n_layers = after the last
    const char *block; // as marked: "embedding", "attention", "mlp", "head", …
    // of weights, cache or operands, or of the result where that alone has a choice; else DT_F32
    enum dtype dtype;
    int64_t m, n, k;   // GEMMs: rows, outputs, inputs. Others: rows, elements of a row, 0
    double flops;      // multiplications and additions of the formula; 0 where only data moves
    double bytes;      // operands and results, each counted once: what must be moved at least
    int32_t n_outputs; // rows of `outputs`; 0: nothing that a digest could name (pages, scalars)
    struct op_output outputs[3];
};

// Called on the thread that runs the op; before or after may be NULL. Neither may run ops of the device.
struct observer {
    void *ctx;
    void (*before)(void *ctx, const struct op_call *call);
    void (*after)(void *ctx, const struct op_call *call);
};

// From now on o watches d; NULL: nobody does. *o must live until then. Every op but weight_bytes, which computes no array, is
// seen, and computes what it always does.
void device_observe(struct device *d, const struct observer *o);

// The model says where it is: op_call.layer and .block of what follows.
static inline void device_mark(struct device *d, int32_t layer, const char *block)
{
    d->mark_layer = layer;
    d->mark_block = block;
}

#endif
