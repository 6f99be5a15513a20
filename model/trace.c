// Traces: see trace.h. Runs on the thread that owns the weights' device, which is observed meanwhile.
#include "model/trace.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "kernels/observe.h"
#include "model/train.h"

#define LOGIT_ROWS 64 // computed together

// Digests go row by row, all outputs of a row together: calls that split the same rows differently fold to the same digest.
static uint64_t fold(uint64_t digest, const struct op_call *c)
{
    int64_t rows = 0;
    for (int32_t i = 0; i < c->n_outputs; i++)
        rows = c->outputs[i].rows > rows ? c->outputs[i].rows : rows;
    for (int64_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < c->n_outputs; i++) {
            const struct op_output *o = &c->outputs[i];
            if (r < o->rows)
                digest = hash64_seed((const char *)o->p + (size_t)r * o->stride_bytes, o->row_bytes, digest);
        }
    return digest;
}

static struct trace_op *add(struct trace *t, int32_t layer, const char *block, const char *op)
{
    if (t->n_ops == t->cap_ops) {
        t->cap_ops = t->cap_ops ? 2 * t->cap_ops : 256;
        t->ops = mem_grow(t->ops, (size_t)t->cap_ops, sizeof *t->ops);
    }
    t->ops[t->n_ops] = (struct trace_op){.layer = layer, .block = block, .op = op};
    return &t->ops[t->n_ops++];
}

static void see(void *ctx, const struct op_call *c)
{
    struct trace *t = ctx;
    struct trace_op *same = NULL;
    int32_t nth = 0;
    if (c->n_outputs == 0)
        return;
    for (int32_t i = t->n_ops - 1; i >= 0 && t->ops[i].layer == c->layer; i--)
        if (!strcmp(t->ops[i].op, c->name) && !strcmp(t->ops[i].block, c->block)) {
            same = same ? same : &t->ops[i];
            nth++;
        }
    if (!same || strcmp(c->block, "head") != 0) {
        same = add(t, c->layer, c->block, c->name);
        same->nth = nth;
    }
    same->digest = fold(same->digest, c);
}

static void begin(struct trace *t, int32_t n)
{
    *t = (struct trace){.n = n, .logprobs = mem_must((size_t)n, sizeof *t->logprobs)};
}

// The numbers that everything was for have an entry of their own, however an op handed them out.
static void end(struct trace *t, const struct weights *w)
{
    struct trace_op *op = add(t, (int32_t)w->c.n_layers, "head", "logprobs");
    op->digest = hash64(t->logprobs, (size_t)t->n * sizeof *t->logprobs);
}

void trace_done(struct trace *t)
{
    free(t->ops);
    free(t->logprobs);
    *t = (struct trace){0};
}

static enum status engine_logprobs(const struct weights *w, int32_t rows, const int32_t *ids,
                                   const float *hidden, float *logprobs, struct arena *step,
                                   struct error *err)
{
    int64_t V = w->c.vocab, C = w->c.hidden;
    float inv_temp[LOGIT_ROWS], lse[LOGIT_ROWS];
    float *logits = arena_alloc(step, (size_t)(LOGIT_ROWS * V) * sizeof(float));
    if (!logits)
        return error_set(err, STATUS_NOMEM, "no memory for %d rows of logits", LOGIT_ROWS);
    for (int i = 0; i < LOGIT_ROWS; i++)
        inv_temp[i] = 1;
    for (int32_t i = 0, m; i < rows; i += m) {
        m = rows - i < LOGIT_ROWS ? rows - i : LOGIT_ROWS;
        model_logits(w, m, hidden + i * C, logits);
        w->d->k->logprob(w->d, m, V, logits, V, inv_temp, ids + i + 1, logprobs + i + 1, lse, NULL);
    }
    return STATUS_OK;
}

enum status trace_engine(const struct weights *w, enum dtype kv_dtype, int32_t n, const int32_t *ids,
                         struct trace *ret, struct error *err)
{
    int32_t rows = n - 1, n_pages = (rows + ATTN_BLOCK - 1) / ATTN_BLOCK;
    struct kv *kv = NULL;
    struct arena step;
    struct trace t;
    assert(n >= 2 && rows <= w->c.max_position);
    enum status rc = kv_open(w->d, &w->c, kv_dtype, n_pages, ATTN_BLOCK, &kv, err);
    if (rc)
        return rc;
    int32_t *pos = mem_must((size_t)rows, sizeof *pos), *pages = mem_must((size_t)n_pages, sizeof *pages);
    for (int32_t i = 0; i < rows; i++)
        pos[i] = i;
    for (int32_t i = 0; i < n_pages; i++)
        pages[i] = i;
    const struct attn_seq seq = {.row0 = 0, .n_rows = rows, .pos0 = 0, .pages = pages};
    const struct batch b = {.n_rows = rows, .n_seqs = 1, .ids = ids, .pos = pos, .seqs = &seq};
    begin(&t, n);
    const struct observer o = {.ctx = &t, .after = see};
    arena_init(&step, 0);
    float *hidden = arena_alloc(&step, (size_t)(rows * w->c.hidden) * sizeof(float));
    const struct observer *before = w->d->observer;
    device_observe(w->d, &o);
    rc = hidden ? model_forward(w, kv, &b, &step, hidden, err)
                : error_set(err, STATUS_NOMEM, "no memory to trace %d rows", rows);
    if (!rc)
        rc = engine_logprobs(w, rows, ids, hidden, t.logprobs, &step, err);
    device_observe(w->d, before);
    end(&t, w);
    arena_done(&step);
    free(pages);
    free(pos);
    kv_close(kv);
    if (rc)
        trace_done(&t);
    else
        *ret = t;
    return rc;
}

void trace_train(struct train *train, const struct weights *w, int32_t n, const int32_t *ids,
                 struct trace *ret)
{
    int32_t rows = n - 1;
    assert(n >= 2 && rows <= train->max_tokens && train->d == w->d);
    int32_t *pos = mem_must((size_t)rows, sizeof *pos);
    float *inv_temp = mem_must((size_t)rows, sizeof *inv_temp);
    for (int32_t i = 0; i < rows; i++) {
        pos[i] = i;
        inv_temp[i] = 1;
    }
    const struct attn_seq seq = {.row0 = 0, .n_rows = rows};
    const struct batch b = {.n_rows = rows, .n_seqs = 1, .ids = ids, .pos = pos, .seqs = &seq};
    struct trace t;
    begin(&t, n);
    const struct observer o = {.ctx = &t, .after = see};
    const struct observer *before = w->d->observer;
    device_observe(w->d, &o);
    train_forward(train, w, &b);
    train_logprobs(train, w, ids + 1, inv_temp, t.logprobs + 1, NULL);
    device_observe(w->d, before);
    end(&t, w);
    free(inv_temp);
    free(pos);
    *ret = t;
}
