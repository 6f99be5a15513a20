// Log-probabilities, their gradient and probabilities of every class against ref, bit for bit; the reference against double formulas
// and differences; exp of every class over its whole range.
#include "kernels/fmath.h"
#include "tests/kernels/check.h"

static struct check check;

struct vocab {
    int64_t r, v, ld, ldp;
    float *x, *temp, *dl, *dh, *lse, *entropy, *uniform;
    int32_t *targets;
    bool with_entropy;
};

static void op_logprob(struct device *d, void *ctx, void **out)
{
    const struct vocab *a = ctx;
    d->k->logprob(d, a->r, a->v, a->x, a->ld, a->temp, a->targets, out[0], out[1],
                  a->with_entropy ? out[2] : NULL);
}

static void op_logprob_grad(struct device *d, void *ctx, void **out)
{
    const struct vocab *a = ctx;
    d->k->logprob_grad(d, a->r, a->v, out[0], a->ld, a->temp, a->targets, a->lse, a->dl,
                       a->with_entropy ? a->entropy : NULL, a->with_entropy ? a->dh : NULL);
}

static void op_probs(struct device *d, void *ctx, void **out)
{
    const struct vocab *a = ctx;
    d->k->probs(d, a->r, a->v, a->x, a->ld, a->temp, a->lse, out[0], a->ldp);
}

static void op_sample(struct device *d, void *ctx, void **out)
{
    const struct vocab *a = ctx;
    d->k->sample(d, a->r, a->v, a->x, a->ld, a->temp, a->uniform, out[0], out[1], out[2]);
}

static struct vocab vocab_new(int i)
{
    struct vocab a = {.r = check_between(&check, 0, 4), .with_entropy = i % 2};
    a.v = i % 60 == 0   ? check_between(&check, 3 * VOCAB_CHUNK - 20, 3 * VOCAB_CHUNK + 20)
          : i % 60 < 10 ? VOCAB_CHUNK + check_between(&check, -1, 17)
                        : check_size(&check, 1, 513);
    a.ld = check_stride(&check, a.v);
    a.ldp = check_stride(&check, a.v);
    a.x = check_floats(&check, a.r * a.ld, i % 5 ? 3 : 60, 0);
    a.targets = check_alloc(&check, (size_t)a.r * sizeof *a.targets, 4);
    a.temp = check_floats(&check, a.r, 1, 0);
    a.uniform = check_floats(&check, a.r, 1, 0);
    a.dl = check_floats(&check, a.r, 1, 0);
    a.dh = check_floats(&check, a.r, 1, 0);
    a.lse = check_floats(&check, a.r, 0, 0);
    a.entropy = check_floats(&check, a.r, 0, 0);
    for (int64_t r = 0; r < a.r; r++) {
        a.targets[r] = (int32_t)check_between(&check, -1, a.v - 1);
        a.temp[r] = (float)(0.5 + rng_uniform(&check.rng));
        a.uniform[r] = i % 7   ? (float)rng_uniform(&check.rng)
                       : i % 2 ? 0x1p-25f
                               : 1 - 0x1p-24f; // both ends, too
        if (a.v > 3 && i % 4 == 0)             // a masked logit: probability 0, no NaN anywhere
            a.x[r * a.ld + (a.targets[r] + 1) % a.v] = -INFINITY;
    }
    return a;
}

// log-probability and entropy in double of one row
static void row_double(const float *x, int64_t v, double temp, int target, double bump_at, double bump,
                       double *ret_logprob, double *ret_entropy)
{
    double top = -1e300, sum = 0, h = 0;
    for (int64_t j = 0; j < v; j++)
        top = fmax(top, ((double)x[j] + ((double)j == bump_at ? bump : 0)) * temp);
    for (int64_t j = 0; j < v; j++)
        sum += exp(((double)x[j] + ((double)j == bump_at ? bump : 0)) * temp - top);
    for (int64_t j = 0; j < v; j++) {
        double logp = ((double)x[j] + ((double)j == bump_at ? bump : 0)) * temp - top - log(sum);
        h -= exp(logp) * (isfinite(logp) ? logp : 0);
        if (j == target)
            *ret_logprob = logp;
    }
    *ret_entropy = h;
}

static void vocab_truth(const struct vocab *a, const float *logprob)
{
    float *grad = check_floats(&check, a->r * a->ld, 0, 0);
    memcpy(grad, a->x, (size_t)(a->r * a->ld) * 4);
    void *out = grad;
    op_logprob_grad(check.ref, (void *)a, &out);
    for (int64_t r = 0; r < a->r; r++) {
        double lp = 0, h = 0, up = 0, up_h, down = 0, down_h, e = 1e-4;
        const float *x = a->x + r * a->ld;
        row_double(x, a->v, (double)a->temp[r], a->targets[r], -1, 0, &lp, &h);
        check_near("ref entropy", check.ref, h, a->entropy[r], 2e-4);
        if (a->targets[r] < 0) {
            assert_true(logprob[r] == 0 && grad[r * a->ld] == 0);
            continue;
        }
        check_near("ref logprob", check.ref, lp, logprob[r], 1e-4);
        int64_t at = r % 2 ? a->targets[r] : check_between(&check, 0, a->v - 1);
        row_double(x, a->v, (double)a->temp[r], a->targets[r], (double)at, e, &up, &up_h);
        row_double(x, a->v, (double)a->temp[r], a->targets[r], (double)at, -e, &down, &down_h);
        double want = ((double)a->dl[r] * (up - down) + (double)a->dh[r] * (up_h - down_h)) / (2 * e);
        check_near("ref logprob_grad", check.ref, want, grad[r * a->ld + at], 1e-3);
    }
}

