// The peer of bench_gemm: oneDNN on the same products. Everything is as it likes it: bf16 operands are ready, weights lie in the
// format its primitive asked for, and of its two primitives for a product (matmul and inner product) the faster one of a trial
// counts. Built only where the library's headers are; no part of ooze uses it. Threads: OpenMP's.
// Usage: bench_dnnl [--threads N] [--serve]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

#include "base/mem.h"
#include "kernels/dtype.h"
#include "tests/bench/gemm_shapes.h"

static void must(dnnl_status_t s, const char *what)
{
    if (s == dnnl_success)
        return;
    printf("{\"error\":\"oneDNN: %s: status %d\"}\n", what, (int)s);
    exit(1);
}
#define MUST(call) must(call, #call)

static dnnl_engine_t engine;
static dnnl_stream_t stream;

// ---- memory ----------------------------------------------------------------------------------------------------------

static dnnl_memory_desc_t matrix(int64_t rows, int64_t cols, dnnl_data_type_t t, dnnl_format_tag_t tag)
{
    dnnl_memory_desc_t md;
    MUST(dnnl_memory_desc_init_by_tag(&md, 2, (dnnl_dims_t){rows, cols}, t, tag));
    return md;
}

static void *memory_bytes(dnnl_memory_t m)
{
    void *p;
    MUST(dnnl_memory_get_data_handle(m, &p));
    return p;
}

static dnnl_memory_t memory_new(const dnnl_memory_desc_t *md)
{
    dnnl_memory_t m;
    void *p = mem_alloc(dnnl_memory_desc_get_size(md));
    if (!p)
        must(dnnl_out_of_memory, "operands");
    MUST(dnnl_memory_create(&m, md, engine, p));
    return m;
}

static void memory_free(dnnl_memory_t m)
{
    mem_free(memory_bytes(m));
    MUST(dnnl_memory_destroy(m));
}

// Plain bf16 numbers in the given format.
static dnnl_memory_t memory_numbers(const dnnl_memory_desc_t *md, uint32_t seed)
{
    int64_t n = md->dims[0] * md->dims[1];
    dnnl_memory_desc_t plain = matrix(md->dims[0], md->dims[1], dnnl_bf16, dnnl_ab);
    dnnl_memory_t from = memory_new(&plain), to = memory_new(md);
    float *x = mem_alloc((size_t)n * sizeof *x);
    if (!x)
        must(dnnl_out_of_memory, "numbers");
    product_numbers(x, n, seed);
    uint16_t *half = memory_bytes(from);
    for (int64_t i = 0; i < n; i++)
        half[i] = f32_to_bf16(x[i]);
    mem_free(x);
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t reorder;
    MUST(dnnl_reorder_primitive_desc_create(&pd, &plain, engine, md, engine, NULL));
    MUST(dnnl_primitive_create(&reorder, pd));
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    MUST(dnnl_primitive_execute(reorder, stream, 2, args));
    MUST(dnnl_stream_wait(stream));
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(pd);
    memory_free(from);
    return to;
}

// ---- primitives ------------------------------------------------------------------------------------------------------

#define WAYS 2 // matmul, inner product

struct way {
    dnnl_primitive_t primitive; // NULL: the library has none
    dnnl_exec_arg_t args[3];
};

struct job {
    struct product p;
    struct way way[WAYS];
    int best;
};

static void way_run(void *ctx)
{
    struct way *w = ctx;
    MUST(dnnl_primitive_execute(w->primitive, stream, 3, w->args));
    MUST(dnnl_stream_wait(stream));
}

static dnnl_memory_t operand(dnnl_primitive_desc_t pd, dnnl_query_t which, int index, uint32_t seed)
{
    const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(pd, which, index);
    return seed ? memory_numbers(md, seed) : memory_new(md);
}

static void way_open(struct way *w, const void *desc, const int *names, const dnnl_query_t *queries)
{
    dnnl_primitive_desc_t pd;
    if (dnnl_primitive_desc_create(&pd, desc, NULL, engine, NULL) != dnnl_success)
        return;
    MUST(dnnl_primitive_create(&w->primitive, pd));
    for (int i = 0; i < 3; i++)
        w->args[i] = (dnnl_exec_arg_t){names[i], operand(pd, queries[i], 0, i < 2 ? (uint32_t)i + 1 : 0)};
    dnnl_primitive_desc_destroy(pd);
}

static void way_close(struct way *w)
{
    if (!w->primitive)
        return;
    dnnl_primitive_destroy(w->primitive);
    for (int i = 0; i < 3; i++)
        memory_free(w->args[i].memory);
    w->primitive = NULL;
}

