// trainer/loss.h and trainer/aggregate.h against tests/golden/loss.bin: value and gradient of every loss under every aggregation,
// stated in float64 torch (make_loss.py), to 1e-6 norm-wise.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/file.h"
#include "base/mem.h"
#include "trainer/aggregate.h"
#include "trainer/loss.h"

#define TOLERANCE 1e-6

struct reader {
    const uint8_t *p, *end;
};

// The golden file is ours, unaligned: copied out.
static void *take(struct reader *r, size_t n, size_t size)
{
    void *q = mem_must(n + 1, size);
    assert_true((size_t)(r->end - r->p) >= n * size);
    memcpy(q, r->p, n * size);
    r->p += n * size;
    return q;
}

struct test_case {
    uint32_t *head, *members;
    double *params, *value, *grad;
    float *lp, *old, *roll, *advantage;
    uint8_t *mask;
};

static void case_read(struct reader *r, struct test_case *c)
{
    c->head = take(r, 5, sizeof(uint32_t));
    c->params = take(r, 3, sizeof(double));
    size_t n_members = c->head[3], n = c->head[4];
    c->members = take(r, 4 * n_members, sizeof(uint32_t));
    c->lp = take(r, n, sizeof(float));
    c->old = take(r, n, sizeof(float));
    c->roll = take(r, n, sizeof(float));
    c->advantage = take(r, n, sizeof(float));
    c->mask = take(r, n, 1);
    c->value = take(r, 1, sizeof(double));
    c->grad = take(r, n, sizeof(double));
}

static void case_free(struct test_case *c)
{
    void *all[] = {c->head, c->members, c->params, c->value, c->grad,
                   c->lp,   c->old,     c->roll,   c->mask,  c->advantage};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static void case_check(const struct test_case *c, double *worst)
{
    const struct loss *loss = loss_get((enum run_loss)c->head[0]);
    int32_t n_members = (int32_t)c->head[3], n_trajectories = 0, n_groups = 0;
    size_t n = c->head[4];
    struct loss_params params = {c->params[0], c->params[1], c->params[2]};
    double *term = mem_must(n, sizeof *term), *dlp = mem_must(n, sizeof *dlp),
           *weight = mem_must(n, sizeof *weight);
    uint8_t *kept = mem_must(n, 1);
    struct aggregate_member *members = mem_must((size_t)n_members, sizeof *members);
    struct loss_stats stats = {0};
    size_t at = 0;
    for (int32_t i = 0; i < n_members; i++) {
        const uint32_t *m = c->members + 4 * i;
        struct loss_input in = {m[3], c->lp + at, c->old + at, c->roll + at, c->advantage + at, c->mask + at};
        struct loss_output out = {term + at, dlp + at, kept + at};
        loss->eval(&params, &in, &out, &stats);
        members[i] = (struct aggregate_member){(int32_t)m[0], (int32_t)m[1], (int32_t)m[2], 0};
        for (size_t t = at; t < at + m[3]; t++)
            members[i].n_counted += c->head[2] ? kept[t] : c->mask[t];
        n_trajectories = (int32_t)m[0] >= n_trajectories ? (int32_t)m[0] + 1 : n_trajectories;
        n_groups = (int32_t)m[1] >= n_groups ? (int32_t)m[1] + 1 : n_groups;
        at += m[3];
    }
    struct error err;
    assert_int_equal(aggregate_weights((enum run_aggregation)c->head[1], n_members, members, n_trajectories,
                                       n_groups, weight, &err),
                     STATUS_OK);
    double value = 0, diff = 0, norm = 0;
    at = 0;
    for (int32_t i = 0; i < n_members; i++) {
        for (size_t t = at; t < at + c->members[4 * i + 3]; t++) {
            double g = (double)(float)(weight[i] * dlp[t]); // as the model's backward pass takes it
            value += weight[i] * term[t];
            diff += (g - c->grad[t]) * (g - c->grad[t]);
            norm += c->grad[t] * c->grad[t];
        }
        at += c->members[4 * i + 3];
    }
    double e_value = fabs(value - *c->value) / fabs(*c->value), e_grad = sqrt(diff / norm);
    *worst = fmax(*worst, fmax(e_value, e_grad));
    if (!(e_value <= TOLERANCE) || !(e_grad <= TOLERANCE))
        fail_msg("%s aggregation %u kept %u: value off by %g, gradient by %g", loss->name, c->head[1],
                 c->head[2], e_value, e_grad);
    // the case exercises the mask or clip it is about
    if (c->head[0] == RUN_LOSS_TWO_SIDED_IS || c->head[0] == RUN_LOSS_ICEPOP)
        assert_true(stats.masked_high > 0 && stats.masked_low > 0);
    if (c->head[0] == RUN_LOSS_ICEPOP || c->head[0] == RUN_LOSS_PPO_CLIP)
        assert_true(stats.clipped_high > 0 && stats.clipped_low > 0);
    free(members);
    free(kept);
    free(weight);
    free(dlp);
    free(term);
}

static void test_losses_against_torch(void **state)
{
    (void)state;
    const char *source = getenv("OOZE_SOURCE_DIR");
    char path[4096], *data;
    size_t n;
    double worst = 0;
    struct error err;
    snprintf(path, sizeof path, "%s/tests/golden/loss.bin", source ? source : ".");
    assert_int_equal(file_read(path, 16 << 20, &data, &n, &err), STATUS_OK);
    assert_true(n > 12 && memcmp(data, "OOZELOSS", 8) == 0);
    struct reader r = {(const uint8_t *)data + 8, (const uint8_t *)data + n};
    uint32_t *cases = take(&r, 1, sizeof(uint32_t));
    assert_int_equal(*cases, 24);
    for (uint32_t i = 0; i < *cases; i++) {
        struct test_case c;
        case_read(&r, &c);
        case_check(&c, &worst);
        case_free(&c);
    }
    assert_true(r.p == r.end);
    print_message("24 cases, largest norm-wise error %.2e\n", worst);
    free(cases);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_losses_against_torch)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
