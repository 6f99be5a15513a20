// A trace: digests of what every op of a forward pass has written, over one sequence of tokens from position 0, and the
// log-probabilities at its end. Engine and trainer make theirs their own way, over pages and over a training batch; by contract 3
// they agree, and where two traces part is where the first wrong number was made.
//
// Ops of a block are told apart by their name and how often it ran in that block before. In the head, where engine and trainer
// compute as many rows at a time as their buffers hold, calls of one op are one entry: a digest goes row by row.
#ifndef MODEL_TRACE_H
#define MODEL_TRACE_H

#include "model/model.h"

struct trace_op {
    int32_t layer; // -1 = embedding, number of layers = final norm and head
    int32_t nth;
    const char *block, *op; // static strings
    uint64_t digest;
};

struct trace {
    int32_t n_ops, cap_ops;
    struct trace_op *ops; // in order of execution; the last is "logprobs" of the head
    int32_t n;            // tokens traced
    float *logprobs;      // [n] of each token after those before it, temperature 1; the first is 0
};

// The engine's way: model_forward over pages of its own, all in one batch. n >= 2 ids of the vocabulary, at most max_position.
enum status trace_engine(const struct weights *w, enum dtype kv_dtype, int32_t n, const int32_t *ids,
                         struct trace *ret, struct error *err) OOZE_MUST_USE;
// The trainer's way: train_forward and train_logprobs. t: opened for at least n - 1 rows, on the device and with the dtype of w.
void trace_train(struct train *t, const struct weights *w, int32_t n, const int32_t *ids, struct trace *ret);
void trace_done(struct trace *t);

#endif
