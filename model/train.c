// The trainer's side of the model: a forward pass that keeps what the backward pass needs, and the backward pass. One thread
// owns a train object; all its memory is taken when it opens. Invariants in train.h.
#include "model/train.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/observe.h"
#include "model/arch/arch.h"
#include "model/array.h"

#define PAGE_TOKENS ATTN_BLOCK

static int64_t pages_for(int64_t rows)
{
    return (rows + PAGE_TOKENS - 1) / PAGE_TOKENS;
}

// Pages that a tree of so many rows may have, and that a train object has: twice those of one longest sequence, so that most batches
// are one span and any sequence fits.
static int32_t pages_most(int64_t rows)
{
    return (int32_t)(2 * pages_for(rows) + 16);
}

void train_tree_add(struct train_tree *tree, int32_t n_rows, int32_t pos0)
{
    tree->rows += n_rows;
    tree->pages += pages_for(n_rows);
    tree->shared += pos0;
}

bool train_tree_fits(const struct train_tree *tree)
{
    return tree->pages <= pages_most(tree->rows) && tree->shared <= TRAIN_SHARED_MAX * tree->rows;
}

// ---- opening --------------------------------------------------------------------------------------------------

// The largest layer's saved, and the working memory of the largest block, forward or backward; in floats.
static void sizes_find(const struct train *t, int64_t *ret_saved, int64_t *ret_scratch)
{
    const struct arch *arch = arch_find(t->c.arch);
    *ret_saved = *ret_scratch = 0;
    for (int32_t i = 0; i < t->c.n_layers; i++) {
        int64_t saved = 0;
        for (const struct block *const *b = arch->blocks(&t->c, i); *b; b++) {
            int64_t forward = (*b)->scratch(&t->c, t->dtype, t->max_tokens),
                    grad = (*b)->grad_scratch(&t->c, t->dtype, t->max_tokens);
            int64_t most = forward > grad ? forward : grad;
            *ret_scratch = most > *ret_scratch ? most : *ret_scratch;
            saved += (*b)->saved(&t->c, t->dtype, t->max_tokens);
        }
        *ret_saved = saved > *ret_saved ? saved : *ret_saved;
    }
}

// Lays out every float array; with v->base NULL it only counts.
static void arrays_carve(struct train *t, struct carve *v)
{
    int64_t stream = (int64_t)t->max_tokens * t->c.hidden, saved, scratch;
    sizes_find(t, &saved, &scratch);
    t->saved_floats = (saved + 15) / 16 * 16;
    t->x = carve_take(v, stream);
    t->hidden = carve_take(v, stream);
    t->dhidden = carve_take(v, stream);
    t->inputs = t->recompute ? carve_take(v, stream * t->c.n_layers) : NULL;
    t->saved = carve_take(v, t->saved_floats * (t->recompute ? 1 : t->c.n_layers));
    t->scratch = carve_take(v, scratch);
    train_head_carve(t, v);
}

enum status train_open(struct device *d, const struct model_config *c, const struct layout *l,
                       enum dtype weights_dtype, enum dtype kv_dtype, int32_t max_tokens, bool recompute,
                       struct train **ret, struct error *err)
{
    if (!arch_find(c->arch))
        return error_set(err, STATUS_UNSUPPORTED, "architecture \"%.40s\" is not implemented (%s are)",
                         c->arch, arch_names());
    if (max_tokens < 1)
        return error_set(err, STATUS_RANGE, "a micro-batch of %d tokens: must be at least 1",
                         (int)max_tokens);
    struct train *t = mem_must(1, sizeof(*t));
    *t = (struct train){.d = d,
                        .c = *c,
                        .n_grads = l->total,
                        .dtype = weights_dtype,
                        .recompute = recompute,
                        .max_tokens = max_tokens};
    struct carve count = {0};
    arrays_carve(t, &count);
    t->n_pages = pages_most(max_tokens);
    struct model_config one_layer = *c;
    one_layer.n_layers = 1;
    enum status rc = kv_open(d, &one_layer, kv_dtype, t->n_pages, PAGE_TOKENS, &t->kv, err);
    if (!rc) {
        struct carve real = {.base = t->data = device_alloc(d, (size_t)count.used * sizeof(float))};
        if (t->data)
            arrays_carve(t, &real);
        else
            rc = error_set(
                err, STATUS_NOMEM,
                "no memory for the activations of %d tokens (%lld MiB); lower trainer.micro_batch_tokens%s",
                (int)max_tokens, (long long)(count.used >> 18), recompute ? "" : " or set trainer.recompute");
    }
    if (rc) {
        train_close(t);
        return rc;
    }
    size_t n = (size_t)max_tokens;
    t->ids = mem_must(n, sizeof(t->ids[0]));
    t->pos = mem_must(n, sizeof(t->pos[0]));
    t->seqs = mem_must(n, sizeof(t->seqs[0]));
    t->span_end = mem_must(n, sizeof(t->span_end[0]));
    t->head.rows = mem_must(n, sizeof(t->head.rows[0]));
    t->head.targets = mem_must(n, sizeof(t->head.targets[0]));
    t->tables = mem_must(n * TRAIN_TABLE, sizeof(t->tables[0]));
    *ret = t;
    return STATUS_OK;
}

