// Inside the room: the trainer's object, shared by train.c (layers) and head.c (vocabulary).
//
// Invariants
//   1. The forward pass is the engine's: the same blocks, attention over pages (transient ones, of the cache dtype).
//   2. Calls go forward, logprobs, backward (or forward, objective_grad, backward_layers) for one batch and the same weights;
//      `stage` says how far it is.
//   3. With recompute, `inputs` holds every layer's input and all layers share one layer's `saved`; else each has its own.
//   4. After the final norm's gradient `hidden` holds dx, the gradient of the residual stream.
//   5. A root and its branches are in one span: the branches' page tables begin with the root's pages.
#ifndef MODEL_TRAIN_H
#define MODEL_TRAIN_H

#include "model/forward.h"
#include "model/kv.h"

// Pages of all sequences of a batch, for a row of max_tokens: at most one of its own, and shared ones (train_tree_fits).
#define TRAIN_TABLE (1 + TRAIN_SHARED_MAX / ATTN_BLOCK)

enum train_stage { TRAIN_IDLE, TRAIN_FORWARD, TRAIN_LOGPROBS, TRAIN_HEAD };

// Rows with a target, in order; all arrays [max_tokens] are per target, not per row.
struct train_head {
    int32_t max_rows; // logits alive at once
    int32_t n;
    int32_t *rows, *targets;
    float *inv_temp, *logprob, *lse, *entropy, *dlogprob, *dentropy;
    bool have_entropy;
    float *picked;     // [max_rows, C] hidden of the chunk under way
    float *logits;     // [max_rows, V]
    int32_t in_buffer; // first target of the chunk whose picked and logits the buffers hold, -1 = none
};

struct train {
    struct device *d;
    struct model_config c;
    int64_t n_grads; // layout.total
    enum dtype dtype;
    bool recompute;
    int32_t max_tokens;
    enum train_stage stage;

    // The batch, copied, with its sequences on transient pages: page numbers start again with each span.
    int32_t n_rows, n_seqs, n_spans;
    int32_t *ids, *pos;    // [max_tokens]
    struct attn_seq *seqs; // [max_tokens]
    int32_t *span_end;     // [max_tokens]
    struct kv *kv;         // of one layer, used by one layer after the other
    int32_t n_pages;
    int32_t *tables; // [TRAIN_TABLE * max_tokens] page numbers of one sequence after the other

    float *data;          // one device allocation behind all that follows
    float *x;             // [max_tokens, C] residual stream; at the end the input of the final norm
    float *hidden;        // [max_tokens, C] after the final norm
    float *dhidden;       // [max_tokens, C]
    float *inputs;        // [layers, max_tokens, C] with recompute
    float *saved;         // of one layer or of all
    int64_t saved_floats; // of one layer
    float *scratch;
    struct train_head head;
};

// Cuts the head's arrays out of v (see struct carve); called twice.
struct carve;
void train_head_carve(struct train *t, struct carve *v);
// dhidden [n_rows, C] = gradient of the loss of dlogprob, dentropy; grads of the head += .
void train_head_backward(struct train *t, const struct weights *w, const float *dlogprob,
                         const float *dentropy, float *grads);

#endif
