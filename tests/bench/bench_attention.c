// Attention alone: forward and backward of training sequences in GFLOP/s (causal pairs only: 4 and 10 flops a pair and dimension), and
// decode steps in GB/s of keys and values read, for every cache format; out is
// what models with weights of that format hand over (rows_dtype). Heads of SmolLM2-135M: H = 9, G = 3, D = 64.
// Usage: bench_attention [isa] [threads] [tokens] [sequences]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/kernels.h"
#include "tests/bench/peaks.h"

enum { H = 9, G = 3, D = 64, PAGE = 64 };

static double seconds(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}

static float *floats(struct device *d, int64_t n)
{
    struct rng r;
    rng_init(&r, 1, (uint64_t)n);
    float *x = device_alloc(d, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = rng_normal(&r);
    return x;
}

// Pages of some layers for n sequences of `tokens`, one block of memory for all layers as in a kv; rows [tokens - n_rows, tokens) of each
// sequence are to be computed.
struct pages {
    struct attn_cache c; // of layer 0
    int64_t layer;       // pages of a layer
    struct attn_seq *seqs;
    int32_t *numbers;
    size_t bytes; // of keys and values of a layer, scales included
};

static struct attn_cache layer_of(const struct pages *p, int layer)
{
    struct attn_cache c = p->c;
    int64_t part = layer * p->layer * G * PAGE, size = (int64_t)dtype_bytes(c.dtype);
    c.k = (char *)c.k + part * D * size;
    c.v = (char *)c.v + part * D * size;
    c.k_scale = c.k_scale ? c.k_scale + part : NULL;
    c.v_scale = c.v_scale ? c.v_scale + part : NULL;
    return c;
}

static struct pages pages_new(struct device *d, enum dtype t, int layers, int n, int tokens, int n_rows)
{
    int per_seq = (tokens + PAGE - 1) / PAGE, n_pages = n * per_seq;
    size_t slots = (size_t)(layers * n_pages * G * PAGE);
    struct pages p = {.c = {t, PAGE, G, D, device_alloc(d, slots * D * dtype_bytes(t)),
                            device_alloc(d, slots * D * dtype_bytes(t)), NULL, NULL},
                      .layer = n_pages,
                      .seqs = mem_must((size_t)n, sizeof *p.seqs),
                      .numbers = mem_must((size_t)n_pages, sizeof *p.numbers)};
    p.bytes = 2 * (size_t)(n * tokens * G) * (D * dtype_bytes(t) + (t == DT_FP8 ? sizeof(float) : 0));
    if (t == DT_FP8) {
        p.c.k_scale = device_alloc(d, slots * sizeof(float));
        p.c.v_scale = device_alloc(d, slots * sizeof(float));
    }
    uint32_t *order = mem_must((size_t)n_pages, sizeof *order);
    struct rng r;
    rng_init(&r, 2, 0);
    for (int i = 0; i < n_pages; i++)
        order[i] = (uint32_t)i;
    rng_shuffle_u32(&r, order, (uint32_t)n_pages); // a cache in use
    for (int i = 0; i < n_pages; i++)
        p.numbers[i] = (int32_t)order[i];
    free(order);
    for (int i = 0; i < n; i++)
        p.seqs[i] = (struct attn_seq){i * n_rows, n_rows, tokens - n_rows, p.numbers + i * per_seq};
    float *k = floats(d, (int64_t)tokens * G * D);
    for (int l = 0; l < layers; l++)
        for (int i = 0; i < n; i++) {
            struct attn_seq all = {0, tokens, 0, p.seqs[i].pages};
            struct attn_cache c = layer_of(&p, l);
            d->k->kv_write(d, &c, 1, &all, k, G * D, k, G * D);
        }
    device_free(d, k);
    return p;
}

static void pages_done(struct device *d, struct pages *p)
{
    device_free(d, p->c.k);
    device_free(d, p->c.v);
    device_free(d, p->c.k_scale);
    device_free(d, p->c.v_scale);
    free(p->seqs);
    free(p->numbers);
}

static void train(struct device *d, enum dtype t, int n, int tokens)
{
    struct pages p = pages_new(d, t, 1, n, tokens, tokens);
    int64_t rows = (int64_t)n * tokens;
    float *q = floats(d, rows * H * D), *k = floats(d, rows * G * D), *out = floats(d, rows * H * D),
          *lse = floats(d, rows * H), *dq = floats(d, rows * H * D), *dk = floats(d, rows * G * D),
          *dv = floats(d, rows * G * D), *dout = floats(d, rows * H * D);
    double best[3] = {1e9, 1e9, 1e9}, flops = 0.5 * (double)rows * (tokens + 1) * H * D;
    d->k->kv_write(d, &p.c, n, p.seqs, k, G * D, k, G * D);
    for (double until = seconds() + 1; seconds() < until;) {
        double at[4] = {seconds()};
        d->k->kv_write(d, &p.c, n, p.seqs, k, G * D, k, G * D);
        at[1] = seconds();
        d->k->attention(d, &p.c, H, 0.125f, n, p.seqs, q, H * D, rows_dtype(t), out, H * D, lse);
        at[2] = seconds();
        d->k->attention_grad(d, t, H, G, D, 0.125f, n, p.seqs, q, H * D, k, G * D, k, G * D, rows_dtype(t),
                             out, H * D, lse, dout, H * D, dq, H * D, dk, G * D, dv, G * D);
        at[3] = seconds();
        for (int i = 0; i < 3; i++)
            best[i] = at[i + 1] - at[i] < best[i] ? at[i + 1] - at[i] : best[i];
    }
    printf("train  %-8s %2d x %5d   forward %7.1f   backward %7.1f GFLOP/s   kv_write %6.1f ns a row\n",
           dtype_name(t), n, tokens, 4e-9 * flops / best[1], 10e-9 * flops / best[2],
           1e9 * best[0] / (double)rows);
    float *all[] = {q, k, out, lse, dq, dk, dv, dout};
    for (int i = 0; i < 8; i++)
        device_free(d, all[i]);
    pages_done(d, &p);
}

// One layer's keys and values would stay in the cache of the processor; `LAYERS` of them are read in turn, as a model's are. Beside it
// what a plain reading loop gets out of the same keys.
static void decode(struct device *d, enum dtype t, int n, int tokens)
{
    enum { LAYERS = 30 };
    struct pages p = pages_new(d, t, LAYERS, n, tokens, 1);
    float *q = floats(d, n * H * D), *out = floats(d, n * H * D);
    double best = 1e9, bytes = (double)p.bytes * LAYERS, plain = 0;
    for (int round = 0; round < 4; round++) { // in turn: neighbours on the machine disturb both alike
        for (double until = seconds() + 0.1; seconds() < until;) {
            double at = seconds();
            for (int i = 0; i < LAYERS; i++) {
                struct attn_cache c = layer_of(&p, i);
                d->k->attention(d, &c, H, 0.125f, n, p.seqs, q, H * D, rows_dtype(t), out, H * D, NULL);
            }
            at = seconds() - at;
            best = at < best ? at : best;
        }
        double read = peak_read(d, p.c.k, (size_t)(p.layer * LAYERS * G * PAGE * D) * dtype_bytes(t), 0.1);
        plain = read > plain ? read : plain;
    }
    printf("decode %-8s %2d x %5d   %6.1f of %6.1f GB/s   %8.1f us a layer   (%.0f MiB)\n", dtype_name(t), n,
           tokens, bytes / best * 1e-9, plain * 1e-9, best / LAYERS * 1e6, bytes / 1048576);
    pages_done(d, &p);
    device_free(d, q);
    device_free(d, out);
}

int main(int argc, char **argv)
{
    struct device *d;
    struct error err;
    int threads = argc > 2 ? atoi(argv[2]) : 2, tokens = argc > 3 ? atoi(argv[3]) : 1024,
        n = argc > 4 ? atoi(argv[4]) : 4;
    if (threads < 0 || tokens < 1 || n < 1 ||
        device_open("cpu", argc > 1 ? argv[1] : "auto", threads, &d, &err) != STATUS_OK) {
        fputs("usage: bench_attention [isa] [threads] [tokens] [sequences]\n", stderr);
        return 2;
    }
    printf("%s\n", d->name);
    for (int t = DT_F32; t <= DT_FP8; t++)
        train(d, (enum dtype)t, n, tokens);
    for (int t = DT_F32; t <= DT_FP8; t++)
        for (int batch = 1; batch <= 32; batch *= 32)
            for (int context = 256; context <= 2048; context *= 8)
                if (batch * context <= 8192)
                    decode(d, (enum dtype)t, batch, context);
    device_close(d);
    return 0;
}
