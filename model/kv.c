// Paged keys and values of all layers. One thread owns a kv.
//
// Invariants
//   1. Layer l's keys are n_pages pages of page_bytes / 2 bytes each, one after the other; values likewise in a second block.
//   2. A page has the same number in every layer.
#include "model/kv.h"

#include <assert.h>
#include <stdlib.h>

#include "base/mem.h"

struct kv {
    struct device *d;
    enum dtype dtype;
    int32_t n_layers, n_pages, page_tokens, n_kv, head_dim;
    size_t layer_bytes; // keys of one layer
    char *k, *v;
};

enum dtype kv_dtype_for(enum dtype weights)
{
    return weights == DT_BF16 ? DT_BF16 : DT_F32;
}

size_t kv_page_bytes(const struct model_config *c, enum dtype dtype, int32_t page_tokens)
{
    return 2 * (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)c->head_dim * (size_t)page_tokens *
           dtype_bytes(dtype);
}

enum status kv_open(struct device *d, const struct model_config *c, enum dtype dtype, int32_t n_pages,
                    int32_t page_tokens, struct kv **ret, struct error *err)
{
    assert(dtype == DT_F32 || dtype == DT_BF16);
    if (n_pages < 1 || page_tokens < ATTN_BLOCK || page_tokens % ATTN_BLOCK)
        return error_set(err, STATUS_INVALID,
                         "KV cache of %d pages of %d tokens: pages must be multiples of %d tokens",
                         (int)n_pages, (int)page_tokens, ATTN_BLOCK);
    size_t half, layer = kv_page_bytes(c, dtype, page_tokens) / 2 / (size_t)c->n_layers;
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
                      .layer_bytes = layer};
    kv->k = device_alloc(d, half);
    kv->v = device_alloc(d, half);
    if (!kv->k || !kv->v) {
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
    free(kv);
}

struct attn_cache kv_layer(const struct kv *kv, int32_t layer)
{
    assert(layer >= 0 && layer < kv->n_layers);
    size_t at = kv->layer_bytes * (size_t)layer;
    return (struct attn_cache){kv->dtype, kv->page_tokens, kv->n_kv, kv->head_dim, kv->k + at, kv->v + at};
}
