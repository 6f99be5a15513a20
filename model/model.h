// The model: one forward pass for training, prefill and decode (contract 3), and its gradient.
//
//   weights   one version of packed weights on a device; immutable between weights_set / weights_load calls
//   kv        paged keys and values
//   batch     rows (tokens) of any number of sequences; a row's result depends only on its own sequence
//   train     saved activations of one packed micro-batch and the gradient of everything
//
// Activations are f32 in memory, but for what products read: with weights of BF16 or FP8 that is rounded to bf16 by whoever writes
// it, the head's product excepted (kernels.h, struct rows). With BF16 keys and values are stored as bf16, with FP8 (whose weights cost enough precision) and
// F32 as f32, unless the caller chooses another format (enum kv_choice): the same one for engine and trainer, or their bits
// differ. One thread owns a weights/kv/train object; the device's pool works inside calls.
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "base/mem.h"
#include "kernels/kernels.h"
#include "model/config.h"

struct weights;

// dtype: DT_F32, DT_BF16 or DT_FP8 (linear layers FP8, the rest BF16). train: for the backward pass too (not with DT_FP8);
// such weights hold no matrices but pack each out of the flat vector when it is used, and are never loaded from a file.
enum status weights_open(struct device *d, const struct model_config *c, const struct layout *l,
                         enum dtype dtype, bool train, struct weights **ret, struct error *err) OOZE_MUST_USE;
void weights_close(struct weights *w);
// From the flat f32 vector: rounds (or quantises) and packs. The values are exactly those weights_file_write
// would store. Opened with train they refer to master: it stays as it is until the next weights_set or weights_close.
void weights_set(struct weights *w, const float *master);
// From a file of weights_file_write. Verifies config, shapes and (expect_hash non-NULL) the hash. Unchanged
// on failure.
enum status weights_load(struct weights *w, const char *path, const char *expect_hash,
                         struct error *err) OOZE_MUST_USE;
size_t weights_bytes(const struct weights *w);
enum dtype weights_dtype(const struct weights *w);
const struct model_config *weights_config(const struct weights *w);
// From now on what is done with w runs on d, another device object of the same kind and kernel class: a loader thread fills w on its
// own device and hands it to the thread that computes (contract 2, refit in flight).
void weights_bind(struct weights *w, struct device *d);

struct kv;
// Pages for every layer; dtype DT_F32, DT_BF16 or DT_FP8 (kv_dtype_for says which goes with the weights; the rounding is
// kernels.h, struct attn_cache). Page contents are undefined until written; kv_page_bytes is one page over all layers, K and V.
enum status kv_open(struct device *d, const struct model_config *c, enum dtype dtype, int32_t n_pages,
                    int32_t page_tokens, struct kv **ret, struct error *err) OOZE_MUST_USE;
void kv_close(struct kv *kv);
size_t kv_page_bytes(const struct model_config *c, enum dtype dtype, int32_t page_tokens);
enum dtype kv_dtype_for(enum dtype weights);
// rollout.kv_dtype. KV_AUTO: kv_dtype_for(weights).
enum kv_choice { KV_AUTO, KV_F32, KV_BF16, KV_FP8 };
enum dtype kv_dtype_choose(enum kv_choice choice, enum dtype weights);
// What HELLO and the ledger call the numerics of a process: the device's id and, where it was chosen, the format of keys and
// values (the chosen word, since `auto` follows the weights' dtype and engine and trainer may differ in that).
#define KV_NUMERICS_ID 208
void kv_numerics_id(const struct device *d, enum kv_choice choice, char *ret, size_t n);

struct batch {
    int32_t n_rows, n_seqs;
    const int32_t *ids;          // [n_rows] token ids in [0, vocab)
    const int32_t *pos;          // [n_rows] positions in [0, max_position)
    const struct attn_seq *seqs; // [n_seqs] cover the rows in order
};

// Runs all layers: writes the rows' keys and values into kv's pages and hidden [n_rows, C] f32 after the
// final norm. Scratch comes from `step` (reset by the caller). STATUS_NOMEM when the arena's limit is too
// small.
enum status model_forward(const struct weights *w, struct kv *kv, const struct batch *b, struct arena *step,
                          float *hidden, struct error *err) OOZE_MUST_USE;
// logits [rows, V] of the given hidden rows (already final-normed).
void model_logits(const struct weights *w, int32_t rows, const float *hidden, float *logits);

