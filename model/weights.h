// Inside the room: packed weights as the blocks see them.
//
//   vector   f32 array: norms, biases (rounded to bf16 where the file would be)
//   linear   y = x W^T (+ bias): one GEMM where the matrices it is made of (q, k, v; gate, up) can be packed as one
//   binder   hands blocks their vectors and linears out of one device allocation; it runs twice, first only counting
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include "model/block.h"
#include "model/model.h"
#include "model/rope.h"

#define LINEAR_PARTS 3

struct linear;

// Weights opened for training keep no packed matrix: the flat f32 vector is the only copy, and a matrix is rounded and packed
// when a product needs it (a hundredth of the product's time, for a micro-batch of a thousand tokens). One buffer takes W, one
// its transpose; what is there stays until another matrix needs the room, so that the head is packed once for all its chunks.
struct pack_room {
    const float *master; // [layout.total], borrowed by weights_set until the next one
    struct pack_slot {
        size_t bytes;
        void *data;
        const struct linear *linear; // whose part it holds; NULL = none
        int part;
    } slot[2]; // [transposed]
};

struct linear {
    int64_t n, k;     // outputs, inputs
    int32_t n_params; // matrices stacked along n
    const struct param *params[LINEAR_PARTS];
    const struct param *biases[LINEAR_PARTS]; // NULL without
    int32_t n_parts;                          // GEMMs: 1 when all matrices are packed as one, else n_params
    struct gemm_weight fwd[LINEAR_PARTS];
    struct pack_room *room; // NULL: fwd is packed for good; else where it is packed for use
    float *bias;            // [n] or NULL
};

// y [m, n] (+)= x [m, k] W^T + bias
void linear_forward(struct device *d, const struct linear *l, int64_t m, struct rows x, bool accumulate,
                    float *y, int64_t ldy);
// dx [m, k] (+)= dy [m, n] W
void linear_grad_x(struct device *d, const struct linear *l, int64_t m, struct rows dy, bool accumulate,
                   float *dx, int64_t lddx);
// grads of W += dy' x. dtype: that of the weights (operands are rounded to bf16 unless DT_F32).
void linear_grad_w(struct device *d, const struct linear *l, enum dtype dtype, int64_t m, struct rows dy,
                   struct rows x, float *grads);
// grads of the biases += , none where there are none.
void linear_grad_bias(struct device *d, const struct linear *l, int64_t m, const float *dy, int64_t lddy,
                      float *grads);
// x [t, c] as products with weights of this dtype want it: rounded once, into `to` (stride ldto; `to` may be x with ldto = 2 ldx), for
// several products; F32: x as it lies.
struct rows linear_rows(struct device *d, enum dtype weights, int64_t t, int64_t c, const float *x,
                        int64_t ldx, void *to, int64_t ldto);

// Called by blocks' bind functions. fmt holds one %d for the layer.
void bind_vector(struct binder *b, int32_t layer, const char *fmt, float **ret,
                 const struct param **ret_param);
// bias_fmts NULL: no biases.
void bind_linear(struct binder *b, int32_t layer, int n, const char *const *fmts,
                 const char *const *bias_fmts, struct linear *ret);

// The blocks of one layer with their weights.
struct layer {
    const struct block *const *blocks;
    void **weights; // one per block
    int32_t n_blocks;
};

// What is not converted to FP8 is kept as bf16 beside it.
static inline enum dtype weights_embedding_dtype(enum dtype weights)
{
    return weights == DT_F32 ? DT_F32 : DT_BF16;
}

struct parts;

struct weights {
    struct device *d;
    struct model_config c;
    struct layout l; // own copy
    enum dtype dtype;
    bool train;
    struct rope rope;
    struct layer *layers;
    struct pack_room room; // with train
    void *embedding;       // [V, C] F32 or BF16, row-major; NULL with train: rows come out of the master
    const struct param *embedding_param;
    float *final_norm; // [C]
    const struct param *final_norm_param;
    struct linear head;
    char *data; // one device allocation behind everything above
    size_t bytes;
    struct linear **linears; // what weights_set and weights_load fill
    int32_t n_linears;
    struct bound_vector {
        const struct param *param;
        float *data;
    } * vectors;
    int32_t n_vectors;
    struct parts *parts; // of a file for them (parts.h); NULL until one is loaded
};

#endif
