// Paged keys and values of all layers. One thread owns a kv.
//
// Invariants
//   1. Layer l's keys are n_pages pages one after the other; values likewise in a second block, FP8's scales in a third and fourth.
//   2. A page has the same number in every layer.
#include "model/kv.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"

struct kv {
    struct device *d;
    enum dtype dtype;
    int32_t n_layers, n_pages, page_tokens, n_kv, head_dim;
    size_t layer_bytes, layer_scales; // keys of one layer: bytes of numbers; scales (0 unless FP8)
    char *k, *v;
    float *k_scale, *v_scale; // DT_FP8
};

enum dtype kv_dtype_for(enum dtype weights)
{
    return weights == DT_BF16 ? DT_BF16 : DT_F32;
}

enum dtype kv_dtype_choose(enum kv_choice choice, enum dtype weights)
{
    static const enum dtype dtypes[] = {[KV_F32] = DT_F32, [KV_BF16] = DT_BF16, [KV_FP8] = DT_FP8};
    return choice == KV_AUTO ? kv_dtype_for(weights) : dtypes[choice];
}

void kv_numerics_id(const struct device *d, enum kv_choice choice, char *ret, size_t n)
{
    static const char *const suffix[] = {"", "/kv-f32", "/kv-bf16", "/kv-fp8"};
    snprintf(ret, n, "%s%s", d->numerics_id, suffix[choice]);
}

static size_t page_scales(const struct model_config *c, enum dtype dtype, int32_t page_tokens)
{
    return dtype == DT_FP8 ? (size_t)c->n_kv_heads * (size_t)page_tokens : 0;
}

size_t kv_page_bytes(const struct model_config *c, enum dtype dtype, int32_t page_tokens)
{
    size_t numbers = (size_t)c->n_kv_heads * (size_t)c->head_dim * (size_t)page_tokens * dtype_bytes(dtype);
    return 2 * (size_t)c->n_layers * (numbers + page_scales(c, dtype, page_tokens) * sizeof(float));
}

enum status kv_open(struct device *d, const struct model_config *c, enum dtype dtype, int32_t n_pages,
                    int32_t page_tokens, struct kv **ret, struct error *err)
{
    assert(dtype == DT_F32 || dtype == DT_BF16 || dtype == DT_FP8);
    if (n_pages < 1 || page_tokens < ATTN_BLOCK || page_tokens % ATTN_BLOCK)
        return error_set(err, STATUS_INVALID,
                         "KV cache of %d pages of %d tokens: pages must be multiples of %d tokens",
                         (int)n_pages, (int)page_tokens, ATTN_BLOCK);
    size_t half, layer = kv_page_bytes(c, dtype, page_tokens) / 2 / (size_t)c->n_layers;
    size_t scales = page_scales(c, dtype, page_tokens) * (size_t)n_pages;
    if (__builtin_mul_overflow(layer, (size_t)n_pages, &layer) ||
        __builtin_mul_overflow(layer, (size_t)c->n_layers, &half))
        return error_set(err, STATUS_RANGE, "KV cache of %d pages of %d tokens is too large", (int)n_pages,
                         (int)page_tokens);
    struct kv *kv = mem_must(1, sizeof(*kv));
    *kv = (struct kv){.d = d,
                      .dtype = dtype,
                      .n_layers = (int32_t)c->n_layers,
                      .n_pages = n_pages,
                      .page_tokens = page_tokens,
                      .n_kv = (int32_t)c->n_kv_heads,
                      .head_dim = (int32_t)c->head_dim,
                      .layer_bytes = layer - scales * sizeof(float),
                      .layer_scales = scales};
    size_t numbers = kv->layer_bytes * (size_t)c->n_layers, all_scales = half - numbers;
    kv->k = device_alloc(d, numbers);
    kv->v = device_alloc(d, numbers);
    kv->k_scale = scales ? device_alloc(d, all_scales) : NULL;
    kv->v_scale = scales ? device_alloc(d, all_scales) : NULL;
    if (!kv->k || !kv->v || (scales && (!kv->k_scale || !kv->v_scale))) {
        kv_close(kv);
        return error_set(err, STATUS_NOMEM, "no memory for a KV cache of %d pages (%zu MiB)", (int)n_pages,
                         half >> 19);
    }
    *ret = kv;
    return STATUS_OK;
}

void kv_close(struct kv *kv)
{
    if (!kv)
        return;
    device_free(kv->d, kv->k);
    device_free(kv->d, kv->v);
    device_free(kv->d, kv->k_scale);
    device_free(kv->d, kv->v_scale);
    free(kv);
}

struct attn_cache kv_layer(const struct kv *kv, int32_t layer)
{
    assert(layer >= 0 && layer < kv->n_layers);
    size_t at = kv->layer_bytes * (size_t)layer, scale = kv->layer_scales * (size_t)layer;
    return (struct attn_cache){.dtype = kv->dtype,
                               .page_tokens = kv->page_tokens,
                               .n_kv = kv->n_kv,
                               .head_dim = kv->head_dim,
                               .k = kv->k + at,
                               .v = kv->v + at,
                               .k_scale = kv->k_scale ? kv->k_scale + scale : NULL,
                               .v_scale = kv->v_scale ? kv->v_scale + scale : NULL};
}
