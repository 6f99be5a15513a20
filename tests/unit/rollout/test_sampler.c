// rollout/sampler.h: frequencies against the exact distribution, truncation against its definition, logprobs against the op.
#include "tests/isa.h"
#include "tiny.h"

#include "rollout/sampler.h"

enum { V = 1000, ROWS = 64, DRAWS = 200 * ROWS };

static void random_logits(uint64_t seed, float spread, float *logits, int n)
{
    struct rng r;
    rng_init(&r, seed, 2);
    for (int i = 0; i < n; i++)
        logits[i] = spread * rng_normal(&r);
}

// Exact distribution after temperature, top-k, top-p and min-p, in double, by sorting: the definition in sampler.h.
static void exact(const float *logits, const struct msg_sampling *s, double *p)
{
    int order[V];
    double max = -1e300, sum = 0;
    float inv = s->temperature > 0 ? 1.0f / s->temperature : 1;
    for (int i = 0; i < V; i++)
        max = fmax(max, (double)(logits[i] * inv));
    for (int i = 0; i < V; i++) {
        p[i] = exp((double)(logits[i] * inv) - max);
        sum += p[i];
        order[i] = i;
    }
    for (int i = 0; i < V; i++)
        p[i] /= sum;
    for (int i = 1; i < V; i++) // insertion sort: likeliest first, lower id first
        for (int j = i; j > 0 && p[order[j]] > p[order[j - 1]]; j--) {
            int swap = order[j];
            order[j] = order[j - 1];
            order[j - 1] = swap;
        }
    int n = s->top_k > 0 && s->top_k < V ? s->top_k : V;
    double kept = 0, mass = 0;
    for (int i = 0; i < n; i++)
        kept += p[order[i]];
    int cut = 0;
    while (cut < n && p[order[cut]] >= (double)s->min_p * p[order[0]] &&
           (cut == 0 || s->top_p >= 1 || mass < (double)s->top_p * kept))
        mass += p[order[cut++]];
    for (int i = cut; i < V; i++)
        p[order[i]] = 0;
    for (int i = 0; i < cut; i++)
        p[order[i]] /= mass;
}

// Pearson's statistic over ids with at least 5 expected draws (the rest pooled), as standard deviations over its mean.
static double chi_square(const double *p, const int *count)
{
    double stat = 0, rest_want = 0, rest_got = 0;
    int bins = 0;
    for (int i = 0; i < V; i++) {
        double want = p[i] * DRAWS;
        if (want < 5) {
            rest_want += want;
            rest_got += count[i];
            continue;
        }
        stat += (count[i] - want) * (count[i] - want) / want;
        bins++;
    }
    if (rest_want >= 5) {
        stat += (rest_got - rest_want) * (rest_got - rest_want) / rest_want;
        bins++;
    } else {
        assert_true(rest_got < 30);
    }
    int df = bins > 1 ? bins - 1 : 1;
    return (stat - df) / sqrt(2.0 * df);
}

static void check_distribution(const struct msg_sampling *s, float spread)
{
    struct device *d = NULL;
    must(device_open("cpu", test_isa(), 2, &d, err));
    struct sampler *sampler = NULL;
    must(sampler_open(d, ROWS, V, &sampler, err));
    float one[V];
    random_logits(3, spread, one, V);
    float *logits = mem_alloc(sizeof one * ROWS);
    for (int i = 0; i < ROWS; i++)
        memcpy(logits + i * V, one, sizeof one);
    double p[V];
    exact(one, s, p);
    int count[V] = {0};
    struct rng_token_key key = {.run_seed = 1, .trajectory = 9};
    struct sampler_row rows[ROWS];
    for (uint32_t draw = 0; draw < DRAWS; draw += ROWS) {
        for (uint32_t i = 0; i < ROWS; i++)
            rows[i] = (struct sampler_row){.sampling = s,
                                           .inv_temp = sampler_inv_temp(s->temperature),
                                           .uniform = rng_token_uniform(&key, draw + i)};
        sampler_run(sampler, ROWS, logits, rows);
        for (int i = 0; i < ROWS; i++) {
            assert_true(rows[i].token >= 0 && rows[i].token < V);
            double want = log(p[rows[i].token]);
            assert_true(fabs((double)rows[i].logprob - want) <
                        1e-4); // also: p > 0, never outside the kept set
            count[rows[i].token]++;
        }
    }
    double z = chi_square(p, count);
    if (fabs(z) > 4)
        fail_msg("chi-square is %.2f standard deviations off", z);
    mem_free(logits);
    sampler_close(sampler);
    device_close(d);
}

