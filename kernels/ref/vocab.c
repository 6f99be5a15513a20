// Soft-max over the vocabulary: log-probabilities, entropy, their gradient, and the probabilities themselves.
#include <assert.h>
#include <math.h>

#include "kernels/fmath.h"
#include "kernels/ref/ref.h"

struct stats {
    float lse, entropy;
    float m; // the largest z
};

static struct stats row_stats(const float *x, int64_t v, float inv_temp)
{
    float lane[16], weighted[16], s = 0, w = 0;
    for (int l = 0; l < 16; l++)
        lane[l] = -INFINITY;
    for (int64_t i = 0; i < v; i++)
        lane[i % 16] = max2(lane[i % 16], x[i] * inv_temp);
    float m = fold16_max(lane);
    for (int64_t c = 0; c < v; c += VOCAB_CHUNK) {
        for (int l = 0; l < 16; l++)
            lane[l] = weighted[l] = 0;
        for (int64_t i = c; i < min_i64(c + VOCAB_CHUNK, v); i++) {
            float z = x[i] * inv_temp, e = fmath_exp(z - m);
            lane[i % 16] = lane[i % 16] + e;
            if (e != 0)
                weighted[i % 16] = fmaf(e, z, weighted[i % 16]);
        }
        s = s + fold16(lane);
        w = w + fold16(weighted);
    }
    struct stats r = {.lse = m + fmath_log(s), .m = m};
    r.entropy = r.lse - w / s;
    return r;
}

void ref_logprob(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                 const float *inv_temp, const int32_t *targets, float *logprob, float *lse, float *entropy)
{
    (void)d;
    for (int64_t i = 0; i < r; i++) {
        assert(targets[i] < v);
        struct stats s = row_stats(logits + i * ld, v, inv_temp[i]);
        lse[i] = s.lse;
        logprob[i] = targets[i] < 0 ? 0 : logits[i * ld + targets[i]] * inv_temp[i] - s.lse;
        if (entropy)
            entropy[i] = s.entropy;
    }
}

static float run_sum(const float *x, int64_t n, float inv_temp, float m)
{
    float lane[16] = {0};
    for (int64_t i = 0; i < n; i++)
        lane[i % 16] = lane[i % 16] + fmath_exp(x[i] * inv_temp - m);
    return fold16(lane);
}

// The first of the pieces of `piece` elements of x[from, to) at which the running sum exceeds target, or the last one.
static int64_t piece_find(const float *x, int64_t from, int64_t to, int64_t piece, float inv_temp, float m,
                          double target, double *before)
{
    for (;; from += piece) {
        double sum = (double)run_sum(x + from, min_i64(piece, to - from), inv_temp, m);
        if (from + piece >= to || *before + sum > target)
            return from;
        *before += sum;
    }
}

static int32_t row_draw(const float *x, int64_t v, float inv_temp, float m, float uniform)
{
    double total = 0, before = 0;
    for (int64_t c = 0; c < v; c += VOCAB_CHUNK)
        total += (double)run_sum(x + c, min_i64(VOCAB_CHUNK, v - c), inv_temp, m);
    double target = (double)uniform * total;
    int64_t i = piece_find(x, 0, v, VOCAB_CHUNK, inv_temp, m, target, &before);
    i = piece_find(x, i, min_i64(i + VOCAB_CHUNK, v), SAMPLE_RUN, inv_temp, m, target, &before);
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

void ref_sample(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                const float *inv_temp, const float *uniform, int32_t *token, float *logprob, float *lse)
{
    (void)d;
    assert(v <= (int64_t)SAMPLE_CHUNKS * VOCAB_CHUNK);
    for (int64_t i = 0; i < r; i++) {
        const float *x = logits + i * ld;
        struct stats s = row_stats(x, v, inv_temp[i]);
        lse[i] = s.lse;
        token[i] = isfinite(s.lse) ? row_draw(x, v, inv_temp[i], s.m, uniform[i]) : -1;
        logprob[i] = token[i] < 0 ? 0 : x[token[i]] * inv_temp[i] - s.lse;
    }
}

void ref_logprob_grad(struct device *d, int64_t r, int64_t v, float *logits, int64_t ld,
                      const float *inv_temp, const int32_t *targets, const float *lse, const float *dlogprob,
                      const float *entropy, const float *dentropy)
{
    (void)d;
    assert(!dentropy || entropy);
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < v; j++) {
            float *x = logits + i * ld + j;
            if (targets[i] < 0) {
                *x = 0;
                continue;
            }
            float logp = *x * inv_temp[i] - lse[i], p = fmath_exp(logp);
            float g = dlogprob[i] * ((j == targets[i] ? 1.0f : 0.0f) - p);
            if (dentropy)
                g = fmaf(-dentropy[i], p != 0 ? p * (logp + entropy[i]) : 0, g);
            *x = inv_temp[i] * g;
        }
}

void ref_probs(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld, const float *inv_temp,
               const float *lse, float *p, int64_t ldp)
{
    (void)d;
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < v; j++)
            p[i * ldp + j] = fmath_exp(logits[i * ld + j] * inv_temp[i] - lse[i]);
}
