// The model against PyTorch and transformers in f32 (tests/golden/make_model.py): logits, the gradient of every tensor and
// the losses of ten AdamW steps, for Llama, Llama 3 (rope scaling, tied), Qwen2 (biases, tied), Qwen3 (q/k norm).
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/mem.h"
#include "model/folder.h"
#include "model/model.h"
#include "model/safetensors.h"
#include "tests/isa.h"

#define TOLERANCE 1e-4
#define SEQS_MAX  8
#define ROWS_MAX  256

struct fixture {
    char dir[512];
    struct device *d;
    struct model_config c;
    struct layout l;
    float *master, *grads;
    struct safetensors golden;
    struct weights *w;
    int32_t n, n_seqs, n_trained;
    const int32_t *ids, *targets;
    int32_t pos[ROWS_MAX], pages[ROWS_MAX];
    struct attn_seq seqs[SEQS_MAX];
    float inv_temp[ROWS_MAX], dlogprob[ROWS_MAX], logprob[ROWS_MAX];
};

static const struct safetensor *golden_find(const struct fixture *f, const char *name, enum dtype dtype)
{
    const struct safetensor *t = safetensors_find(&f->golden, name);
    if (!t || t->dtype != dtype)
        fail_msg("%s: golden tensor %s", f->dir, name);
    return t;
}

static void must(enum status rc, const struct error *err)
{
    if (rc)
        fail_msg("%s", err->text);
}

static void batch_make(struct fixture *f)
{
    const int32_t *len = (const void *)golden_find(f, "lengths", DT_I32)->data;
    f->n_seqs = (int32_t)(golden_find(f, "lengths", DT_I32)->bytes / 4);
    f->n = (int32_t)(golden_find(f, "ids", DT_I32)->bytes / 4);
    f->ids = (const void *)golden_find(f, "ids", DT_I32)->data;
    f->targets = (const void *)golden_find(f, "targets", DT_I32)->data;
    assert_true(f->n_seqs <= SEQS_MAX && f->n <= ROWS_MAX);
    for (int32_t i = 0, row = 0, page = 0; i < f->n_seqs; i++) {
        f->seqs[i] = (struct attn_seq){row, len[i], 0, f->pages + page};
        for (int32_t k = 0; k * ATTN_BLOCK < len[i]; k++, page++)
            f->pages[page] = page;
        for (int32_t k = 0; k < len[i]; k++)
            f->pos[row++] = k;
    }
    for (int32_t i = 0; i < f->n; i++) {
        f->inv_temp[i] = 1;
        f->n_trained += f->targets[i] >= 0;
    }
    for (int32_t i = 0; i < f->n; i++)
        f->dlogprob[i] = -1.0f / (float)f->n_trained;
}

static void fixture_open(struct fixture *f, const char *name)
{
    struct error err;
    char path[600];
    const char *root = getenv("OOZE_SOURCE_DIR");
    memset(f, 0, sizeof(*f));
    snprintf(f->dir, sizeof(f->dir), "%s/tests/golden/model_%s", root ? root : ".", name);
    snprintf(path, sizeof(path), "%s/golden.safetensors", f->dir);
    must(device_open("cpu", test_isa(), 1, &f->d, &err), &err);
    must(model_config_read(f->dir, &f->c, &err), &err);
    must(layout_open(&f->c, &f->l, &err), &err);
    must(model_folder_read(f->dir, &f->c, &f->l, &f->master, &err), &err);
    must(safetensors_open(path, false, &f->golden, &err), &err);
    must(weights_open(f->d, &f->c, &f->l, DT_F32, true, &f->w, &err), &err);
    weights_set(f->w, f->master);
    f->grads = mem_alloc((size_t)f->l.total * sizeof(float));
    batch_make(f);
}

static void fixture_close(struct fixture *f)
{
    weights_close(f->w);
    safetensors_close(&f->golden);
    mem_free(f->master);
    mem_free(f->grads);
    layout_done(&f->l);
    device_close(f->d);
}

// |a - b| / |b| over n elements
static double distance(const float *a, const float *b, int64_t n)
{
    double d = 0, s = 0;
    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    assert_true(s > 0);
    return sqrt(d / s);
}

static void check_logits(struct fixture *f)
{
    struct arena step;
    struct kv *kv;
    struct error err;
    int64_t C = f->c.hidden, V = f->c.vocab;
    const struct safetensor *want = golden_find(f, "logits", DT_F32);
    assert_true(want->dims[0] == f->n && want->dims[1] == V);
    arena_init(&step, 0);
    must(kv_open(f->d, &f->c, DT_F32, ROWS_MAX, ATTN_BLOCK, &kv, &err), &err);
    float *hidden = arena_alloc(&step, sizeof(float) * (size_t)(f->n * C));
    float *logits = arena_alloc(&step, sizeof(float) * (size_t)(f->n * V));
    struct batch b = {f->n, f->n_seqs, f->ids, f->pos, f->seqs};
    must(model_forward(f->w, kv, &b, &step, hidden, &err), &err);
    model_logits(f->w, f->n, hidden, logits);
    double d = distance(logits, (const float *)(const void *)want->data, f->n * V);
    print_message("%s: logits %.2e", f->c.arch, d);
    assert_true(d < TOLERANCE);
    kv_close(kv);
    arena_done(&step);
}

