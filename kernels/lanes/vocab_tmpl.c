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
    const float *uniform;
    int32_t *token;
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

static float row_max(const float *x, int64_t v, v16 inv_temp)
{
    v16 top = v_set(-INFINITY);
    for (int64_t i = 0; i < v; i += 16) {
        int64_t n = min_i64(16, v - i);
        v16 z = v_mul(v_load_n(x + i, n), inv_temp);
        top = n < 16 ? v_first_n(v_max(top, z), top, n) : v_max(top, z);
    }
    return v_fold_max(top);
}

static void logprob_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct vocab *a = ctx;
    for (int64_t r = begin; r < end; r++) {
        assert(a->targets[r] < a->v);
        const float *x = a->logits + r * a->ld;
        v16 t = v_set(a->inv_temp[r]);
        float m = row_max(x, a->v, t), s = 0, w = 0;
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

// The first run of x[from, to) at which the running sum exceeds target, or the last one.
static int64_t run_find(const float *x, int64_t from, int64_t to, v16 inv_temp, v16 m, double target,
                        double *before)
{
    for (;; from += SAMPLE_RUN) {
        float sum, weighted;
        chunk_sums(x + from, min_i64(SAMPLE_RUN, to - from), inv_temp, m, false, &sum, &weighted);
        if (from + SAMPLE_RUN >= to || *before + (double)sum > target)
            return from;
        *before += (double)sum;
    }
}

static int32_t row_draw(const float *x, int64_t v, float inv_temp, float m, const float *sums, int64_t n_sums,
                        float uniform)
{
    double total = 0, before = 0;
    int64_t c = 0;
    for (int64_t i = 0; i < n_sums; i++)
        total += (double)sums[i];
    double target = (double)uniform * total;
    while (c + 1 < n_sums && !(before + (double)sums[c] > target))
        before += (double)sums[c++];
    int64_t i = run_find(x, c * VOCAB_CHUNK, min_i64((c + 1) * VOCAB_CHUNK, v), v_set(inv_temp), v_set(m),
                         target, &before);
    int64_t end = min_i64(i + SAMPLE_RUN, v);
    for (; i < end; i++) {
        before += (double)fmath_exp(x[i] * inv_temp - m);
        if (before > target)
            return (int32_t)i;
    }
    while (--end > 0 && !(fmath_exp(x[end] * inv_temp - m) > 0))
        ;
    return (int32_t)end;
}

static void sample_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct vocab *a = ctx;
    float sums[SAMPLE_CHUNKS], weighted;
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->logits + r * a->ld;
        v16 t = v_set(a->inv_temp[r]);
        float m = row_max(x, a->v, t), s = 0;
        int64_t n = 0;
        for (int64_t c = 0; c < a->v; c += VOCAB_CHUNK, n++) {
            chunk_sums(x + c, min_i64(VOCAB_CHUNK, a->v - c), t, v_set(m), false, &sums[n], &weighted);
            s = s + sums[n];
        }
        float lse = m + fmath_log(s);
        int32_t token = isfinite(lse) ? row_draw(x, a->v, a->inv_temp[r], m, sums, n, a->uniform[r]) : -1;
        a->lse[r] = lse;
        a->token[r] = token;
        a->logprob[r] = token < 0 ? 0 : x[token] * a->inv_temp[r] - lse;
    }
}

void LANES(sample)(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                   const float *inv_temp, const float *uniform, int32_t *token, float *logprob, float *lse)
{
    assert(v <= (int64_t)SAMPLE_CHUNKS * VOCAB_CHUNK);
    struct vocab a = {.v = v,
                      .logits = logits,
                      .ld = ld,
                      .inv_temp = inv_temp,
                      .uniform = uniform,
                      .token = token,
                      .logprob = logprob,
                      .lse = lse};
    split_run(d, r, 1, 0.4 * (double)v + 200, sample_rows, &a);
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
