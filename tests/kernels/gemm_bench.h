// GFLOP/s of gemm and gemm_dw on the shapes of SmolLM2-135M and of the quickstart's model, beside the peak that a loop of
// register-only fused multiply-adds reaches on the same threads in the same run. Included by bench_gemm and by kernels_gemm --bench.
#ifndef TESTS_KERNELS_GEMM_BENCH_H
#define TESTS_KERNELS_GEMM_BENCH_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/kernels.h"

struct shape {
    int64_t m, n, k;
};

static const struct shape SHAPES[] = {
    {1, 576, 576},   {1, 192, 576},    {1, 1536, 576},   {1, 576, 1536},    {1, 49152, 576},
    {32, 576, 576},  {32, 1536, 576},  {32, 576, 1536},  {32, 49152, 576},  {512, 576, 576},
    {512, 192, 576}, {512, 1536, 576}, {512, 576, 1536}, {512, 49152, 576}, {1, 128, 128},
    {1, 704, 128},   {64, 128, 128},   {512, 384, 128},  {512, 704, 128},   {512, 128, 352},
    {512, 264, 128}, {5120, 128, 128}, {5120, 704, 128}, {5120, 128, 352},  {5120, 264, 128},
};
#define N_SHAPES (sizeof SHAPES / sizeof SHAPES[0])

static double now(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}

// Twelve independent chains of packed FMAs a thread, the compiler's vector extension for whatever width it is given.
typedef float wide __attribute__((vector_size(64)));

__attribute__((target("avx512f"))) static float fma_chains_512(int64_t n)
{
    wide a[12] = {{0}}, x = {1.0f}, y = {0.5f};
    for (int64_t i = 0; i < n; i++)
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++)
            __asm__("vfmadd231ps %1, %2, %0" : "+v"(a[j]) : "v"(x), "v"(y));
    float s = 0;
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++)
        s += a[j][0];
    return s;
}

typedef float narrow __attribute__((vector_size(32)));

__attribute__((target("avx2,fma"))) static float fma_chains_256(int64_t n)
{
    narrow a[12] = {{0}}, x = {1.0f}, y = {0.5f};
    for (int64_t i = 0; i < n; i++)
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++)
            __asm__("vfmadd231ps %1, %2, %0" : "+x"(a[j]) : "x"(x), "x"(y));
    float s = 0;
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++)
        s += a[j][0];
    return s;
}

struct peak {
    int64_t n;
    bool wide;
    volatile float sink[1024];
};

static void peak_task(void *ctx, int task, int thread)
{
    (void)task;
    struct peak *p = ctx;
    p->sink[thread] = p->wide ? fma_chains_512(p->n) : fma_chains_256(p->n);
}

static double peak_gflops(struct device *d)
{
    struct peak p = {.n = 400000, .wide = d->isa >= ISA_AVX512};
    int threads = pool_threads(d->pool);
    double best = 0;
    for (int rep = 0; rep < 40; rep++) {
        double t0 = now();
        pool_run(d->pool, threads, peak_task, &p);
        double g = (double)p.n * 12 * (p.wide ? 32 : 16) * threads / (now() - t0) * 1e-9;
        best = g > best ? g : best;
    }
    return best;
}

static float *numbers(struct device *d, int64_t n)
{
    float *x = device_alloc(d, (size_t)n * sizeof *x);
    if (!x)
        abort();
    uint32_t u = 1;
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((u = u * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
    return x;
}

// Best of the runs that fit in about a quarter of a second, after one that warms up.
static double best_seconds(void (*fn)(void *), void *ctx)
{
    fn(ctx);
    double best = 1e30, start = now();
    for (int i = 0; i < 3 || (now() - start < 0.25 && i < 2000); i++) {
        double t0 = now();
        fn(ctx);
        double t = now() - t0;
        best = t < best ? t : best;
    }
    return best;
}

struct run {
    struct device *d;
    struct shape s;
    struct gemm_weight w;
    float *x, *y, *dw;
};

static void run_gemm(void *ctx)
{
    struct run *r = ctx;
    r->d->k->gemm(r->d, &r->w, r->s.m, r->x, r->s.k, NULL, false, r->y, r->s.n);
}

static void run_dw(void *ctx)
{
    struct run *r = ctx;
    r->d->k->gemm_dw(r->d, r->w.dtype, r->s.m, r->s.n, r->s.k, r->y, r->s.n, r->x, r->s.k, r->dw);
}

static double gemm_gflops(struct device *d, struct shape s, enum dtype t, bool dw)
{
    struct run r = {.d = d, .s = s, .w = {.dtype = t, .n = s.n, .k = s.k}};
    r.x = numbers(d, s.m * s.k);
    r.y = numbers(d, s.m * s.n);
    r.dw = numbers(d, s.n * s.k);
    r.w.data = device_alloc(d, d->k->weight_bytes(t, s.n, s.k));
    if (!r.w.data)
        abort();
    if (t == DT_FP8) {
        int64_t blocks = (s.n + 127) / 128 * ((s.k + 127) / 128);
        uint8_t *q = device_alloc(d, (size_t)(s.n * s.k));
        r.w.scales = device_alloc(d, (size_t)blocks * sizeof(float));
        d->k->fp8_quantize(d, s.n, s.k, r.dw, q, r.w.scales);
        d->k->weight_pack(d, t, s.n, s.k, q, DT_FP8, false, r.w.data);
        device_free(d, q);
    } else {
        d->k->weight_pack(d, t, s.n, s.k, r.dw, DT_F32, false, r.w.data);
    }
    double seconds = best_seconds(dw ? run_dw : run_gemm, &r);
    device_free(d, r.x);
    device_free(d, r.y);
    device_free(d, r.dw);
    device_free(d, r.w.data);
    device_free(d, r.w.scales);
    return 2e-9 * (double)s.m * (double)s.n * (double)s.k / seconds;
}

// isa and threads as for device_open. Returns the exit code.
static inline int gemm_bench(const char *isa, int threads)
{
    struct device *d;
    struct error err;
    if (device_open("cpu", isa, threads, &d, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    double peak = peak_gflops(d);
    printf("%s; FMA peak %.1f GFLOP/s (f32)\n%6s %6s %6s %16s %16s %16s %16s %16s\n", d->name, peak, "M", "N",
           "K", "gemm f32", "gemm bf16", "gemm fp8", "dw f32", "dw bf16");
    for (size_t i = 0; i < N_SHAPES; i++) {
        struct shape s = SHAPES[i];
        printf("%6lld %6lld %6lld", (long long)s.m, (long long)s.n, (long long)s.k);
        static const enum dtype types[] = {DT_F32, DT_BF16, DT_FP8, DT_F32, DT_BF16};
        for (int t = 0; t < 5; t++) {
            if (t >= 3 && (s.m < 64 || s.n > 4096)) {
                printf(" %16s", "-");
                continue;
            }
            double g = gemm_gflops(d, s, types[t], t >= 3);
            printf(" %8.1f (%4.0f%%)", g, 100 * g / peak);
        }
        printf("\n");
        fflush(stdout);
    }
    device_close(d);
    return 0;
}

#endif