size_t train_bytes(const struct model_config *c, enum dtype weights_dtype, int32_t max_tokens, bool recompute)
{
    struct train t = {.c = *c, .dtype = weights_dtype, .recompute = recompute, .max_tokens = max_tokens};
    struct carve count = {0};
    if (!arch_find(c->arch))
        return 0;
    arrays_carve(&t, &count);
    return (size_t)count.used * sizeof(float);
}

void train_close(struct train *t)
{
    if (!t)
        return;
    kv_close(t->kv);
    device_free(t->d, t->data);
    free(t->ids);
    free(t->pos);
    free(t->seqs);
    free(t->span_end);
    free(t->head.rows);
    free(t->head.targets);
    free(t->tables);
    free(t);
}

// ---- forward --------------------------------------------------------------------------------------------------

// Sequences of the tree that begins at i; *ret_tree is its size.
static int32_t tree_measure(const struct batch *b, int32_t i, struct train_tree *ret_tree)
{
    const struct attn_seq *root = &b->seqs[i];
    *ret_tree = (struct train_tree){0};
    assert(root->pos0 == 0);
    for (int32_t first = i; i < b->n_seqs && (i == first || b->seqs[i].pos0 > 0); i++) {
        assert(b->seqs[i].n_rows > 0 && b->seqs[i].pos0 % PAGE_TOKENS == 0 &&
               b->seqs[i].pos0 <= root->n_rows);
        train_tree_add(ret_tree, b->seqs[i].n_rows, b->seqs[i].pos0);
    }
    assert(train_tree_fits(ret_tree));
    return (int32_t)(b->seqs + i - root);
}

// Gives the batch's sequences transient pages: a branch has its root's, then its own. A span ends where the pages do.
static void batch_pages(struct train *t, const struct batch *b)
{
    int32_t page = 0, *table = t->tables;
    for (int32_t i = 0, n; i < b->n_seqs; i += n) {
        struct train_tree tree;
        n = tree_measure(b, i, &tree);
        if (page + tree.pages > t->n_pages) {
            t->span_end[t->n_spans++] = i;
            page = 0;
        }
        const int32_t *root = table;
        for (int32_t k = i; k < i + n; k++) {
            int64_t shared = pages_for(b->seqs[k].pos0), own = pages_for(b->seqs[k].n_rows);
            t->seqs[k] = b->seqs[k];
            t->seqs[k].pages = table;
            for (int64_t p = 0; p < shared; p++)
                *table++ = root[p];
            for (int64_t p = 0; p < own; p++)
                *table++ = page++;
        }
    }
    assert(table <= t->tables + (int64_t)t->max_tokens * TRAIN_TABLE);
    if (b->n_seqs)
        t->span_end[t->n_spans++] = b->n_seqs;
}

static void batch_copy(struct train *t, const struct batch *b)
{
    int32_t row = 0;
    assert(b->n_rows >= 0 && b->n_rows <= t->max_tokens && b->n_seqs <= b->n_rows);
    t->n_rows = b->n_rows;
    t->n_seqs = b->n_seqs;
    t->n_spans = 0;
    for (int32_t i = 0; i < b->n_seqs; i++) {
        assert(b->seqs[i].row0 == row);
        row += b->seqs[i].n_rows;
    }
    assert(row == b->n_rows);
    batch_pages(t, b);
    for (int32_t i = 0; i < b->n_rows; i++) {
        assert(b->ids[i] >= 0 && b->ids[i] < t->c.vocab && b->pos[i] >= 0 && b->pos[i] < t->c.max_position);
        t->ids[i] = b->ids[i];
        t->pos[i] = b->pos[i];
    }
}

