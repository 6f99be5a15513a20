// The forward pass of the engine, prefill and decode alike, and the pieces the trainer shares with it: embedding, walk over
// the blocks of a layer, final norm, vocabulary logits. Runs on the thread that owns weights and kv; no state.
#include "model/forward.h"

#include <assert.h>

#include "kernels/observe.h"
#include "model/array.h"
#include "model/kv.h"

int64_t layer_saved_floats(const struct layer *y, const struct model_config *c, enum dtype dtype, int64_t t)
{
    int64_t n = 0;
    for (int32_t i = 0; i < y->n_blocks; i++)
        n += y->blocks[i]->saved(c, dtype, t);
    return n;
}

void layer_forward(const struct block_run *r, const struct layer *y, float *x, float *saved, float *scratch)
{
    struct block_run run = *r;
    for (int32_t i = 0; i < y->n_blocks; i++) {
        run.want_output = r->want_output || i + 1 < y->n_blocks;
        device_mark(r->d, r->d->mark_layer, y->blocks[i]->name);
        y->blocks[i]->forward(&run, y->weights[i], x, saved, scratch);
        saved += y->blocks[i]->saved(r->c, r->dtype, r->t);
    }
}

void embedding_forward(const struct weights *w, int64_t t, const int32_t *ids, float *y)
{
    device_mark(w->d, -1, "embedding");
    const struct kernels *k = w->d->k;
    if (!w->train) {
        k->embed(w->d, weights_embedding_dtype(w->dtype), w->embedding, w->c.hidden, t, ids, y);
        return;
    }
    k->embed(w->d, DT_F32, w->room.master + w->embedding_param->offset, w->c.hidden, t, ids, y);
    if (w->dtype != DT_F32) // what the engine reads out of its table
        k->round_bf16(w->d, t * w->c.hidden, y);
}

void embedding_backward(const struct weights *w, int64_t t, const int32_t *ids, const float *dy, float *grads)
{
    device_mark(w->d, -1, "embedding");
    w->d->k->embed_grad(w->d, w->c.hidden, t, ids, dy, grads + w->embedding_param->offset);
}

void final_norm_forward(const struct weights *w, int64_t t, const float *x, float *hidden)
{
    int64_t C = w->c.hidden;
    device_mark(w->d, (int32_t)w->c.n_layers, "head");
    w->d->k->rmsnorm(w->d, t, C, x, C, w->final_norm, w->c.rms_eps, DT_F32, hidden, C, NULL);
}

// The engine needs no block's `saved` once the block is done: the largest one serves all.
static void working_memory(const struct weights *w, int64_t t, int64_t *ret_saved, int64_t *ret_scratch)
{
    *ret_saved = *ret_scratch = 0;
    for (int32_t i = 0; i < w->c.n_layers; i++)
        for (int32_t k = 0; k < w->layers[i].n_blocks; k++) {
            const struct block *b = w->layers[i].blocks[k];
            int64_t saved = b->saved(&w->c, w->dtype, t), scratch = b->scratch(&w->c, w->dtype, t);
            *ret_saved = saved > *ret_saved ? saved : *ret_saved;
            *ret_scratch = scratch > *ret_scratch ? scratch : *ret_scratch;
        }
}

static void batch_check(const struct weights *w, const struct batch *b)
{
    int32_t row = 0;
    for (int32_t i = 0; i < b->n_seqs; i++) {
        assert(b->seqs[i].row0 == row && b->seqs[i].n_rows > 0 && b->seqs[i].pos0 >= 0);
        row += b->seqs[i].n_rows;
    }
    assert(row == b->n_rows);
    for (int32_t i = 0; i < b->n_rows; i++) {
        assert(b->ids[i] >= 0 && b->ids[i] < w->c.vocab);
        assert(b->pos[i] >= 0 && b->pos[i] < w->c.max_position);
    }
}

enum status model_forward(const struct weights *w, struct kv *kv, const struct batch *b, struct arena *step,
                          float *hidden, struct error *err)
{
    int64_t saved_floats, scratch_floats;
    if (b->n_rows == 0)
        return STATUS_OK;
    batch_check(w, b);
    working_memory(w, b->n_rows, &saved_floats, &scratch_floats);
    float *saved = arena_alloc(step, (size_t)(saved_floats + scratch_floats) * sizeof(float));
    if (!saved)
        return error_set(err, STATUS_NOMEM, "a forward pass of %d rows needs %lld MiB of step memory",
                         (int)b->n_rows, (long long)((saved_floats + scratch_floats) >> 18));
    float *scratch = saved + saved_floats; // a carve's size is a multiple of 64 bytes
    struct block_run r = {.d = w->d,
                          .c = &w->c,
                          .rope = &w->rope,
                          .t = b->n_rows,
                          .pos = b->pos,
                          .n_seqs = b->n_seqs,
                          .seqs = b->seqs,
                          .n_spans = 1,
                          .span_end = &b->n_seqs,
                          .dtype = w->dtype,
                          .want_output = true};
    embedding_forward(w, b->n_rows, b->ids, hidden);
    for (int32_t i = 0; i < w->c.n_layers; i++) {
        const struct layer *y = &w->layers[i];
        r.cache = kv_layer(kv, i);
        for (int32_t k = 0; k < y->n_blocks; k++) {
            device_mark(w->d, i, y->blocks[k]->name);
            y->blocks[k]->forward(&r, y->weights[k], hidden, saved, scratch);
        }
    }
    final_norm_forward(w, b->n_rows, hidden, hidden);
    return STATUS_OK;
}

void model_logits(const struct weights *w, int32_t rows, const float *hidden, float *logits)
{
    device_mark(w->d, (int32_t)w->c.n_layers, "head");
    linear_forward(w->d, &w->head, rows, rows_f32(hidden, w->c.hidden), false, logits, w->c.vocab);
}
