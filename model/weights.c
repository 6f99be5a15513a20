// Packed weights of one version: opening, filling from the flat vector or from a weights file. The thread that opened a
// weights object owns it.
//
// Invariants
//   1. Everything a forward pass reads is in one device allocation plus the rotary table; weights_set and weights_load
//      (loading.c) replace all of it or, on failure, nothing.
//   2. weights_set(master) and weights_load(file of weights_file_write(master)) leave the same bytes.
//   3. Opened for training they hold only the vectors; matrices and embedding are read out of the master (struct pack_room).
#include "model/weights.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/arch/arch.h"
#include "model/parts.h"
#include "model/plan.h"

// ---- binding ----------------------------------------------------------------------------------------------------------

struct binder {
    struct weights *w;
    char *base; // NULL in the counting pass
    size_t used;
};

static void *binder_take(struct binder *b, size_t bytes)
{
    void *p = b->base ? b->base + b->used : NULL;
    b->used += (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    return p;
}

static const struct param *weights_param(const struct weights *w, int32_t layer, const char *fmt)
{
    char name[96];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(name, sizeof(name), fmt, layer);
#pragma GCC diagnostic pop
    const struct param *p = layout_find(&w->l, name);
    assert(p); // blocks bind what they declared
    return p;
}

void bind_vector(struct binder *b, int32_t layer, const char *fmt, float **ret,
                 const struct param **ret_param)
{
    struct weights *w = b->w;
    const struct param *p = weights_param(w, layer, fmt);
    *ret_param = p;
    *ret = binder_take(b, (size_t)p->cols * sizeof(float));
    if (!b->base)
        return;
    w->vectors = mem_grow(w->vectors, (size_t)w->n_vectors + 1, sizeof(w->vectors[0]));
    w->vectors[w->n_vectors++] = (struct bound_vector){p, *ret};
}

// Matrices are packed as one when their values follow one another in the flat vector (and so in gradients and files),
// and, in FP8, when no block of 128 rows straddles two of them.
static bool can_fuse(const struct linear *l, enum dtype dtype)
{
    for (int i = 0; i + 1 < l->n_params; i++) {
        const struct param *p = l->params[i];
        if (l->params[i + 1]->offset != p->offset + p->rows * p->cols ||
            (dtype == DT_FP8 && p->rows % FP8_BLOCK))
            return false;
    }
    return true;
}

static void part_take(struct binder *b, struct linear *l, int i, int64_t n, enum dtype dtype)
{
    struct device *d = b->w->d;
    l->fwd[i] = (struct gemm_weight){.dtype = dtype, .n = n, .k = l->k};
    if (b->w->train) {
        l->room = &b->w->room;
        for (int t = 0; t < 2; t++) {
            size_t bytes = d->k->weight_bytes(dtype, t ? l->k : n, t ? n : l->k);
            struct pack_slot *slot = &l->room->slot[t];
            slot->bytes = bytes > slot->bytes ? bytes : slot->bytes;
        }
        return;
    }
    l->fwd[i].data = binder_take(b, d->k->weight_bytes(dtype, n, l->k));
    if (dtype == DT_FP8) {
        int64_t blocks = (n + FP8_BLOCK - 1) / FP8_BLOCK * ((l->k + FP8_BLOCK - 1) / FP8_BLOCK);
        l->fwd[i].scales = binder_take(b, (size_t)blocks * sizeof(float));
    }
}

void bind_linear(struct binder *b, int32_t layer, int n, const char *const *fmts,
                 const char *const *bias_fmts, struct linear *ret)
{
    struct weights *w = b->w;
    assert(n >= 1 && n <= LINEAR_PARTS);
    *ret = (struct linear){.n_params = n};
    for (int i = 0; i < n; i++) {
        ret->params[i] = weights_param(w, layer, fmts[i]);
        ret->biases[i] = bias_fmts ? weights_param(w, layer, bias_fmts[i]) : NULL;
        ret->n += ret->params[i]->rows;
        assert(ret->params[i]->cols == ret->params[0]->cols);
    }
    ret->k = ret->params[0]->cols;
    enum dtype dtype = param_dtype(ret->params[0], w->dtype);
    ret->n_parts = can_fuse(ret, dtype) ? 1 : n;
    for (int i = 0; i < ret->n_parts; i++)
        part_take(b, ret, i, ret->n_parts == 1 ? ret->n : ret->params[i]->rows, dtype);
    if (bias_fmts)
        ret->bias = binder_take(b, (size_t)ret->n * sizeof(float));
    if (!b->base)
        return;
    w->linears = mem_grow(w->linears, (size_t)w->n_linears + 1, sizeof(w->linears[0]));
    w->linears[w->n_linears++] = ret;
    for (int64_t i = 0, n0 = 0; i < n && bias_fmts; n0 += ret->params[i++]->rows) {
        w->vectors = mem_grow(w->vectors, (size_t)w->n_vectors + 1, sizeof(w->vectors[0]));
        w->vectors[w->n_vectors++] = (struct bound_vector){ret->biases[i], ret->bias + n0};
    }
}

static void bind_all(struct weights *w, struct binder *b)
{
    static const char *const embedding[] = {"model.embed_tokens.weight"}, *const head[] = {"lm_head.weight"};
    w->embedding_param = weights_param(w, -1, embedding[0]);
    if (!w->train)
        w->embedding = binder_take(b, (size_t)(w->c.vocab * w->c.hidden) *
                                          dtype_bytes(weights_embedding_dtype(w->dtype)));
    for (int32_t i = 0; i < w->c.n_layers; i++)
        for (int32_t k = 0; k < w->layers[i].n_blocks; k++)
            w->layers[i].blocks[k]->bind(b, &w->c, i, w->layers[i].weights[k]);
    bind_vector(b, -1, "model.norm.weight", &w->final_norm, &w->final_norm_param);
    bind_linear(b, -1, 1, w->c.tie_embeddings ? embedding : head, NULL, &w->head);
    for (int t = 0; t < 2 && w->train; t++)
        w->room.slot[t].data = binder_take(b, w->room.slot[t].bytes);
}

static void layers_open(struct weights *w, const struct arch *arch)
{
    w->layers = mem_must((size_t)w->c.n_layers, sizeof(w->layers[0]));
    for (int32_t i = 0; i < w->c.n_layers; i++) {
        struct layer *y = &w->layers[i];
        y->blocks = arch->blocks(&w->c, i);
        while (y->blocks[y->n_blocks])
            y->n_blocks++;
        y->weights = mem_must((size_t)y->n_blocks, sizeof(y->weights[0]));
        for (int32_t k = 0; k < y->n_blocks; k++)
            y->weights[k] = mem_must(1, y->blocks[k]->weights_size);
    }
}

enum status weights_open(struct device *d, const struct model_config *c, const struct layout *l,
                         enum dtype dtype, bool train, struct weights **ret, struct error *err)
{
    const struct arch *arch = arch_find(c->arch);
    if (!arch)
        return error_set(err, STATUS_UNSUPPORTED, "architecture \"%.40s\" is not implemented (%s are)",
                         c->arch, arch_names());
    if (dtype == DT_FP8 && train)
        return error_set(err, STATUS_UNSUPPORTED,
                         "weights in FP8 have no backward pass; train in bf16 or f32");
    assert(dtype == DT_F32 || dtype == DT_BF16 || dtype == DT_FP8);
    struct weights *w = mem_must(1, sizeof(*w));
    w->d = d;
    w->c = *c;
    w->dtype = dtype;
    w->train = train;
    enum status rc = layout_open(c, &w->l, err);
    assert(rc || (w->l.total == l->total && w->l.n == l->n));
    if (!rc)
        rc = rope_open(d, c, &w->rope, err);
    if (!rc) {
        layers_open(w, arch);
        struct binder count = {.w = w};
        bind_all(w, &count);
        w->bytes = count.used;
        w->data = device_alloc(d, w->bytes);
        if (!w->data)
            rc = error_set(err, STATUS_NOMEM, "no memory for %zu MiB of packed weights", w->bytes >> 20);
    }
    if (!rc) {
        struct binder real = {.w = w, .base = w->data};
        bind_all(w, &real);
        assert(real.used == w->bytes);
        *ret = w;
    } else {
        weights_close(w);
    }
    return rc;
}

void weights_close(struct weights *w)
{
    if (!w)
        return;
    for (int32_t i = 0; w->layers && i < w->c.n_layers; i++) {
        for (int32_t k = 0; k < w->layers[i].n_blocks; k++)
            free(w->layers[i].weights[k]);
        free(w->layers[i].weights);
    }
    free(w->layers);
    free(w->linears);
    free(w->vectors);
    parts_free(w->parts);
    rope_close(w->d, &w->rope);
    device_free(w->d, w->data);
    layout_done(&w->l);
    free(w);
}

size_t weights_bytes(const struct weights *w)
{
    return w->bytes + rope_bytes(&w->c);
}

enum dtype weights_dtype(const struct weights *w)
{
    return w->dtype;
}

const struct model_config *weights_config(const struct weights *w)
{
    return &w->c;
}

void weights_bind(struct weights *w, struct device *d)
{
    assert(d->isa == w->d->isa); // packed layouts are a class's own
    w->d = d;
}

// ---- filling ------------------------------------------------------------------------------------------------------------
// Out of the flat vector; out of a file: loading.c.

// FP8 codes of n matrices of one part, one after the other, and their scales into the part.
static void part_quantize(const struct weights *w, const float *master, const struct linear *l, int first,
                          int n, uint8_t *codes)
{
    float *scales = l->fwd[first].scales;
    for (int i = first; i < first + n; i++) {
        const struct param *p = l->params[i];
        w->d->k->fp8_quantize(w->d, p->rows, p->cols, master + p->offset, codes, scales);
        codes += p->rows * p->cols;
        scales += param_scales(p);
    }
}

// codes: room for the FP8 codes of one linear.
static void linear_fill(struct weights *w, const float *master, struct linear *l, uint8_t *codes)
{
    const struct kernels *k = w->d->k;
    for (int i = 0; i < l->n_parts; i++) {
        struct gemm_weight *f = &l->fwd[i];
        if (f->dtype == DT_FP8) {
            part_quantize(w, master, l, i, l->n_parts == 1 ? l->n_params : 1, codes);
            k->weight_pack(w->d, DT_FP8, f->n, f->k, codes, DT_FP8, false, f->data);
        } else {
            k->weight_pack(w->d, f->dtype, f->n, f->k, master + l->params[i]->offset, DT_F32, false, f->data);
        }
    }
}

void weights_set(struct weights *w, const float *master)
{
    const struct kernels *k = w->d->k;
    for (int32_t i = 0; i < w->n_vectors; i++) {
        const struct bound_vector *v = &w->vectors[i];
        memcpy(v->data, master + v->param->offset, (size_t)v->param->cols * sizeof(float));
        if (w->dtype != DT_F32)
            k->round_bf16(w->d, v->param->cols, v->data);
    }
    if (w->train) {
        w->room.master = master;
        w->room.slot[0].linear = w->room.slot[1].linear = NULL;
        return;
    }
    const struct param *e = w->embedding_param;
    if (w->dtype != DT_F32)
        k->to_bf16(w->d, e->rows * e->cols, master + e->offset, w->embedding);
    else
        memcpy(w->embedding, master + e->offset, (size_t)(e->rows * e->cols) * sizeof(float));
    int64_t most = 0;
    for (int32_t i = 0; i < w->n_linears && w->dtype == DT_FP8; i++)
        if (w->linears[i]->fwd[0].dtype == DT_FP8 && w->linears[i]->n * w->linears[i]->k > most)
            most = w->linears[i]->n * w->linears[i]->k;
    uint8_t *codes = most ? mem_must((size_t)most, 1) : NULL;
    for (int32_t i = 0; i < w->n_linears; i++)
        linear_fill(w, master, w->linears[i], codes);
    free(codes);
}