// Activations and gradients lie plainly, weights as the primitive wants them; results are plain f32.
static void matmul_open(struct way *w, const struct product *p)
{
    bool dw = p->direction == DW, dx = p->direction == DX;
    int64_t rows = dw ? p->n : p->m, inner = dw ? p->m : dx ? p->n : p->k, cols = dw || dx ? p->k : p->n;
    dnnl_memory_desc_t a = matrix(rows, inner, dnnl_bf16, dw ? dnnl_ba : dnnl_ab);
    dnnl_memory_desc_t b = matrix(inner, cols, dnnl_bf16, dw ? dnnl_ab : dnnl_format_tag_any);
    dnnl_memory_desc_t c = matrix(rows, cols, dnnl_f32, dnnl_ab);
    dnnl_matmul_desc_t desc;
    MUST(dnnl_matmul_desc_init(&desc, &a, &b, NULL, &c));
    way_open(w, &desc, (const int[]){DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST},
             (const dnnl_query_t[]){dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md});
}

static void inner_product_open(struct way *w, const struct product *p)
{
    dnnl_memory_desc_t any = matrix(p->n, p->k, dnnl_bf16, dnnl_format_tag_any);
    dnnl_memory_desc_t src = matrix(p->m, p->k, p->direction == DX ? dnnl_f32 : dnnl_bf16, dnnl_ab);
    dnnl_memory_desc_t dst = matrix(p->m, p->n, p->direction == FORWARD ? dnnl_f32 : dnnl_bf16, dnnl_ab);
    dnnl_inner_product_desc_t desc;
    if (p->direction == FORWARD) {
        MUST(dnnl_inner_product_forward_desc_init(&desc, dnnl_forward_inference, &src, &any, NULL, &dst));
        way_open(w, &desc, (const int[]){DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST},
                 (const dnnl_query_t[]){dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md});
    } else if (p->direction == DX) {
        MUST(dnnl_inner_product_backward_data_desc_init(&desc, &src, &any, &dst));
        way_open(
            w, &desc, (const int[]){DNNL_ARG_DIFF_DST, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_SRC},
            (const dnnl_query_t[]){dnnl_query_diff_dst_md, dnnl_query_weights_md, dnnl_query_diff_src_md});
    } else {
        dnnl_memory_desc_t diff = matrix(p->n, p->k, dnnl_f32, dnnl_ab);
        MUST(dnnl_inner_product_backward_weights_desc_init(&desc, &src, &diff, NULL, &dst));
        way_open(
            w, &desc, (const int[]){DNNL_ARG_SRC, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_WEIGHTS},
            (const dnnl_query_t[]){dnnl_query_src_md, dnnl_query_diff_dst_md, dnnl_query_diff_weights_md});
    }
}

static void job_open(struct job *j)
{
    matmul_open(&j->way[0], &j->p);
    inner_product_open(&j->way[1], &j->p);
    double t[WAYS];
    for (int i = 0; i < WAYS; i++) {
        t[i] = j->way[i].primitive ? product_seconds(way_run, &j->way[i], 0.02) : 1e30;
        double again = j->way[i].primitive ? product_seconds(way_run, &j->way[i], 0.05) : 1e30;
        t[i] = again < t[i] ? again : t[i];
    }
    j->best = t[1] < t[0];
    if (!j->way[j->best].primitive)
        must(dnnl_unimplemented, "bf16 matmul");
    way_close(&j->way[!j->best]);
}

struct bench {
    struct job jobs[PRODUCTS_MAX];
    struct product list[PRODUCTS_MAX];
    int n;
};

static void measure(void *ctx, double *ret_rates)
{
    struct bench *b = ctx;
    for (int i = 0; i < b->n; i++) {
        struct job *j = &b->jobs[i];
        ret_rates[i] = product_flops(&j->p) / product_seconds(way_run, &j->way[j->best], 0.04);
    }
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct bench_options o = bench_options(argc, argv);
    if (o.threads)
        omp_set_num_threads(o.threads);
    MUST(dnnl_engine_create(&engine, dnnl_cpu, 0));
    MUST(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    b.n = products_list(b.list);
    for (int i = 0; i < b.n; i++) {
        b.jobs[i].p = b.list[i];
        job_open(&b.jobs[i]);
    }
    const dnnl_version_t *v = dnnl_version();
    char ready[128];
    snprintf(ready, sizeof ready, "{\"ready\":true,\"name\":\"oneDNN %d.%d.%d\",\"threads\":%d}", v->major,
             v->minor, v->patch, omp_get_max_threads());
    if (o.serve)
        return products_serve(ready, b.list, b.n, measure, &b);
    double rates[PRODUCTS_MAX];
    measure(&b, rates);
    printf("oneDNN %d.%d.%d, %d threads\n", v->major, v->minor, v->patch, omp_get_max_threads());
    for (int i = 0; i < b.n; i++) {
        char name[40];
        product_name(&b.list[i], name, sizeof name);
        printf("%-24s %8.1f GFLOP/s  %s\n", name, rates[i] * 1e-9,
               b.jobs[i].best ? "inner product" : "matmul");
    }
    return 0;
}
