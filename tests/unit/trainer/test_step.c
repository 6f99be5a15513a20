// trainer/step.h: one step from state and prepared step to new state.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "tests/unit/trainer/tiny.h"
#include "trainer/aggregate.h"

static struct trainer *open_trainer(const struct run_config *c)
{
    struct trainer *t = NULL;
    struct error err = {0};
    if (trainer_open(c, "", &t, &err) || trainer_restart(t, &err))
        fail_msg("%s", err.text);
    return t;
}

static struct step_result *run_step(struct trainer *t, const struct msg_prepare *m)
{
    static struct step_result r;
    struct error err = {0};
    if (trainer_step(t, m, &r, &err))
        fail_msg("%s", err.text);
    return &r;
}

static float *copy_floats(const float *p, int64_t n)
{
    float *q = mem_must((size_t)n, sizeof *q);
    memcpy(q, p, (size_t)n * sizeof *q);
    return q;
}

static bool same_floats(const float *a, const float *b, int64_t n)
{
    return memcmp(a, b, (size_t)n * sizeof *a) == 0;
}

// The same batch as 1, 2 and 5 micro-batches: gradients equal to 1e-6, for every loss and aggregation.
static void test_micro_batches_agree(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct tiny_step s;
    tiny_step_init(&s, 10, 21, 2, 3); // 20 rows each
    for (int i = 0; i < 24; i++) {
        const int64_t budgets[] = {200, 100, 40};
        float *first = NULL;
        double first_loss = 0;
        c->stages[0].loss = i / 6;
        c->stages[0].aggregation = RUN_AGG_TOKEN_MEAN + i % 3;
        c->stages[0].denominator = i / 3 % 2 ? RUN_DENOM_KEPT : RUN_DENOM_ALL;
        c->stages[0].entropy_coef = i % 2 ? 0.01 : 0;
        for (int b = 0; b < 3; b++) {
            struct error err = {0};
            double loss;
            c->trainer.micro_batch_tokens = budgets[b];
            struct trainer *t = open_trainer(c);
            if (trainer_gradient(t, &s.msg, 0, &loss, &err))
                fail_msg("%s", err.text);
            if (!first) {
                first = copy_floats(t->grads, t->layout.total);
                first_loss = loss;
            }
            assert_true(tiny_distance(t->grads, first, t->layout.total) <= 1e-6);
            assert_true(fabs(loss - first_loss) <= 1e-6 * fabs(first_loss));
            struct step_result *r = run_step(t, &s.msg);
            assert_int_equal(r->outcome, STEP_APPLIED);
            assert_int_equal((int)tiny_metric(r, "train/micro_batches"), b == 0 ? 1 : b == 1 ? 2 : 5);
            trainer_close(t);
        }
        free(first);
    }
    tiny_step_done(&s);
    free(c);
}

// d loss / d weights by central differences along a random direction (f32 forward, so a loose bound; the exact derivative of the
// model and of each loss have oracles of their own).
static void test_gradient_by_differences(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct tiny_step s;
    struct error err = {0};
    tiny_step_init(&s, 6, 0, 2, 5);
    c->stages[0].loss = RUN_LOSS_SFT; // the weight of a token does not depend on the weights of the model
    c->stages[0].entropy_coef = 1;
    struct trainer *t = open_trainer(c);
    double base, up, down, dot = 0, h = 2e-3;
    const struct param *head = layout_find(&t->layout, "lm_head.weight");
    for (int64_t i = 0; i < head->rows * head->cols; i++)
        t->master[head->offset + i] *=
            20; // away from the uniform distribution, where entropy has no gradient
    trainer_sync_weights(t);
    assert_int_equal(trainer_gradient(t, &s.msg, 0, &base, &err), STATUS_OK);
    float *g = copy_floats(t->grads, t->layout.total), *p = copy_floats(t->master, t->layout.total);
    double norm = optimizer_grad_norm(t->device, &t->layout, g);
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < t->layout.total; i++)
            t->master[i] = p[i] + (float)((side ? -h : h) * (double)g[i] / norm);
        trainer_sync_weights(t);
        assert_int_equal(trainer_gradient(t, &s.msg, 0, side ? &down : &up, &err), STATUS_OK);
    }
    dot = (up - down) / (2 * h);
    assert_true(fabs(dot - norm) <= 2e-3 * norm);
    free(g);
    free(p);
    trainer_close(t);
    tiny_step_done(&s);
    free(c);
}

