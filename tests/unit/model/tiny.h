// Tiny models for the tests of the model room: shapes that reach every branch (grouped heads, biases, q/k norms, tied
// and untied, head_dim != hidden / heads, rope scaling, sizes that are no multiples of 16).
#ifndef TESTS_UNIT_MODEL_TINY_H
#define TESTS_UNIT_MODEL_TINY_H

#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "model/config.h"

#define TINY_N 5

static inline struct model_config tiny_config(int which)
{
    struct model_config c = {.hidden = 64,
                             .n_layers = 2,
                             .n_heads = 4,
                             .n_kv_heads = 2,
                             .head_dim = 16,
                             .ffn = 96,
                             .vocab = 131,
                             .max_position = 256,
                             .rms_eps = 1e-5f,
                             .rope_theta = 1e4,
                             .init_std = 0.3,
                             .bos_id = -1};
    c.rope_scaling.factor = 1;
    snprintf(c.arch, sizeof(c.arch), "llama");
    switch (which) {
    case 0:
        break;
    case 1: // tied, rope scaling
        c.tie_embeddings = true;
        c.rope_theta = 5e5;
        c.rope_scaling.factor = 8;
        c.rope_scaling.low_freq_factor = 1;
        c.rope_scaling.high_freq_factor = 4;
        c.rope_scaling.original_max_position = 64;
        break;
    case 2:
        snprintf(c.arch, sizeof(c.arch), "qwen2");
        c.qkv_bias = true;
        c.tie_embeddings = true;
        break;
    case 3:
        snprintf(c.arch, sizeof(c.arch), "qwen3");
        c.qk_norm = true;
        c.head_dim = 32;
        break;
    default: // odd sizes: nothing can be packed together
        snprintf(c.arch, sizeof(c.arch), "qwen2");
        c.qkv_bias = true;
        c.hidden = 30;
        c.n_heads = 3;
        c.n_kv_heads = 1;
        c.head_dim = 10;
        c.ffn = 37;
        c.vocab = 53;
        break;
    }
    return c;
}

// Random weights; norms and biases too, so that an error in them shows.
static inline void tiny_weights(const struct layout *l, const struct model_config *c, uint64_t seed,
                                float *master)
{
    struct rng r;
    rng_init(&r, seed, 99);
    layout_init_random(l, c, seed, master);
    for (int32_t i = 0; i < l->n; i++)
        for (int64_t k = 0; k < l->params[i].rows * l->params[i].cols; k++)
            if (l->params[i].kind == PARAM_NORM || l->params[i].kind == PARAM_BIAS)
                master[l->params[i].offset + k] += 0.2f * rng_normal(&r);
}

#endif