static void test_frequencies(void **state)
{
    (void)state;
    static const struct msg_sampling cases[] = {
        {.temperature = 1, .top_p = 1},
        {.temperature = 0.6f, .top_p = 1},
        {.temperature = 1.7f, .top_p = 1},
        {.temperature = 1, .top_p = 1, .top_k = 17},
        {.temperature = 1, .top_p = 0.8f},
        {.temperature = 1, .top_p = 1, .min_p = 0.05f},
        {.temperature = 0.8f, .top_p = 0.9f, .min_p = 0.02f, .top_k = 40},
        {.temperature = 1, .top_p = 1, .top_k = 1},
        {.temperature = 1, .top_p = 0.999f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_distribution(&cases[i], 1);
        check_distribution(&cases[i], 4);
    }
}

// The log-probability is the op's, bit for bit: what the trainer will compute for the same logits.
static void test_logprob_bits(void **state)
{
    (void)state;
    struct device *d = NULL;
    must(device_open("cpu", test_isa(), 1, &d, err));
    struct sampler *sampler = NULL;
    must(sampler_open(d, ROWS, V, &sampler, err));
    float *logits = mem_alloc(sizeof(float) * V * ROWS);
    random_logits(8, 3, logits, V * ROWS);
    struct msg_sampling s[ROWS];
    struct sampler_row rows[ROWS];
    float inv_temp[ROWS], logprob[ROWS], lse[ROWS];
    int32_t targets[ROWS];
    for (int i = 0; i < ROWS; i++) {
        s[i] = (struct msg_sampling){.temperature = 0.3f + 0.05f * (float)i, .top_p = 1};
        inv_temp[i] = sampler_inv_temp(s[i].temperature);
        rows[i] = (struct sampler_row){
            .sampling = &s[i], .inv_temp = inv_temp[i], .uniform = ((float)i + 0.5f) / ROWS};
    }
    sampler_run(sampler, ROWS, logits, rows);
    for (int i = 0; i < ROWS; i++)
        targets[i] = rows[i].token;
    d->k->logprob(d, ROWS, V, logits, V, inv_temp, targets, logprob, lse, NULL);
    for (int i = 0; i < ROWS; i++)
        assert_memory_equal(&logprob[i], &rows[i].logprob, 4);
    mem_free(logits);
    sampler_close(sampler);
    device_close(d);
}

static void test_greedy_top_and_forbidden(void **state)
{
    (void)state;
    struct device *d = NULL;
    must(device_open("cpu", test_isa(), 1, &d, err));
    struct sampler *sampler = NULL;
    must(sampler_open(d, 4, V, &sampler, err));
    float *logits = mem_alloc(sizeof(float) * V * 4);
    random_logits(4, 1, logits, V * 4);
    for (int r = 0; r < 3; r++) { // rows 0 … 2: three ids share the top
        logits[r * V + 700] = logits[r * V + 30] = logits[r * V + 500] = 9;
        logits[r * V + 31] = 8.5f;
    }
    logits[3 * V + 5] = NAN;
    const struct msg_sampling greedy = {.temperature = 0, .top_p = 1}, plain = {.temperature = 1, .top_p = 1};
    const int32_t forbidden[] = {30, 500};
    int32_t top_ids[5];
    float top_logprobs[5];
    struct sampler_row rows[4] = {
        {.sampling = &greedy, .inv_temp = 1, .n_top = 5, .top_ids = top_ids, .top_logprobs = top_logprobs},
        {.sampling = &greedy, .inv_temp = 1, .n_forbidden = 2, .forbidden = forbidden},
        {.sampling = &plain, .inv_temp = 1, .uniform = 0.03f, .n_forbidden = 2, .forbidden = forbidden},
        {.sampling = &plain, .inv_temp = 1, .uniform = 0.5f},
    };
    sampler_run(sampler, 4, logits, rows);
    assert_int_equal(rows[0].token, 30);
    static const int32_t want[] = {30, 500, 700, 31};
    assert_memory_equal(top_ids, want, sizeof want);
    assert_memory_equal(&top_logprobs[0], &rows[0].logprob, 4);
    assert_true(top_logprobs[3] < top_logprobs[2] && top_logprobs[4] <= top_logprobs[3]);
    assert_int_equal(rows[1].token, 700);
    assert_int_equal(rows[2].token, 700); // the likeliest that is allowed, and first in the kept order
    assert_true(rows[2].logprob > rows[0].logprob + 0.3f); // renormalised over what is allowed
    assert_int_equal(rows[3].token, -1);
    mem_free(logits);
    sampler_close(sampler);
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_logprob_bits),
        cmocka_unit_test(test_greedy_top_and_forbidden),
    };
    return cmocka_run_group_tests_name("rollout sampler", tests, NULL, NULL);
}
