// Blocks: what a layer is made of. A block adds f(x) to the residual stream x [T, C] and knows the gradient;
// training, prefill and decode run the same forward function, so their bits agree (contract 3). An
// architecture is a list of blocks (arch/).
//
// Invariants
//   1. A row of the result depends only on rows of its own sequence; scratch and saved are working memory,
//   never input.
//   2. With keep, forward writes everything backward needs into `saved`; running forward again on the same x rewrites
//   the same
//      bits there (recomputation).
//   3. backward adds to grads and to dx, and may destroy `saved`.
#ifndef MODEL_BLOCK_H
#define MODEL_BLOCK_H

#include "kernels/kernels.h"
#include "model/config.h"

struct binder;
struct layout_builder;
struct rope;

// What one forward or backward pass is about; the same for all blocks of a layer.
struct block_run {
    struct device *d;
    const struct model_config *c;
    const struct rope *rope;
    int64_t t;          // rows
    const int32_t *pos; // [t]
    int32_t n_seqs;
    const struct attn_seq *seqs; // [n_seqs]
    struct attn_cache cache;     // this layer's pages
    // Sequences whose pages are in the cache at the same time: spans [span_end[i-1], span_end[i]). The engine
    // has one span; training pages are transient and serve one span after the other.
    int32_t n_spans;
    const int32_t *span_end;
    enum dtype dtype; // of the weights: DT_F32, DT_BF16, DT_FP8
    bool keep;        // a backward pass follows: fill all of `saved`
    bool want_output; // false: only `saved` is wanted (recomputation of the last block of a layer)
};

struct block {
    const char *name;
    // Declares the tensors of one layer, in file order.
    void (*params)(struct layout_builder *b, const struct model_config *c, int32_t layer);
    // The block's weights, filled by bind (weights.h).
    size_t weights_size;
    void (*bind)(struct binder *b, const struct model_config *c, int32_t layer, void *ret_weights);
    // Floats for t rows with weights of `dtype`: kept from forward to backward; working memory of forward; of backward.
    int64_t (*saved)(const struct model_config *c, enum dtype dtype, int64_t t);
    int64_t (*scratch)(const struct model_config *c, enum dtype dtype, int64_t t);
    int64_t (*grad_scratch)(const struct model_config *c, enum dtype dtype, int64_t t);
    // x [T, C] f32 in and out.
    void (*forward)(const struct block_run *r, const void *weights, float *x, float *saved, float *scratch);
    // dx [T, C] in: gradient of the block's output; out: of its input. grads [layout.total] += .
    void (*backward)(const struct block_run *r, const void *weights, float *saved, float *scratch, float *dx,
                     float *grads);
};

extern const struct block block_attention, block_mlp;

// ---- layout
// --------------------------------------------------------------------------------------------------------

// fmt must hold one %d for the layer when layer >= 0. rows = 0 declares a vector of cols.
void layout_add(struct layout_builder *b, enum param_kind kind, int32_t layer, const char *fmt, int64_t rows,
                int64_t cols);

#endif