// Forward and backward of the whole step as metrics.h counts them.
static double step_flops(const struct trainer *t, const struct msg_prepare *m)
{
    double matrices = 0, flops = 0;
    for (int32_t i = 0; i < t->layout.n; i++)
        if (strstr(t->layout.params[i].name, "_proj.weight"))
            matrices += (double)(t->layout.params[i].rows * t->layout.params[i].cols);
    for (int32_t i = 0, at = 0; i < m->n_members; at += m->members[i++].n_tokens) {
        int32_t last = 0, targets = 0; // rows after the last trained token are not computed
        for (int32_t k = 1; k < m->members[i].n_tokens; k++)
            if (m->mask[at + k]) {
                targets++;
                last = k;
            }
        for (int32_t row = 0; row < last; row++)
            flops += 2 * matrices +
                     4.0 * (double)(t->model.n_layers * t->model.n_heads * t->model.head_dim) * (row + 1);
        flops += 2.0 * (double)(t->model.vocab * t->model.hidden) * targets;
    }
    return 3 * flops;
}

static void test_learns_and_is_deterministic(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct tiny_step s;
    float *first = NULL;
    tiny_step_init(&s, 12, 0, 4, 11);
    s.msg.stage = 1;
    for (int threads = 1; threads <= 3; threads += 2) {
        c->trainer.threads = threads;
        c->trainer.recompute = threads > 1; // the same bits either way
        struct trainer *t = open_trainer(c);
        double before = 0, after = 0;
        for (int k = 0; k < 20; k++) {
            s.msg.step = k;
            s.msg.stage_first = k == 0;
            struct step_result *r = run_step(t, &s.msg);
            assert_int_equal(r->outcome, STEP_APPLIED);
            assert_true(fabs(r->flops / step_flops(t, &s.msg) - 1) < 1e-12);
            after = tiny_metric(r, "train/loss");
            before = k ? before : after;
        }
        assert_true(fabs(before - log(TINY_VOCAB)) < 1);
        assert_true(after < before - 1);
        assert_int_equal(t->step, 20);
        assert_int_equal(t->optimizer.updates, 20);
        if (!first)
            first = copy_floats(t->master, t->layout.total);
        assert_true(same_floats(t->master, first, t->layout.total));
        trainer_close(t);
    }
    free(first);
    tiny_step_done(&s);
    free(c);
}

// Everything that must not change when a step is rejected.
struct frozen {
    float *p, *m, *v;
    int64_t updates;
};

static struct frozen freeze(const struct trainer *t)
{
    int64_t n = t->layout.total;
    return (struct frozen){copy_floats(t->master, n), copy_floats(t->optimizer.m, n),
                           copy_floats(t->optimizer.v, n), t->optimizer.updates};
}

static void assert_frozen(const struct trainer *t, struct frozen *f)
{
    int64_t n = t->layout.total;
    assert_true(same_floats(t->master, f->p, n));
    assert_true(same_floats(t->optimizer.m, f->m, n));
    assert_true(same_floats(t->optimizer.v, f->v, n));
    assert_int_equal(t->optimizer.updates, f->updates);
    free(f->p);
    free(f->m);
    free(f->v);
}