// The draw against the inverse of the cumulative sum in double; log-probability and lse against logprob.
static void sample_truth(const struct vocab *a)
{
    int32_t *token = check_alloc(&check, (size_t)a->r * sizeof *token, 4);
    float *logprob = check_floats(&check, a->r, 0, 0), *lse = check_floats(&check, a->r, 0, 0);
    float *want = check_floats(&check, a->r, 0, 0), *want_lse = check_floats(&check, a->r, 0, 0);
    for (int t = -1; t < check.n_twins; t++) {
        struct device *d = t < 0 ? check.ref : check.twin[t];
        d->k->sample(d, a->r, a->v, a->x, a->ld, a->temp, a->uniform, token, logprob, lse);
        d->k->logprob(d, a->r, a->v, a->x, a->ld, a->temp, token, want, want_lse, NULL);
        check_same("sample logprob", d, want, logprob, a->r);
        check_same("sample lse", d, want_lse, lse, a->r);
        for (int64_t r = 0; r < a->r; r++) {
            double before = 0, p = 0, total = 0, u = (double)a->uniform[r];
            const float *x = a->x + r * a->ld;
            assert_true(token[r] >= 0 && token[r] < a->v && isfinite(logprob[r]));
            for (int64_t j = 0; j < a->v; j++) {
                double e = exp((double)(x[j] * a->temp[r]) - (double)lse[r]);
                before += j < token[r] ? e : 0;
                p = j == token[r] ? e : p;
                total += e;
            }
            if (u * total < before - 1e-5 || u * total > before + p + 1e-5)
                fail_msg(
                    "sample on %s: %.9g of the mass lies before token %d of %lld, %.9g in it, wanted %.9g",
                    d->name, before / total, token[r], (long long)a->v, p / total, u);
        }
    }
}

// Logits that are not finite give no token.
static void test_sample_nan(void **state)
{
    (void)state;
    float x[20] = {0}, temp = 1, uniform = 0.5f, logprob, lse;
    int32_t token;
    for (int kind = 0; kind < 3; kind++)
        for (int t = -1; t < check.n_twins; t++) {
            struct device *d = t < 0 ? check.ref : check.twin[t];
            for (int i = 0; i < 20; i++)
                x[i] = kind == 0 ? -INFINITY : i == 17 ? (kind == 1 ? NAN : INFINITY) : 1;
            d->k->sample(d, 1, 20, x, 20, &temp, &uniform, &token, &logprob, &lse);
            assert_int_equal(token, -1);
            assert_true(logprob == 0);
        }
}

static void test_vocab(void **state)
{
    (void)state;
    for (int i = 0; i < CHECK_SHAPES; i++) {
        struct vocab a = vocab_new(i);
        float *blank = check_floats(&check, a.r, 1, 0), *logprob = check_floats(&check, a.r, 1, 0);
        struct output stats[] = {{"logprob", 1, a.r, a.r, 4, blank},
                                 {"logprob lse", 1, a.r, a.r, 4, blank},
                                 {"logprob entropy", 1, a.r, a.r, 4, blank}};
        check_op(&check, OP(logprob), op_logprob, &a, 3, stats, NULL);
        bool with_entropy = a.with_entropy;
        void *out[] = {logprob, a.lse, a.entropy};
        a.with_entropy = true;
        op_logprob(check.ref, &a, out);
        for (int64_t r = 0; r < a.r; r++)
            assert_true(isfinite(logprob[r]) && isfinite(a.lse[r]) && isfinite(a.entropy[r]));
        if (i % 20 == 1)
            vocab_truth(&a, logprob);
        a.with_entropy = with_entropy;
        struct output grad = {"logprob_grad", a.r, a.v, a.ld, 4, a.x};
        check_op(&check, OP(logprob_grad), op_logprob_grad, &a, 1, &grad, NULL);
        struct output draw[] = {{"sample token", 1, a.r, a.r, 4, blank},
                                {"sample logprob", 1, a.r, a.r, 4, blank},
                                {"sample lse", 1, a.r, a.r, 4, blank}};
        check_op(&check, OP(sample), op_sample, &a, 3, draw, NULL);
        if (i % 20 == 2 || i % 60 == 0)
            sample_truth(&a);
        struct output p = {"probs", a.r, a.v, a.ldp, 4, check_floats(&check, a.r * a.ldp, 1, 0)};
        check_op(&check, OP(probs), op_probs, &a, 1, &p, NULL);
        check_release(&check);
    }
}

// exp of every class over its whole range, both cut-offs and the special values: probs with lse 0 is nothing but exp.
static void test_exp(void **state)
{
    (void)state;
    enum { N = 400000, ODD = 9 };
    static const float odd[ODD] = {-87.3f, 88.7f, -87.30001f, 88.70001f, 0, -0.0f, INFINITY, -INFINITY, NAN};
    static float x[N + ODD], want[N + ODD], got[N + ODD];
    for (int i = 0; i < N; i++)
        x[i] = (float)(-90 + 180.0 * i / N);
    memcpy(x + N, odd, sizeof odd);
    for (int i = 0; i < N + ODD; i++)
        want[i] = fmath_exp(x[i]);
    float one = 1, zero = 0;
    for (int t = 0; t < check.n_twins; t++) {
        check.twin[t]->k->probs(check.twin[t], 1, N + ODD, x, N + ODD, &one, &zero, got, N + ODD);
        check_same("exp", check.twin[t], want, got, N + ODD);
    }
}

int main(void)
{
    if (!check_init(&check, 55))
        return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_vocab), cmocka_unit_test(test_exp),
                                       cmocka_unit_test(test_sample_nan)};
    return check_close(&check, "vocab", cmocka_run_group_tests(tests, NULL, NULL));
}
