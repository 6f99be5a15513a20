// Attention over pages of bf16 and FP8 and its gradient as the classes from avx512bf16 on take them (avx512bf16/avx512bf16.h), in
// plain C, one row of one head at a time: what they must compute bit for bit.
#ifndef TESTS_KERNELS_ATTENTION_ORDER_H
#define TESTS_KERNELS_ATTENTION_ORDER_H

#include "kernels/avx512bf16/avx512bf16.h"
#include "tests/kernels/order.h"

#define ORDER_KEYS 1024
#define ORDER_DIM  128

// Keys and values of one head as the cache has them: numbers that are bf16 (FP8: the widened codes) and their scales (else 1).
struct order_kv {
    int64_t n;
    float k[ORDER_KEYS][ORDER_DIM], v[ORDER_KEYS][ORDER_DIM], k_scale[ORDER_KEYS], v_scale[ORDER_KEYS];
};

static inline void order_store(enum dtype t, int64_t dim, const float *x, float *ret, float *ret_scale)
{
    float amax = 0;
    *ret_scale = 1;
    for (int64_t i = 0; i < dim; i++)
        amax = fmaxf(amax, fabsf(x[i]));
    if (t == DT_FP8)
        *ret_scale = fmaxf(amax, 1e-12f) / 448.0f;
    for (int64_t i = 0; i < dim; i++)
        ret[i] = t == DT_FP8 ? fp8_to_f32(f32_to_fp8(x[i] / *ret_scale)) : order_bf16(x[i]);
}

static inline float order_exp2(float x)
{
    if (-126.0f > x)
        x = -126.0f;
    float n = (x + 12582912.0f) - 12582912.0f, r = x - n;
    float p = fmaf(0x1.5bba14p-10f, r, 0x1.3cea88p-7f);
    p = fmaf(p, r, 0x1.c6b752p-5f);
    p = fmaf(p, r, 0x1.ebf9bcp-3f);
    p = fmaf(p, r, 0x1.62e42ap-1f);
    p = fmaf(p, r, 1.0f);
    if (n != n)
        return n;
    // Scores so large that fma(s, c, -(m * c)) is far above 0 give infinity.
    return ldexpf(p, n > 999 ? 999 : (int)n);
}

// sum16 of products.
static inline float order_sum16(const float *x, const float *y, int64_t n)
{
    float lane[16] = {0};
    for (int64_t i = 0; i < (n + 15) / 16 * 16; i++)
        lane[i % 16] = fmaf(i < n ? x[i] : 0, i < n ? y[i] : 0, lane[i % 16]);
    for (int width = 8; width; width /= 2)
        for (int l = 0; l < width; l++)
            lane[l] = lane[l] + lane[l + width];
    return lane[0];
}

// out [dim] of the query q [dim] over the first `keys` keys; returns lse, which wants `log`.
static inline float order_attention(const struct order_kv *c, int64_t dim, int64_t keys, float scale,
                                    const float *q, float *out, float (*log)(float))
{
    float m = -INFINITY, l = 0, qb[ORDER_DIM], c2 = scale * 1.44269504f;
    for (int64_t x = 0; x < dim; x++) {
        qb[x] = order_bf16(q[x]);
        out[x] = 0;
    }
    for (int64_t first = 0; first < keys; first += ATTN_STEP) {
        int64_t n = keys - first < ATTN_STEP ? keys - first : ATTN_STEP;
        float s[ATTN_STEP], p[ATTN_STEP + 1] = {0}, pv[ATTN_STEP + 1] = {0}, top = m;
        for (int64_t j = 0; j < n; j++) {
            s[j] = order_dot(ISA_AVX512BF16, qb, 1, c->k[first + j], 1, dim) * c->k_scale[first + j];
            top = top > s[j] ? top : s[j];
        }
        float shift = -(top * c2), shrink = order_exp2((m - top) * c2);
        for (int64_t j = 0; j < n; j++) {
            float e = order_exp2(fmaf(s[j], c2, shift));
            p[j] = order_bf16(e);
            pv[j] = order_bf16(e * c->v_scale[first + j]);
        }
        m = top;
        l = l * shrink;
        for (int64_t j = 0; j < n; j += 2)
            l = order_pair(l, p[j], 1, p[j + 1], 1);
        for (int64_t x = 0; x < dim; x++) {
            out[x] = out[x] * shrink;
            for (int64_t j = 0; j < n; j += 2)
                out[x] = order_pair(out[x], pv[j], c->v[first + j][x], pv[j + 1],
                                    j + 1 < n ? c->v[first + j + 1][x] : 0);
        }
    }
    for (int64_t x = 0; x < dim; x++)
        out[x] = out[x] * (1 / l);
    return fmaf(m, scale, log(l));
}