static void test_rejections(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    for (int kind = 0; kind < 8; kind++) {
        static const char *const reasons[] = {"loss is not finite", "vocabulary",  "zero denominator",
                                              "too large for f32",  "temperature", "multiplicity",
                                              "log-probability",    "allows"};
        struct tiny_step s;
        c->stages[0].loss = kind == 0 ? RUN_LOSS_PPO_CLIP : RUN_LOSS_TWO_SIDED_IS;
        c->stages[0].old_logprob = RUN_OLD_ROLLOUT;
        c->stages[0].optimizer.clip_grad_norm = kind == 3 ? 0 : 1;
        tiny_step_init(&s, 8, 0, 4, 20);
        struct trainer *t = open_trainer(c);
        assert_int_equal(run_step(t, &s.msg)->outcome, STEP_APPLIED);
        struct frozen f = freeze(t);
        s.msg.step = 1;
        s.msg.stage_first = false;
        s.msg.optimizer_reset = true;
        int64_t last = s.msg.n_tokens - 1; // always trained
        if (kind == 0) {                   // exp overflows: inf * advantage
            s.logprobs[last] = -1e4f;
            s.members[7].advantage = -1;
        } else if (kind == 1) {
            s.ids[0] = TINY_VOCAB;
        } else if (kind == 2) {
            memset(s.mask, 0, (size_t)s.msg.n_tokens);
        } else if (kind == 3) {
            for (int i = 0; i < 8; i++)
                s.members[i].advantage = 1e25f;
        } else if (kind == 4) {
            s.temperatures[last] = 0;
        } else if (kind == 5) {
            s.members[3].multiplicity = 0;
        } else if (kind == 6) {
            s.logprobs[last] = NAN;
        } else {
            c->stages[0].max_context = 2;
        }
        struct step_result *r = run_step(t, &s.msg);
        assert_int_equal(r->outcome, STEP_REJECTED);
        if (!strstr(r->reason, reasons[kind]))
            fail_msg("reason %d: %s", kind, r->reason);
        assert_frozen(t, &f);
        assert_int_equal(t->step, 2);
        assert_true(t->reset_pending); // the reset that the step should have begun with is not forgotten
        c->stages[0].max_context = 128;
        tiny_step_done(&s);
        tiny_step_init(&s, 8, 0, 4, 21);
        s.msg.step = 2;
        s.msg.stage_first = false;
        r = run_step(t, &s.msg);
        assert_int_equal(r->outcome, STEP_APPLIED);
        assert_int_equal(t->optimizer.updates, 1);
        assert_false(t->reset_pending);
        trainer_close(t);
        tiny_step_done(&s);
    }
    free(c);
}

static void test_non_finite_weights_reject(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct tiny_step s;
    tiny_step_init(&s, 4, 0, 2, 8);
    struct trainer *t = open_trainer(c);
    t->master[layout_find(&t->layout, "model.norm.weight")->offset] = NAN;
    trainer_sync_weights(t);
    struct frozen f = freeze(t);
    struct step_result *r = run_step(t, &s.msg);
    assert_int_equal(r->outcome, STEP_REJECTED);
    assert_non_null(strstr(r->reason, "not finite"));
    assert_frozen(t, &f);
    trainer_close(t);
    tiny_step_done(&s);
    free(c);
}

// With several updates, a rejection in a later one takes the earlier ones back.
static void test_rejection_in_second_update(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct tiny_step s;
    c->stages[0].loss = RUN_LOSS_PPO_CLIP;
    c->stages[0].old_logprob = RUN_OLD_ROLLOUT;
    bool seen_second = false;
    struct trainer *t = open_trainer(c);
    for (int g = 0; g < 4; g++) { // one of the four groups is poisoned: it falls into one of the four updates
        tiny_step_init(&s, 8, 0, 2, 30);
        s.msg.updates = 4;
        s.msg.step = g;
        struct frozen f = freeze(t);
        int64_t at = 0;
        for (int i = 0; i <= 2 * g; i++)
            at += s.members[i].n_tokens;
        s.logprobs[at - 1] = -1e4f;
        s.members[2 * g].advantage = -1;
        struct step_result *r = run_step(t, &s.msg);
        assert_int_equal(r->outcome, STEP_REJECTED);
        seen_second = seen_second || strstr(r->reason, "update 2 of 4") || strstr(r->reason, "update 3 of 4");
        assert_frozen(t, &f);
        tiny_step_done(&s);
    }
    assert_true(seen_second);
    trainer_close(t);
    free(c);
}