// ---- training -----------------------------------------------------------------------------------------------

// One batch at a time: train_forward, train_logprobs, then train_backward. Nothing is allocated after train_open. With
// weights of DT_FP8 there is a forward pass (scoring) but no backward pass.
struct train;
// What a tree takes, root and branches added one by one; zeroed before. The limits, of fixed tables, are far off where sharing pays:
// pos0 add up to at most TRAIN_SHARED_MAX times the rows, and of short branches, of a few tokens, there are some dozens.
#define TRAIN_SHARED_MAX 64
struct train_tree {
    int64_t rows, pages, shared;
};
void train_tree_add(struct train_tree *tree, int32_t n_rows, int32_t pos0);
bool train_tree_fits(const struct train_tree *tree);
// For micro-batches of at most max_tokens rows. kv_dtype: keys and values are rounded like those of a kv of that dtype
// (kv_dtype_choose; parity wants the engine's). recompute: keep only each layer's input and run the layer again in the
// backward pass (same bits); else keep everything.
enum status train_open(struct device *d, const struct model_config *c, const struct layout *l,
                       enum dtype weights_dtype, enum dtype kv_dtype, int32_t max_tokens, bool recompute,
                       struct train **ret, struct error *err) OOZE_MUST_USE;
void train_close(struct train *t);
// Bytes of activations and working memory that train_open allocates; 0 for an unknown architecture.
size_t train_bytes(const struct model_config *c, enum dtype weights_dtype, int32_t max_tokens,
                   bool recompute);

// Packed sequences: seqs[i].row0/n_rows, pages ignored. Saves what the backward pass needs.
//
// Sequences that begin alike may be computed as a tree: a whole one (pos0 = 0), the root, and directly behind it its branches,
// sequences without their first pos0 rows, which the root's serve (kernels.h, attention_grad): pos0 is a multiple of ATTN_BLOCK, not
// more than the root's n_rows, and ids and positions are the root's up to there (the caller's promise). Hidden states and
// log-probabilities of the rows that are left have the bits that the whole sequence would give; the gradient is that of the
// same sum, whose parts add up in another order. A tree must pass train_tree_fits.
void train_forward(struct train *t, const struct weights *w, const struct batch *b);
// Log-probability of targets[r] after row r at temperature 1/inv_temp[r], and entropy (NULL = not wanted):
// [n_rows] each. Rows with targets < 0 are skipped (0). Vocabulary logits are computed for a bounded number
// of rows at a time. The same operations as the engine's sampler. May be called again after one train_forward; the last call
// is the one that train_backward differentiates.
void train_logprobs(struct train *t, const struct weights *w, const int32_t *targets, const float *inv_temp,
                    float *logprob, float *entropy);
// grads [layout.total] += d(sum_r dlogprob[r] * logprob[r] + dentropy[r] * entropy[r]) / d weights. dentropy
// may be NULL, and is only allowed when train_logprobs was asked for the entropy. Valid once after train_forward and
// train_logprobs of the same batch; w opened with train = true and unchanged since.
void train_backward(struct train *t, const struct weights *w, const float *dlogprob, const float *dentropy,
                    float *grads);

// What the log-probabilities are wanted for, known while they are computed. `differentiate` is called for ranges [begin, end) of
// rows in order, all rows in all, once logprob and entropy of those rows are written; it writes dlogprob and dentropy of them and
// says whether any is not zero.
struct train_objective {
    bool (*differentiate)(void *ctx, int32_t begin, int32_t end);
    void *ctx;
    const float *dlogprob, *dentropy; // [n_rows]; dentropy may be NULL
};
// train_logprobs and train_backward in one, and the same bits: the logits of some rows, their log-probabilities, the derivative of
// the objective and the head's gradient follow one another, so that logits are neither kept nor computed twice. Nothing but the
// head has a gradient afterwards; train_backward_layers (once, or never when the batch is given up) adds the rest. Returns whether any
// derivative was not zero: without one the gradient is zero. entropy not NULL.
bool train_objective_grad(struct train *t, const struct weights *w, const int32_t *targets,
                          const float *inv_temp, const struct train_objective *o, float *logprob,
                          float *entropy, float *grads);
void train_backward_layers(struct train *t, const struct weights *w, float *grads);

#endif