// One query head of the last n rows of one sequence of c->n (c: bf16 of what the cache gives back, scales 1); q, out, dout [n] rows at
// strides, lse at stride n_heads. dq is written. dk and dv [c->n][ORDER_DIM]: the chains of the keys before these rows go on, those
// of theirs begin.
struct order_head {
    int64_t n;
    const float *q, *out, *lse, *dout;
    int64_t ldq, ldo, lddo, ld_lse;
    float *dq;
    int64_t lddq;
};

static inline void order_grad(const struct order_kv *c, int64_t dim, float scale, const struct order_head *h,
                              float (*dk)[ORDER_DIM], float (*dv)[ORDER_DIM])
{
    static float q[ORDER_KEYS + 1][ORDER_DIM], o[ORDER_KEYS + 1][ORDER_DIM],
        p[ORDER_KEYS + 1][ORDER_KEYS + 1], ds[ORDER_KEYS + 1][ORDER_KEYS + 1];
    float c2 = scale * 1.44269504f;
    int64_t n = h->n, pos0 = c->n - n;
    for (int64_t i = 0; i <= n; i++)
        for (int64_t x = 0; x < dim; x++) {
            q[i][x] = i < n ? order_bf16(h->q[i * h->ldq + x]) : 0;
            o[i][x] = i < n ? order_bf16(h->dout[i * h->lddo + x]) : 0;
        }
    for (int64_t i = 0; i <= n; i++)
        for (int64_t j = 0; j <= c->n; j++) {
            p[i][j] = ds[i][j] = 0;
            if (i == n || j > pos0 + i)
                continue;
            float s = order_dot(ISA_AVX512BF16, q[i], 1, c->k[j], 1, dim),
                  g = order_dot(ISA_AVX512BF16, o[i], 1, c->v[j], 1, dim);
            float delta = order_sum16(h->dout + i * h->lddo, h->out + i * h->ldo, dim) * scale;
            float e = order_exp2(fmaf(s, c2, -(h->lse[i * h->ld_lse] * 1.44269504f)));
            p[i][j] = order_bf16(e);
            ds[i][j] = order_bf16(e * fmaf(g, scale, -delta));
        }
    for (int64_t i = 0; i < n; i++)
        for (int64_t x = 0; x < dim; x++) {
            float dq = 0;
            for (int64_t j = 0; j < c->n; j += 2)
                dq = order_pair(dq, ds[i][j], c->k[j][x], ds[i][j + 1], j + 1 < c->n ? c->k[j + 1][x] : 0);
            h->dq[i * h->lddq + x] = dq;
        }
    for (int64_t j = 0; j < c->n; j++)
        for (int64_t x = 0; x < dim; x++) {
            float *to_k = &dk[j][x], *to_v = &dv[j][x];
            if (j >= pos0)
                *to_k = *to_v = 0;
            for (int64_t i = 0; i < n; i += 2) {
                *to_k = order_pair(*to_k, ds[i][j], q[i][x], ds[i + 1][j], q[i + 1][x]);
                *to_v = order_pair(*to_v, p[i][j], o[i][x], p[i + 1][j], o[i + 1][x]);
            }
        }
}

#endif