// updates_per_batch: whole groups, every group once, and the result is that of the updates done one after the other.
static void test_updates_per_batch(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    const int64_t losses[] = {RUN_LOSS_TWO_SIDED_IS, RUN_LOSS_ICEPOP, RUN_LOSS_PPO_CLIP};
    for (int k = 0; k < 3; k++) {
        struct tiny_step s;
        c->stages[0].loss = losses[k];
        tiny_step_init(&s, 12, 0, 2, 40); // 6 groups
        s.msg.updates = 3;
        struct trainer *whole = open_trainer(c), *again = open_trainer(c);
        struct step_result *r = run_step(whole, &s.msg);
        assert_int_equal(r->outcome, STEP_APPLIED);
        assert_int_equal((int)tiny_metric(r, "train/updates"), 3);
        assert_int_equal(whole->optimizer.updates, 3);
        double ratio = tiny_metric(r, "train/ratio_mean");
        assert_true(ratio > 0.5 && ratio < 2);
        assert_int_equal(run_step(again, &s.msg)->outcome, STEP_APPLIED);
        assert_true(same_floats(whole->master, again->master, whole->layout.total));
        // by hand: the gradient of each update at the weights that the one before left (two_sided_is has no lp_old)
        if (losses[k] == RUN_LOSS_TWO_SIDED_IS) {
            struct trainer *hand = open_trainer(c);
            struct error err = {0};
            for (int32_t u = 0; u < 3; u++) {
                double loss;
                assert_int_equal(trainer_gradient(hand, &s.msg, u, &loss, &err), STATUS_OK);
                double norm = optimizer_grad_norm(hand->device, &hand->layout, hand->grads);
                optimizer_update(&hand->optimizer, hand->device, &hand->layout, &c->stages[0].optimizer,
                                 s.msg.lr, optimizer_clip_scale(norm, 1), hand->grads, hand->master);
                trainer_sync_weights(hand);
            }
            assert_true(same_floats(whole->master, hand->master, whole->layout.total));
            trainer_close(hand);
        }
        trainer_close(whole);
        trainer_close(again);
        tiny_step_done(&s);
    }
    // more updates than groups: one per group
    struct tiny_step s;
    tiny_step_init(&s, 4, 0, 2, 41);
    s.msg.updates = 9;
    struct trainer *t = open_trainer(c);
    assert_int_equal((int)tiny_metric(run_step(t, &s.msg), "train/updates"), 2);
    trainer_close(t);
    tiny_step_done(&s);
    free(c);
}

// With one update r == 1: icepop's and ppo's gradient need no second pass, and the ratio says so.
static void test_ratio_is_one_on_policy(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct tiny_step s;
    tiny_step_init(&s, 6, 0, 3, 50);
    c->stages[0].loss = RUN_LOSS_PPO_CLIP;
    struct trainer *t = open_trainer(c);
    struct step_result *r = run_step(t, &s.msg);
    assert_true(tiny_metric(r, "train/ratio_mean") == 1);
    assert_true(tiny_metric(r, "train/clipped_high") == 0);
    assert_true(tiny_metric(r, "train/mismatch_kl") > 0);
    assert_true(tiny_metric(r, "train/rollout_logprob_abs_diff") > 0);
    assert_true(fabs(tiny_metric(r, "train/entropy") - log(TINY_VOCAB)) < 0.5);
    assert_true(tiny_metric(r, "train/tokens_trained/task:0") == tiny_metric(r, "train/tokens_trained"));
    trainer_close(t);
    tiny_step_done(&s);
    free(c);
}

