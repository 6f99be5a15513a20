// optimizer: see optimizer.h. The compute thread owns it.
#include "trainer/optimizer.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

enum status optimizer_init(struct optimizer *o, const struct layout *l, struct error *err)
{
    *o = (struct optimizer){.m = mem_alloc((size_t)l->total * sizeof(float)),
                            .v = mem_alloc((size_t)l->total * sizeof(float))};
    if (o->m && o->v)
        return STATUS_OK;
    optimizer_done(o);
    return error_set(err, STATUS_NOMEM, "optimizer: no memory for the moments of %lld parameters",
                     (long long)l->n_parameters);
}

void optimizer_done(struct optimizer *o)
{
    mem_free(o->m);
    mem_free(o->v);
    *o = (struct optimizer){0};
}

void optimizer_reset(struct optimizer *o, const struct layout *l)
{
    memset(o->m, 0, (size_t)l->total * sizeof(float));
    memset(o->v, 0, (size_t)l->total * sizeof(float));
    o->updates = 0;
}

double optimizer_grad_norm(struct device *d, const struct layout *l, const float *grads)
{
    return sqrt(d->k->sumsq(d, l->total, grads));
}

double optimizer_clip_scale(double norm, double clip)
{
    return clip > 0 && norm > clip ? clip / norm : 1;
}

// b^n by squaring: the same bits on every machine, and the same whether the run was resumed in between or not.
static double power(double b, int64_t n)
{
    double r = 1;
    for (; n > 0; n >>= 1, b *= b)
        if (n & 1)
            r *= b;
    return r;
}

struct optimizer_pass optimizer_begin(struct optimizer *o, const struct run_optimizer *config, double lr,
                                      double scale, const float *grads, float *master)
{
    o->updates++;
    return (struct optimizer_pass){.m = o->m,
                                   .v = o->v,
                                   .master = master,
                                   .grads = grads,
                                   .scale = (float)scale,
                                   .lr = (float)lr,
                                   .beta1 = (float)config->beta1,
                                   .beta2 = (float)config->beta2,
                                   .eps = (float)config->eps,
                                   .weight_decay = (float)config->weight_decay,
                                   .bc1 = (float)(1 - power(config->beta1, o->updates)),
                                   .bc2 = (float)(1 - power(config->beta2, o->updates))};
}

void optimizer_apply(const struct optimizer_pass *a, struct device *d, const struct param *p, int64_t begin,
                     int64_t end)
{
    bool decays = p->kind != PARAM_NORM && p->kind != PARAM_BIAS;
    int64_t at = p->offset + begin;
    d->k->adamw(d, end - begin, a->master + at, a->m + at, a->v + at, a->grads + at, a->scale, a->lr,
                a->beta1, a->beta2, a->eps, decays ? a->weight_decay : 0, a->bc1, a->bc2);
}

void optimizer_update(struct optimizer *o, struct device *d, const struct layout *l,
                      const struct run_optimizer *config, double lr, double scale, const float *grads,
                      float *master)
{
    struct optimizer_pass pass = optimizer_begin(o, config, lr, scale, grads, master);
    for (int32_t i = 0; i < l->n; i++)
        optimizer_apply(&pass, d, &l->params[i], 0, l->params[i].rows * l->params[i].cols);
}
