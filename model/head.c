// The vocabulary end of training: log-probabilities, entropies and their gradient. Only rows that have a target get logits,
// and only train_head.max_rows of them at a time, so that memory does not grow with batch × vocabulary. Whoever knows the objective
// beforehand (train_objective_grad) has the logits of a chunk computed once; otherwise the backward pass computes them again, unless
// they are still in the buffer. Either way chunks go in order, so both give the same bits. Thread: the owner of the train object.
#include <assert.h>

#include "kernels/observe.h"
#include "model/array.h"
#include "model/train.h"

// Floats alive at once: a chunk's gradient of W is added to memory as large as W, which takes rows to pay off …
#define LOGITS_MAX ((int64_t)1 << 24)
#define ROWS_MIN   64 // … so there are never fewer than these

void train_head_carve(struct train *t, struct carve *v)
{
    struct train_head *h = &t->head;
    int64_t n = t->max_tokens, rows = LOGITS_MAX / t->c.vocab;
    rows = rows < ROWS_MIN ? ROWS_MIN : rows;
    h->max_rows = (int32_t)(rows < n ? rows : n);
    float **const per_target[] = {&h->inv_temp, &h->logprob,  &h->lse,
                                  &h->entropy,  &h->dlogprob, &h->dentropy};
    for (int i = 0; i < 6; i++)
        *per_target[i] = carve_take(v, n);
    h->picked = carve_take(v, h->max_rows * t->c.hidden);
    h->logits = carve_take(v, h->max_rows * t->c.vocab);
}

static int32_t chunk_rows(const struct train_head *h, int32_t first)
{
    return h->n - first < h->max_rows ? h->n - first : h->max_rows;
}

// Hidden rows and logits of the chunk of targets that starts at `first` into the buffers.
static void chunk_logits(struct train *t, const struct weights *w, int32_t first)
{
    struct train_head *h = &t->head;
    int32_t m = chunk_rows(h, first);
    if (h->in_buffer == first)
        return;
    // Gathering rows is an embedding look-up in the table of hidden states.
    t->d->k->embed(t->d, DT_F32, t->hidden, t->c.hidden, m, h->rows + first, h->picked);
    model_logits(w, m, h->picked, h->logits);
    h->in_buffer = first;
}

// Collects the rows that have a target.
static void targets_take(struct train *t, const int32_t *targets, const float *inv_temp, float *logprob,
                         float *entropy)
{
    struct train_head *h = &t->head;
    assert(t->stage != TRAIN_IDLE);
    t->stage = TRAIN_LOGPROBS;
    h->n = 0;
    h->in_buffer = -1;
    h->have_entropy = entropy != NULL;
    for (int32_t i = 0; i < t->n_rows; i++) {
        logprob[i] = 0;
        if (entropy)
            entropy[i] = 0;
        if (targets[i] < 0)
            continue;
        h->rows[h->n] = i;
        h->targets[h->n] = targets[i];
        h->inv_temp[h->n++] = inv_temp[i];
    }
}

static void chunk_logprobs(struct train *t, const struct weights *w, int32_t first, float *logprob,
                           float *entropy)
{
    struct train_head *h = &t->head;
    int32_t m = chunk_rows(h, first);
    chunk_logits(t, w, first);
    t->d->k->logprob(t->d, m, t->c.vocab, h->logits, t->c.vocab, h->inv_temp + first, h->targets + first,
                     h->logprob + first, h->lse + first, entropy ? h->entropy + first : NULL);
    for (int32_t i = first; i < first + m; i++) {
        logprob[h->rows[i]] = h->logprob[i];
        if (entropy)
            entropy[h->rows[i]] = h->entropy[i];
    }
}

void train_logprobs(struct train *t, const struct weights *w, const int32_t *targets, const float *inv_temp,
                    float *logprob, float *entropy)
{
    struct train_head *h = &t->head;
    assert(w->dtype == t->dtype);
    targets_take(t, targets, inv_temp, logprob, entropy);
    for (int32_t i = 0; i < h->n; i += h->max_rows)
        chunk_logprobs(t, w, i, logprob, entropy);
}

// The chunk's share of dhidden and of the head's gradient; its logits become their own gradient, in place.
static void chunk_backward(struct train *t, const struct weights *w, int32_t first, const float *dlogprob,
                           const float *dentropy, float *grads)
{
    struct train_head *h = &t->head;
    int64_t C = t->c.hidden, V = t->c.vocab;
    int32_t m = chunk_rows(h, first);
    for (int32_t i = first; i < first + m; i++) {
        h->dlogprob[i] = dlogprob[h->rows[i]];
        h->dentropy[i] = dentropy ? dentropy[h->rows[i]] : 0;
    }
    chunk_logits(t, w, first);
    t->d->k->logprob_grad(t->d, m, V, h->logits, V, h->inv_temp + first, h->targets + first, h->lse + first,
                          h->dlogprob + first, dentropy ? h->entropy + first : NULL,
                          dentropy ? h->dentropy + first : NULL);
    struct rows dlogits = linear_rows(t->d, w->dtype, m, V, h->logits, V, h->logits, 2 * V);
    struct rows hidden = linear_rows(t->d, w->dtype, m, C, h->picked, C, h->picked, 2 * C);
    linear_grad_w(t->d, &w->head, w->dtype, m, dlogits, hidden, grads);
    linear_grad_x(t->d, &w->head, m, dlogits, false, h->picked, C);
    h->in_buffer = -1;
    t->d->k->embed_grad(t->d, C, m, h->rows + first, h->picked, t->dhidden); // rows are distinct: a scatter
}

void train_head_backward(struct train *t, const struct weights *w, const float *dlogprob,
                         const float *dentropy, float *grads)
{
    struct train_head *h = &t->head;
    assert(!dentropy || h->have_entropy);
    device_mark(t->d, (int32_t)t->c.n_layers, "head");
    array_zero(t->dhidden, t->n_rows * t->c.hidden);
    for (int32_t i = 0; i < h->n; i += h->max_rows)
        chunk_backward(t, w, i, dlogprob, dentropy, grads);
}

bool train_objective_grad(struct train *t, const struct weights *w, const int32_t *targets,
                          const float *inv_temp, const struct train_objective *o, float *logprob,
                          float *entropy, float *grads)
{
    struct train_head *h = &t->head;
    bool any = false;
    assert(w->train && w->dtype == t->dtype && (entropy || !o->dentropy));
    targets_take(t, targets, inv_temp, logprob, entropy);
    t->stage = TRAIN_HEAD;
    device_mark(t->d, (int32_t)t->c.n_layers, "head");
    array_zero(t->dhidden, t->n_rows * t->c.hidden);
    for (int32_t i = 0, row = 0; row < t->n_rows; i += h->max_rows) {
        int32_t m = chunk_rows(h, i), end = i + m < h->n ? h->rows[i + m] : t->n_rows;
        chunk_logprobs(t, w, i, logprob, entropy);
        // Rows whose derivatives are all zero add exactly nothing.
        if (o->differentiate(o->ctx, row, end)) {
            chunk_backward(t, w, i, o->dlogprob, o->dentropy, grads);
            any = true;
        }
        row = end;
    }
    return any;
}