// A multiplicity of 2 is a member given twice.
static void test_multiplicity_is_repetition(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    c->stages[0].aggregation = RUN_AGG_SEQUENCE_MEAN;
    c->trainer.micro_batch_tokens = 512;
    struct tiny_step s;
    struct error err = {0};
    double loss, loss2;
    tiny_step_init(&s, 4, 20, 4, 60);
    struct trainer *t = open_trainer(c);
    // the second sequence becomes a copy of the first, as a trajectory of its own
    for (int k = 0; k < 20; k++) {
        s.ids[20 + k] = s.ids[k];
        s.mask[20 + k] = s.mask[k];
        s.logprobs[20 + k] = s.logprobs[k];
        s.temperatures[20 + k] = s.temperatures[k];
    }
    s.members[1].advantage = s.members[0].advantage;
    assert_int_equal(trainer_gradient(t, &s.msg, 0, &loss, &err), STATUS_OK);
    float *g = copy_floats(t->grads, t->layout.total);
    // … and now it is dropped and the first one counts twice
    memset(s.mask + 20, 0, 20);
    s.members[0].multiplicity = 2;
    assert_int_equal(trainer_gradient(t, &s.msg, 0, &loss2, &err), STATUS_OK);
    assert_true(fabs(loss - loss2) <= 1e-6 * fabs(loss));
    assert_true(tiny_distance(t->grads, g, t->layout.total) <= 1e-6);
    free(g);
    trainer_close(t);
    tiny_step_done(&s);
    free(c);
}

// ---- shared prefixes --------------------------------------------------------------------------------------------------------

#define PROMPT 70 // 64 rows shared
#define ANSWER 30

// 3 prompts, 4 answers each.
static void prompted_step_init(struct tiny_step *s, uint64_t seed)
{
    tiny_step_init(s, 12, PROMPT + ANSWER, 4, seed);
    for (int i = 0; i < 12; i++)
        for (int k = 0, at = i * (PROMPT + ANSWER); k < PROMPT; k++, at++) {
            s->ids[at] = s->ids[i / 4 * 4 * (PROMPT + ANSWER) + k];
            s->mask[at] = 0;
            s->logprobs[at] = 0;
            s->versions[at] = -1;
            s->temperatures[at] = 1;
        }
}

static double branch_flops(const struct trainer *t)
{
    double flops = 64 * 2 * t->matrix_parameters;
    for (int row = 0; row < 64; row++)
        flops += 4.0 * (double)(t->model.n_layers * t->model.n_heads * t->model.head_dim) * (row + 1);
    return 3 * flops;
}

// The loss and the gradient of `update`, and a whole step's result, with prefix_sharing as given.
static double shared_run(struct run_config *c, const struct tiny_step *s, bool sharing, int update,
                         float **ret_grads, int64_t *ret_n, struct step_result *ret)
{
    struct error err = {0};
    double loss;
    c->trainer.prefix_sharing = sharing;
    struct trainer *t = open_trainer(c);
    if (trainer_gradient(t, &s->msg, update, &loss, &err))
        fail_msg("%s", err.text);
    *ret_grads = copy_floats(t->grads, t->layout.total);
    *ret_n = t->layout.total;
    *ret = *run_step(t, &s->msg);
    assert_int_equal(ret->outcome, STEP_APPLIED);
    if (s->msg.updates == 1 && sharing)
        ret->flops += 9 * branch_flops(t);
    trainer_close(t);
    return loss;
}

static void same_metrics(const struct step_result *a, const struct step_result *b)
{
    assert_int_equal(a->metrics.n, b->metrics.n);
    for (int32_t i = 0; i < a->metrics.n; i++) {
        const char *name = a->metrics.items[i].name;
        double x = a->metrics.items[i].value, y = b->metrics.items[i].value;
        assert_string_equal(name, b->metrics.items[i].name);
        if (strcmp(name, "train/tokens") && strcmp(name, "train/shared_tokens") &&
            strcmp(name, "train/micro_batches") && !(fabs(x - y) <= 1e-6 * fabs(y)))
            fail_msg("%s: %.9g with shared prefixes, %.9g without", name, x, y);
    }
}