// Mean cross entropy; its gradient in f->grads.
static double step_loss(struct fixture *f, struct train *t)
{
    double loss = 0;
    struct batch b = {f->n, f->n_seqs, f->ids, f->pos, f->seqs};
    memset(f->grads, 0, (size_t)f->l.total * sizeof(float));
    train_forward(t, f->w, &b);
    train_logprobs(t, f->w, f->targets, f->inv_temp, f->logprob, NULL);
    train_backward(t, f->w, f->dlogprob, NULL, f->grads);
    for (int32_t i = 0; i < f->n; i++)
        loss -= (double)f->logprob[i] / f->n_trained;
    return loss;
}

static void check_gradients(struct fixture *f, struct train *t)
{
    double worst = 0, loss = step_loss(f, t);
    const struct safetensor *want = golden_find(f, "loss", DT_F32);
    float expect;
    memcpy(&expect, want->data, 4);
    assert_true(fabs(loss - (double)expect) < TOLERANCE * (double)expect);
    for (int32_t i = 0; i < f->l.n; i++) {
        const struct param *p = &f->l.params[i];
        char name[128];
        snprintf(name, sizeof(name), "grad.%s", p->name);
        want = golden_find(f, name, DT_F32);
        assert_true((int64_t)want->bytes == p->rows * p->cols * 4);
        double d = distance(f->grads + p->offset, (const float *)(const void *)want->data, p->rows * p->cols);
        if (!(d < TOLERANCE))
            fail_msg("%s: gradient of %s is off by %.2e", f->dir, p->name, d);
        worst = d > worst ? d : worst;
    }
    print_message(", %d gradients %.2e", (int)f->l.n, worst);
}

static float hyper(const struct fixture *f, const char *name)
{
    const char *s = safetensors_metadata(&f->golden, name);
    assert_non_null(s);
    return strtof(s, NULL);
}

static void check_adamw(struct fixture *f, struct train *t)
{
    const struct safetensor *want = golden_find(f, "losses", DT_F32);
    float *m = mem_alloc((size_t)f->l.total * sizeof(float)),
          *v = mem_alloc((size_t)f->l.total * sizeof(float));
    float b1 = hyper(f, "beta1"), b2 = hyper(f, "beta2"), clip = hyper(f, "clip_grad_norm");
    double worst = 0;
    for (int i = 0; i < 10; i++) {
        float expect;
        memcpy(&expect, want->data + i * 4, 4);
        double loss = step_loss(f, t), d = fabs(loss - (double)expect) / (double)expect;
        worst = d > worst ? d : worst;
        double norm = sqrt(f->d->k->sumsq(f->d, f->l.total, f->grads));
        float scale = norm > (double)clip ? (float)((double)clip / (norm + 1e-6)) : 1;
        f->d->k->adamw(f->d, f->l.total, f->master, m, v, f->grads, scale, hyper(f, "lr"), b1, b2,
                       hyper(f, "eps"), hyper(f, "weight_decay"), 1 - powf(b1, (float)(i + 1)),
                       1 - powf(b2, (float)(i + 1)));
        weights_set(f->w, f->master);
    }
    print_message(", ten AdamW losses %.2e\n", worst);
    assert_true(worst < TOLERANCE);
    mem_free(m);
    mem_free(v);
}

static void check(const char *name, bool recompute)
{
    static struct fixture f;
    struct train *t;
    struct error err;
    fixture_open(&f, name);
    must(train_open(f.d, &f.c, &f.l, DT_F32, DT_F32, f.n, recompute, &t, &err), &err);
    check_logits(&f);
    check_gradients(&f, t);
    check_adamw(&f, t);
    train_close(t);
    fixture_close(&f);
}

static void test_llama(void **state)
{
    (void)state;
    check("llama", false);
    check("llama", true);
}
static void test_llama3(void **state)
{
    (void)state;
    check("llama3", false);
}
static void test_qwen2(void **state)
{
    (void)state;
    check("qwen2", true);
}
static void test_qwen3(void **state)
{
    (void)state;
    check("qwen3", true);
    check("qwen3", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_llama), cmocka_unit_test(test_llama3),
                                       cmocka_unit_test(test_qwen2), cmocka_unit_test(test_qwen3)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