static struct block_run run_of(const struct train *t, const struct weights *w)
{
    return (struct block_run){.d = t->d,
                              .c = &t->c,
                              .rope = &w->rope,
                              .t = t->n_rows,
                              .pos = t->pos,
                              .n_seqs = t->n_seqs,
                              .seqs = t->seqs,
                              .cache = kv_layer(t->kv, 0),
                              .n_spans = t->n_spans,
                              .span_end = t->span_end,
                              .dtype = w->dtype,
                              .keep = true,
                              .want_output = true};
}

static float *layer_saved(const struct train *t, int32_t layer)
{
    return t->saved + (t->recompute ? 0 : layer * t->saved_floats);
}

static float *layer_input(const struct train *t, int32_t layer)
{
    return t->inputs + (int64_t)layer * t->max_tokens * t->c.hidden;
}

void train_forward(struct train *t, const struct weights *w, const struct batch *b)
{
    assert(w->dtype == t->dtype);
    batch_copy(t, b);
    t->stage = TRAIN_FORWARD;
    t->head.n = 0;
    t->head.in_buffer = -1;
    if (t->n_rows == 0)
        return;
    struct block_run r = run_of(t, w);
    embedding_forward(w, t->n_rows, t->ids, t->x);
    for (int32_t i = 0; i < t->c.n_layers; i++) {
        if (t->recompute)
            array_copy(layer_input(t, i), t->x, t->n_rows * t->c.hidden);
        device_mark(t->d, i, "");
        layer_forward(&r, &w->layers[i], t->x, layer_saved(t, i), t->scratch);
    }
    final_norm_forward(w, t->n_rows, t->x, t->hidden);
}

// ---- backward -------------------------------------------------------------------------------------------------

static void layer_backward(struct train *t, const struct weights *w, int32_t layer, float *dx, float *grads)
{
    const struct layer *y = &w->layers[layer];
    struct block_run r = run_of(t, w);
    float *saved = layer_saved(t, layer);
    device_mark(t->d, layer, "");
    if (t->recompute) {
        r.want_output = false;
        layer_forward(&r, y, layer_input(t, layer), saved, t->scratch);
    }
    saved += layer_saved_floats(y, &t->c, t->dtype, t->n_rows);
    for (int32_t i = y->n_blocks - 1; i >= 0; i--) {
        saved -= y->blocks[i]->saved(&t->c, t->dtype, t->n_rows);
        device_mark(t->d, layer, y->blocks[i]->name);
        y->blocks[i]->backward(&r, y->weights[i], saved, t->scratch, dx, grads);
    }
}

void train_backward_layers(struct train *t, const struct weights *w, float *grads)
{
    assert(t->stage == TRAIN_HEAD && w->train && w->dtype == t->dtype);
    t->stage = TRAIN_IDLE;
    if (t->n_rows == 0 || t->head.n == 0)
        return;
    int64_t C = t->c.hidden;
    float *dx = t->hidden;
    device_mark(t->d, (int32_t)t->c.n_layers, "head");
    t->d->k->rmsnorm_grad(t->d, t->n_rows, C, t->x, C, w->final_norm, t->c.rms_eps, t->dhidden, C, false, dx,
                          C, grads + w->final_norm_param->offset);
    for (int32_t i = (int32_t)t->c.n_layers - 1; i >= 0; i--)
        layer_backward(t, w, i, dx, grads);
    embedding_backward(w, t->n_rows, t->ids, dx, grads);
}

void train_backward(struct train *t, const struct weights *w, const float *dlogprob, const float *dentropy,
                    float *grads)
{
    assert(t->stage == TRAIN_LOGPROBS && w->train && w->dtype == t->dtype);
    t->stage = TRAIN_HEAD;
    if (t->n_rows > 0 && t->head.n > 0)
        train_head_backward(t, w, dlogprob, dentropy, grads);
    train_backward_layers(t, w, grads);
}