// Rows computed once for several sequences, under every loss and aggregation: the same loss, gradient and figures.
static void test_shared_prefixes(void **state)
{
    (void)state;
    static struct step_result on, off;
    struct run_config *c = tiny_config();
    struct tiny_step s;
    prompted_step_init(&s, 80);
    for (int i = 0; i < 48; i++) {
        float *shared, *whole;
        int64_t n;
        c->stages[0].loss = i / 6 % 4;
        c->stages[0].aggregation = RUN_AGG_TOKEN_MEAN + i % 3;
        c->stages[0].denominator = i / 3 % 2 ? RUN_DENOM_KEPT : RUN_DENOM_ALL;
        c->stages[0].entropy_coef = i % 2 ? 0.01 : 0;
        c->trainer.micro_batch_tokens = i % 5 ? 2048 : 256; // a tree a micro-batch
        c->trainer.dtype = i < 24 ? RUN_F32 : RUN_BF16;
        double tolerance = i < 24 ? 2e-6 : 1e-2;
        double loss = shared_run(c, &s, true, 0, &shared, &n, &on),
               want = shared_run(c, &s, false, 0, &whole, &n, &off);
        double d = tiny_distance(shared, whole, n);
        if (!(d <= tolerance))
            fail_msg("round %d: the gradient with shared prefixes differs by %g", i, d);
        assert_true(fabs(loss - want) <= 1e-9 * fabs(want));
        if (c->stages[0].denominator == RUN_DENOM_ALL) // one pass
            assert_true(fabs(on.flops / off.flops - 1) < 1e-12);
        if (i < 24)
            same_metrics(&on, &off);
        assert_true(tiny_metric(&off, "train/tokens") == 12 * (PROMPT + ANSWER - 1));
        assert_true(tiny_metric(&off, "train/shared_tokens") == 0);
        assert_true(tiny_metric(&on, "train/shared_tokens") == 9 * 64);
        assert_true(tiny_metric(&on, "train/tokens") == 12 * (PROMPT + ANSWER - 1) - 9 * 64);
        assert_int_equal((int)tiny_metric(&on, "train/micro_batches"), i % 5 ? 1 : 3);
        free(shared);
        free(whole);
    }
    tiny_step_done(&s);
    free(c);
}

// Several updates, with a pass before them that scores whole groups whatever update they fall in; and the same bits on any number of
// threads.
static void test_shared_prefixes_in_updates(void **state)
{
    (void)state;
    static struct step_result on, off;
    struct run_config *c = tiny_config();
    struct tiny_step s;
    float *first = NULL;
    prompted_step_init(&s, 81);
    s.msg.updates = 3;
    c->stages[0].loss = RUN_LOSS_ICEPOP;
    c->trainer.micro_batch_tokens = 512;
    for (int threads = 1; threads <= 3; threads++) {
        float *shared, *whole;
        int64_t n;
        c->trainer.threads = threads;
        c->trainer.recompute = threads == 2;
        shared_run(c, &s, true, 2, &shared, &n, &on);
        shared_run(c, &s, false, 2, &whole, &n, &off);
        assert_true(tiny_distance(shared, whole, n) <= 2e-6);
        assert_true(tiny_metric(&on, "train/shared_tokens") == 9 * 64);
        first = first ? first : copy_floats(shared, n);
        assert_true(same_floats(first, shared, n));
        free(shared);
        free(whole);
    }
    free(first);
    tiny_step_done(&s);
    free(c);
}

static void test_cancel_keeps_state(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct tiny_step s;
    struct error err = {0};
    static struct step_result r;
    tiny_step_init(&s, 6, 0, 3, 70);
    struct trainer *t = open_trainer(c);
    struct frozen f = freeze(t);
    atomic_store(&t->cancel, true);
    assert_int_equal(trainer_step(t, &s.msg, &r, &err), STATUS_CANCELED);
    assert_int_equal(t->step, 0);
    assert_frozen(t, &f);
    atomic_store(&t->cancel, false);
    s.msg.step = 5;
    assert_int_equal(trainer_step(t, &s.msg, &r, &err), STATUS_PROTOCOL);
    trainer_close(t);
    tiny_step_done(&s);
    free(c);
}

// What takes the last update of a step: refuses (0), takes the hash (1), writes a file (2).
struct taker {
    int way, calls;
    int64_t version;
    char hash[HASH_HEX], path[64];
};

