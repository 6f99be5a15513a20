// The flat parameter vector: which tensors a model has, in which order, and random values for them. Any thread; no state.
//
// Invariants
//   1. Order: embedding, the blocks of each layer as their params functions declare them, final norm, head.
//   2. Offsets are multiples of LAYOUT_ALIGN floats; the gaps stay 0 in weights, gradients and moments.
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/arch/arch.h"
#include "model/block.h"
#include "model/config.h"

#define LAYOUT_ALIGN      16
#define LAYOUT_FLOATS_MAX ((int64_t)1 << 40)

struct layout_builder {
    struct layout l;
    int32_t cap;
    bool overflow;
};

void layout_add(struct layout_builder *b, enum param_kind kind, int32_t layer, const char *fmt, int64_t rows,
                int64_t cols)
{
    struct layout *l = &b->l;
    if (l->n == b->cap) {
        b->cap = b->cap ? b->cap * 2 : 64;
        l->params = mem_grow(l->params, (size_t)b->cap, sizeof(l->params[0]));
    }
    struct param *p = &l->params[l->n++];
    *p = (struct param){
        .rows = rows ? rows : 1, .cols = cols, .offset = l->total, .kind = kind, .layer = layer};
    p->vector = rows == 0;
    p->fp8 = kind == PARAM_MATRIX;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    int len = snprintf(p->name, sizeof(p->name), fmt, layer);
#pragma GCC diagnostic pop
    assert(len > 0 && (size_t)len < sizeof(p->name));
    int64_t n = p->rows * p->cols; // at most 2^24 * 2^20 (config.c): no overflow
    l->n_parameters += n;
    l->total += (n + LAYOUT_ALIGN - 1) / LAYOUT_ALIGN * LAYOUT_ALIGN;
    b->overflow = b->overflow || l->total > LAYOUT_FLOATS_MAX;
}

enum status layout_open(const struct model_config *c, struct layout *ret, struct error *err)
{
    const struct arch *arch = arch_find(c->arch);
    if (!arch)
        return error_set(err, STATUS_UNSUPPORTED, "architecture \"%.40s\" is not implemented (%s are)",
                         c->arch, arch_names());
    struct layout_builder b = {0};
    layout_add(&b, PARAM_EMBEDDING, -1, "model.embed_tokens.weight", c->vocab, c->hidden);
    for (int32_t i = 0; i < c->n_layers && !b.overflow; i++)
        for (const struct block *const *k = arch->blocks(c, i); *k; k++)
            (*k)->params(&b, c, i);
    layout_add(&b, PARAM_NORM, -1, "model.norm.weight", 0, c->hidden);
    if (!c->tie_embeddings)
        layout_add(&b, PARAM_HEAD, -1, "lm_head.weight", c->vocab, c->hidden);
    if (b.overflow) {
        layout_done(&b.l);
        return error_set(err, STATUS_LIMIT, "the model has more than %lld parameters",
                         (long long)LAYOUT_FLOATS_MAX);
    }
    *ret = b.l;
    return STATUS_OK;
}

void layout_done(struct layout *l)
{
    if (!l)
        return;
    free(l->params);
    *l = (struct layout){0};
}

const struct param *layout_find(const struct layout *l, const char *name)
{
    for (int32_t i = 0; i < l->n; i++)
        if (strcmp(l->params[i].name, name) == 0)
            return &l->params[i];
    return NULL;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

// Matrices that write into the residual stream: their variance is divided by the number of such writes (Radford et al.
// 2019), so that the stream's variance does not grow with depth.
static bool writes_residual(const struct param *p)
{
    return ends_with(p->name, ".o_proj.weight") || ends_with(p->name, ".down_proj.weight");
}

void layout_init_random(const struct layout *l, const struct model_config *c, uint64_t seed, float *master)
{
    memset(master, 0, (size_t)l->total * sizeof(float));
    for (int32_t i = 0; i < l->n; i++) {
        const struct param *p = &l->params[i];
        int64_t n = p->rows * p->cols;
        double std = 0;
        if (p->kind == PARAM_NORM)
            for (int64_t k = 0; k < n; k++)
                master[p->offset + k] = 1;
        if (p->kind == PARAM_EMBEDDING || p->kind == PARAM_HEAD)
            std = c->init_std;
        if (p->kind == PARAM_MATRIX)
            std = 1 / sqrt((double)p->cols);
        if (p->kind == PARAM_MATRIX && writes_residual(p))
            std /= sqrt(2 * (double)c->n_layers);
        if (std == 0)
            continue;
        // One stream per tensor name: the values of a tensor do not depend on what else the model has.
        struct rng r;
        rng_init(&r, seed, hash64(p->name, strlen(p->name)));
        for (int64_t k = 0; k < n; k++)
            master[p->offset + k] = (float)std * rng_normal(&r);
    }
}
