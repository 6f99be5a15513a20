// Template: soft-max over the vocabulary, in the order of ref/vocab.c: lane l holds the elements l, l + 16, … of a chunk.
#include <assert.h>
#include <math.h>

#include "kernels/fmath.h"

struct vocab {
    int64_t v;
    const float *logits;
    int64_t ld;
    const float *inv_temp;
    const int32_t *targets;
    float *logprob, *lse, *entropy;
    const float *lse_in, *dlogprob, *entropy_in, *dentropy;
    float *out;
    int64_t ldo;
};

// One chunk's sums of e = exp(z - m) and of e z.
static void chunk_sums(const float *x, int64_t n_all, v16 inv_temp, v16 m, bool want_entropy, float *ret_sum,
                       float *ret_weighted)
{
    v16 sum = v_zero(), weighted = v_zero();
    for (int64_t i = 0; i < n_all; i += 16) {
        int64_t n = min_i64(16, n_all - i);
        v16 z = v_mul(v_load_n(x + i, n), inv_temp), e = v_exp(v_sub(z, m));
        if (n < 16)
            e = v_first_n(e, v_zero(), n);
        sum = v_add(sum, e);
        if (want_entropy)
            weighted = v_fma(e, v_if_nonzero(e, z), weighted);
    }
    *ret_sum = v_fold(sum);
    *ret_weighted = v_fold(weighted);
}

static void logprob_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct vocab *a = ctx;
    for (int64_t r = begin; r < end; r++) {
        assert(a->targets[r] < a->v);
        const float *x = a->logits + r * a->ld;
        v16 t = v_set(a->inv_temp[r]), low = v_set(-INFINITY), top = low;
        for (int64_t i = 0; i < a->v; i += 16) {
            int64_t n = min_i64(16, a->v - i);
            v16 z = v_mul(v_load_n(x + i, n), t);
            top = n < 16 ? v_first_n(v_max(top, z), top, n) : v_max(top, z);
        }
        float m = v_fold_max(top), s = 0, w = 0;
        for (int64_t c = 0; c < a->v; c += VOCAB_CHUNK) {
            float sum, weighted;
            chunk_sums(x + c, min_i64(VOCAB_CHUNK, a->v - c), t, v_set(m), a->entropy != NULL, &sum,
                       &weighted);
            s = s + sum;
            w = w + weighted;
        }
        float lse = m + fmath_log(s);
        a->lse[r] = lse;
        a->logprob[r] = a->targets[r] < 0 ? 0 : x[a->targets[r]] * a->inv_temp[r] - lse;
        if (a->entropy)
            a->entropy[r] = lse - w / s;
    }
}

void LANES(logprob)(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                    const float *inv_temp, const int32_t *targets, float *logprob, float *lse, float *entropy)
{
    struct vocab a = {.v = v,
                      .logits = logits,
                      .ld = ld,
                      .inv_temp = inv_temp,
                      .targets = targets,
                      .logprob = logprob,
                      .lse = lse,
                      .entropy = entropy};
    split_run(d, r, 1, 0.4 * (double)v + 20, logprob_rows, &a);
}

static void grad_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct vocab *a = ctx;
    for (int64_t r = begin; r < end; r++) {
        float *x = a->out + r * a->ldo;
        int32_t target = a->targets[r];
        if (target < 0) {
            for (int64_t i = 0; i < a->v; i += 16)
                v_store_n(x + i, v_zero(), min_i64(16, a->v - i));
            continue;
        }
        float at_target = x[target] * a->inv_temp[r] - a->lse_in[r];
        v16 t = v_set(a->inv_temp[r]), lse = v_set(a->lse_in[r]), dl = v_set(a->dlogprob[r]);
        v16 dh = v_set(a->dentropy ? a->dentropy[r] : 0), h = v_set(a->dentropy ? a->entropy_in[r] : 0);
        for (int64_t i = 0; i < a->v; i += 16) {
            int64_t n = min_i64(16, a->v - i);
            v16 logp = v_sub(v_mul(v_load_n(x + i, n), t), lse), p = v_exp(logp);
            v16 g = v_mul(dl, v_sub(v_zero(), p));
            if (a->dentropy)
                g = v_fnma(dh, v_if_nonzero(p, v_mul(p, v_add(logp, h))), g);
            v_store_n(x + i, v_mul(t, g), n);
        }
        float p = fmath_exp(at_target), g = a->dlogprob[r] * (1.0f - p); // the one element with the indicator
        if (a->dentropy)
            g = fmaf(-a->dentropy[r], p != 0 ? p * (at_target + a->entropy_in[r]) : 0, g);
        x[target] = a->inv_temp[r] * g;
    }
}

void LANES(logprob_grad)(struct device *d, int64_t r, int64_t v, float *logits, int64_t ld,
                         const float *inv_temp, const int32_t *targets, const float *lse,
                         const float *dlogprob, const float *entropy, const float *dentropy)
{
    assert(!dentropy || entropy);
    struct vocab a = {.v = v,
                      .inv_temp = inv_temp,
                      .targets = targets,
                      .lse_in = lse,
                      .dlogprob = dlogprob,
                      .entropy_in = entropy,
                      .dentropy = dentropy,
                      .out = logits,
                      .ldo = ld};
    split_run(d, r, 1, 0.4 * (double)v + 20, grad_rows, &a);
}

static void probs_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct vocab *a = ctx;
    for (int64_t r = begin; r < end; r++) {
        v16 t = v_set(a->inv_temp[r]), lse = v_set(a->lse_in[r]);
        for (int64_t i = 0; i < a->v; i += 16) {
            int64_t n = min_i64(16, a->v - i);
            v_store_n(a->out + r * a->ldo + i,
                      v_exp(v_sub(v_mul(v_load_n(a->logits + r * a->ld + i, n), t), lse)), n);
        }
    }
}

void LANES(probs)(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                  const float *inv_temp, const float *lse, float *p, int64_t ldp)
{
    struct vocab a = {
        .v = v, .logits = logits, .ld = ld, .inv_temp = inv_temp, .lse_in = lse, .out = p, .ldo = ldp};
    split_run(d, r, 1, 0.3 * (double)v, probs_rows, &a);
}