static void take(void *ctx, struct trainer *t, int64_t version, struct weights_before *before)
{
    struct taker *a = ctx;
    struct error err = {0};
    a->calls++;
    a->version = version;
    if (a->way == 0)
        return;
    const struct weights_output out = {.path = a->way == 2 ? a->path : NULL, .before = before};
    if (weights_file_rewrite(&out, false, t->device, &t->layout, t->master, rollout_dtype(t->config), version,
                             a->hash, NULL, &err))
        fail_msg("%s", err.text);
    assert_true(before->done);
}

// AdamW on its way into the published file leaves the bits of the update and the publication one after the other: weights, moments
// and hash, for every kind of file, on any number of threads, with one update and with several.
static void test_update_is_taken(void **state)
{
    (void)state;
    static const int64_t dtypes[] = {RUN_F32, RUN_BF16, RUN_FP8};
    struct run_config *c = tiny_config();
    c->model.hidden = 160; // blocks of 128 with odd ends
    c->model.head_dim = 40;
    c->model.ffn = 200;
    c->model.vocab = 1000;
    struct taker a = {.path = "/tmp/ooze-step-XXXXXX"};
    close(mkstemp(a.path));
    for (int k = 0; k < 3; k++)
        for (int way = 0; way < 3; way++) {
            struct tiny_step steps[3];
            char hash[HASH_HEX];
            struct error err = {0};
            c->rollout.dtype = dtypes[k];
            c->trainer.threads = 1;
            struct trainer *plain = open_trainer(c);
            c->trainer.threads = 1 + way;
            struct trainer *taken = open_trainer(c);
            a.way = way;
            taken->taker = (struct trainer_taker){take, &a};
            for (int i = 0; i < 3; i++) {
                tiny_step_init(&steps[i], 8, 0, 2, 300 + (uint64_t)i);
                steps[i].msg.step = i;
                steps[i].msg.updates = 1 + i;
                steps[i].msg.optimizer_reset = i == 2;
                a.calls = 0;
                run_step(plain, &steps[i].msg);
                assert_int_equal(run_step(taken, &steps[i].msg)->outcome, STEP_APPLIED);
                assert_int_equal(a.calls, 1);
                assert_int_equal(a.version, i + 1);
                assert_true(same_floats(plain->master, taken->master, plain->layout.total));
                assert_true(same_floats(plain->optimizer.m, taken->optimizer.m, plain->layout.total));
                assert_true(same_floats(plain->optimizer.v, taken->optimizer.v, plain->layout.total));
                assert_int_equal(plain->optimizer.updates, taken->optimizer.updates);
                assert_int_equal(weights_file_hash(plain->device, &plain->layout, plain->master,
                                                   rollout_dtype(c), i + 1, hash, &err),
                                 STATUS_OK);
                if (way > 0)
                    assert_string_equal(hash, a.hash);
            }
            steps[0].ids[1] = -1; // a step that is rejected makes no weights
            steps[0].msg.step = 3;
            a.calls = 0;
            assert_int_equal(run_step(taken, &steps[0].msg)->outcome, STEP_REJECTED);
            assert_int_equal(a.calls, 0);
            for (int i = 0; i < 3; i++)
                tiny_step_done(&steps[i]);
            trainer_close(plain);
            trainer_close(taken);
        }
    unlink(a.path);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_micro_batches_agree),
        cmocka_unit_test(test_gradient_by_differences),
        cmocka_unit_test(test_learns_and_is_deterministic),
        cmocka_unit_test(test_rejections),
        cmocka_unit_test(test_non_finite_weights_reject),
        cmocka_unit_test(test_rejection_in_second_update),
        cmocka_unit_test(test_updates_per_batch),
        cmocka_unit_test(test_ratio_is_one_on_policy),
        cmocka_unit_test(test_multiplicity_is_repetition),
        cmocka_unit_test(test_cancel_keeps_state),
        cmocka_unit_test(test_update_is_taken),
        cmocka_unit_test(test_shared_prefixes),
        cmocka_unit_test(test_shared_prefixes_in_updates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
