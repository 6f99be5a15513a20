// Our matrix products, timed: see gemm_bench.h. Operands are handed over as a training step has them: with --type bf16 (and fp8) as rows of
// bf16, which the op before the product wrote, but for the head's forward product, whose hidden states stay f32 and are rounded on the way,
// within its time; with --type f32 all is f32. What is written, y, dx and dw, is f32.
#include "tests/bench/gemm_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/gemm_shapes.h"
#include "tests/bench/peaks.h"

struct job {
    struct device *d;
    struct product p;
    struct gemm_weight w; // forward: W; dx: W transposed
    struct rows a, b;     // forward x, -; dx dy, -; dw dy, x
    float *c;             // y, dx, dw
};

struct bench {
    struct device *d;
    enum dtype type;
    struct job jobs[PRODUCTS_MAX];
    struct product list[PRODUCTS_MAX];
    int n;
};

static void *need(void *p)
{
    if (p)
        return p;
    printf("{\"error\":\"no memory for the operands\"}\n");
    exit(1);
}

static float *numbers(struct device *d, int64_t n, uint32_t seed)
{
    float *x = need(device_alloc(d, (size_t)n * sizeof *x));
    product_numbers(x, n, seed);
    return x;
}

static struct rows operand(struct device *d, enum dtype t, int64_t rows, int64_t cols, uint32_t seed)
{
    float *x = numbers(d, rows * cols, seed);
    if (t == DT_F32)
        return rows_f32(x, cols);
    uint16_t *h = need(device_alloc(d, (size_t)(rows * cols) * sizeof *h));
    d->k->to_bf16(d, rows * cols, x, h);
    device_free(d, x);
    return rows_bf16(h, cols);
}

static void weight_open(struct job *j, enum dtype t, int64_t n, int64_t k)
{
    struct device *d = j->d;
    float *from = numbers(d, n * k, 2);
    j->w = (struct gemm_weight){
        .dtype = t, .n = n, .k = k, .data = need(device_alloc(d, d->k->weight_bytes(t, n, k)))};
    if (t == DT_FP8) {
        uint8_t *codes = need(device_alloc(d, (size_t)(n * k)));
        j->w.scales = need(device_alloc(d, (size_t)((n + 127) / 128 * ((k + 127) / 128)) * sizeof(float)));
        d->k->fp8_quantize(d, n, k, from, codes, j->w.scales);
        d->k->weight_pack(d, t, n, k, codes, DT_FP8, false, j->w.data);
        device_free(d, codes);
    } else {
        d->k->weight_pack(d, t, n, k, from, DT_F32, false, j->w.data);
    }
    device_free(d, from);
}

static void job_open(struct job *j, struct device *d, enum dtype t, const struct product *p)
{
    j->d = d;
    j->p = *p;
    const bool hidden = p->direction == FORWARD && !strcmp(p->layer, "head");
    j->a = operand(d, hidden ? DT_F32 : rows_dtype(t), p->m, p->direction == FORWARD ? p->k : p->n, 1);
    if (p->direction == DW) {
        j->w.dtype = t;
        j->b = operand(d, rows_dtype(t), p->m, p->k, 2);
        j->c = numbers(d, p->n * p->k, 3);
    } else {
        weight_open(j, t, p->direction == DX ? p->k : p->n, p->direction == DX ? p->n : p->k);
        j->c = numbers(d, p->m * j->w.n, 3);
    }
}

static void job_close(struct job *j)
{
    device_free(j->d, (void *)j->a.at);
    device_free(j->d, (void *)j->b.at);
    device_free(j->d, j->c);
    device_free(j->d, j->w.data);
    device_free(j->d, j->w.scales);
}

static void job_run(void *ctx)
{
    struct job *j = ctx;
    const struct kernels *k = j->d->k;
    if (j->p.direction == DW)
        k->gemm_dw(j->d, j->w.dtype, j->p.m, j->p.n, j->p.k, j->a, j->b, j->c);
    else
        k->gemm(j->d, &j->w, j->p.m, j->a, NULL, false, j->c, j->w.n);
}

static void measure(void *ctx, double *ret_rates)
{
    struct bench *b = ctx;
    for (int i = 0; i < b->n; i++)
        ret_rates[i] = product_flops(&b->list[i]) / product_seconds(job_run, &b->jobs[i], 0.04);
}

static void table(struct bench *b)
{
    double rates[PRODUCTS_MAX], fma = peak_fma(b->d), peak = b->type == DT_F32 ? fma : peak_bf16(b->d);
    printf("%s, %s; peak %.1f GFLOP/s (f32 multiply-adds %.1f)\n", b->d->name, dtype_name(b->type),
           peak * 1e-9, fma * 1e-9);
    measure(b, rates);
    for (int i = 0; i < b->n; i++) {
        char name[40];
        product_name(&b->list[i], name, sizeof name);
        printf("%-24s %8.1f GFLOP/s  %5.1f%% of the peak\n", name, rates[i] * 1e-9, 100 * rates[i] / peak);
    }
}

int gemm_bench(int argc, char **argv)
{
    static struct bench b;
    struct error err;
    struct bench_options o = bench_options(argc, argv);
    if (device_open("cpu", o.isa, o.threads, &b.d, &err)) {
        printf("{\"error\":\"%s\"}\n", err.text);
        return 1;
    }
    b.type = !strcmp(o.type, "f32") ? DT_F32 : !strcmp(o.type, "fp8") ? DT_FP8 : DT_BF16;
    struct product all[PRODUCTS_MAX];
    int n = products_list(all);
    for (int i = 0; i < n; i++)
        if (b.type != DT_FP8 || all[i].direction == FORWARD) { // nothing is trained in FP8
            b.list[b.n] = all[i];
            job_open(&b.jobs[b.n], b.d, b.type, &all[i]);
            b.n++;
        }
    int rc = 0;
    if (o.serve) {
        char ready[160];
        snprintf(ready, sizeof ready, "{\"ready\":true,\"isa\":\"%s\",\"threads\":%d}", isa_name(b.d->isa),
                 pool_threads(b.d->pool));
        rc = products_serve(ready, b.list, b.n, measure, &b);
    } else {
        table(&b);
    }
    for (int i = 0; i < b.n; i++)
        job_close(&b.jobs[i]);
    device_close(b.d);
    return rc;
}
