// trainer/loss.h and trainer/optimizer.h: what the torch oracle does not reach: the exponential, the exact edges of the trust
// regions, non-finite input, and which parameters decay.
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "tests/unit/trainer/tiny.h"
#include "trainer/loss.h"

static void test_exp(void **state)
{
    (void)state;
    for (double x = -700; x < 709; x += 0.00917) {
        double y = loss_exp(x), want = exp(x);
        if (!(fabs(y - want) <= 8 * DBL_EPSILON * want))
            fail_msg("exp(%.17g) = %.17g, libm says %.17g", x, y, want);
    }
    assert_true(loss_exp(0) == 1);
    assert_true(loss_exp(-0.0) == 1);
    assert_true(loss_exp(800) == INFINITY && loss_exp(INFINITY) == INFINITY);
    assert_true(loss_exp(-800) == 0 && loss_exp(-INFINITY) == 0);
    assert_true(isnan(loss_exp(NAN)));
}

struct one {
    double term, dlp;
    uint8_t kept;
    struct loss_stats stats;
};

static struct one eval(enum run_loss id, struct loss_params p, float lp, float old, float roll, float a)
{
    struct one o = {0};
    uint8_t mask = 1;
    struct loss_input in = {1, &lp, &old, &roll, &a, &mask};
    struct loss_output out = {&o.term, &o.dlp, &o.kept};
    loss_get(id)->eval(&p, &in, &out, &o.stats);
    return o;
}

static void test_edges(void **state)
{
    (void)state;
    // r == 1 lies on the edge of [1, …] when eps is 0: strict for two_sided_is, inclusive for icepop's beta
    struct one o = eval(RUN_LOSS_TWO_SIDED_IS, (struct loss_params){0, 0.28, 2}, -1, -1, -1, 2);
    assert_true(!o.kept && o.dlp == 0 && o.stats.masked_low == 1 && o.stats.masked_high == 0);
    o = eval(RUN_LOSS_TWO_SIDED_IS, (struct loss_params){0.2, 0, 2}, -1, -1, -1, 2);
    assert_true(!o.kept && o.dlp == 0 && o.stats.masked_low == 0 && o.stats.masked_high == 1);
    o = eval(RUN_LOSS_ICEPOP, (struct loss_params){0.2, 0.28, 1}, -1, -1, -1, 2);
    assert_true(o.kept && o.dlp == -2 && o.stats.masked_low + o.stats.masked_high == 0);
    // r == 1 + eps: the branches are equal, the gradient is the unclipped one
    o = eval(RUN_LOSS_PPO_CLIP, (struct loss_params){0, 0, 2}, -1, -1, -1, 2);
    assert_true(o.kept && o.dlp == -2 && o.term == -2);
    // a ratio that overflows is rejected by two_sided_is, and does not spoil the mean of ratios
    o = eval(RUN_LOSS_TWO_SIDED_IS, (struct loss_params){0.2, 0.28, 2}, 0, 0, -1e5f, 2);
    assert_true(!o.kept && o.term == 0 && o.stats.ratio_sum == LOSS_RATIO_CAP);
}

static void test_nan_is_not_swallowed(void **state)
{
    (void)state;
    for (int id = RUN_LOSS_TWO_SIDED_IS; id <= RUN_LOSS_SFT; id++) {
        struct one o = eval((enum run_loss)id, (struct loss_params){0.2, 0.28, 2}, NAN, -1, -1, 1);
        assert_true(isnan(o.term));
    }
    assert_true(isnan(eval(RUN_LOSS_ICEPOP, (struct loss_params){0.2, 0.28, 2}, -1, -1, NAN, 1).term));
}

// Zero gradients: weight decay alone moves the weights, and only where it should.
static void test_decay(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct trainer *t = NULL;
    struct error err = {0};
    snprintf(c->model.arch, sizeof c->model.arch, "qwen2"); // has biases
    if (trainer_open(c, "", &t, &err) || trainer_restart(t, &err))
        fail_msg("%s", err.text);
    int kinds[5] = {0};
    for (int64_t i = 0; i < t->layout.total; i++)
        t->master[i] = 1;
    struct run_optimizer o = c->stages[0].optimizer;
    optimizer_update(&t->optimizer, t->device, &t->layout, &o, 0.5, 1, t->grads, t->master);
    for (int32_t i = 0; i < t->layout.n; i++) {
        const struct param *p = &t->layout.params[i];
        bool decays = p->kind == PARAM_MATRIX || p->kind == PARAM_EMBEDDING || p->kind == PARAM_HEAD;
        kinds[p->kind]++;
        assert_true(fabs((double)t->master[p->offset] - (decays ? 1 - 0.5 * 0.01 : 1)) < 1e-6);
    }
    assert_true(kinds[PARAM_NORM] && kinds[PARAM_BIAS] && kinds[PARAM_MATRIX] && kinds[PARAM_EMBEDDING] &&
                kinds[PARAM_HEAD]);
    assert_true(optimizer_clip_scale(4, 1) == 0.25 && optimizer_clip_scale(0.5, 1) == 1 &&
                optimizer_clip_scale(9, 0) == 1);
    trainer_close(t);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_nan_is_not_swallowed),
        cmocka_unit_test(test_decay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
