// The matrix products of SmolLM2-135M, what ours (bench_gemm) and oneDNN (bench_dnnl) are timed on, and how both time and say it.
// A product is named direction/layer/rows, e.g. "forward/qkv/32"; its layer is W [n, k] and M the rows:
//   forward  y [M, n] = x [M, k] W'      (W packed beforehand)
//   dx       dx [M, k] = dy [M, n] W     (W packed beforehand)
//   dw       dw [n, k] = dy' x           (both operands as the step leaves them)
#ifndef TESTS_BENCH_GEMM_SHAPES_H
#define TESTS_BENCH_GEMM_SHAPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum direction { FORWARD, DX, DW };

struct product {
    enum direction direction;
    const char *layer;
    int64_t m, n, k; // n, k: of the layer's W
};

#define PRODUCTS_MAX 64

// Fills list [PRODUCTS_MAX]; returns how many there are.
int products_list(struct product *list);
void product_name(const struct product *p, char *buf, size_t size); // at most 40 bytes
static inline double product_flops(const struct product *p)
{
    return 2.0 * (double)p->m * (double)p->n * (double)p->k;
}
// Numbers in about [-1, 1), the same for the same seed.
void product_numbers(float *x, int64_t n, uint32_t seed);

// Seconds of the fastest of several calls of run(ctx), at least `seconds` and 2 calls long.
double product_seconds(void (*run)(void *ctx), void *ctx, double seconds);

// What a program is asked to do, from its command line.
struct bench_options {
    const char *isa; // "auto"
    int threads;     // 0: all
    bool serve;
    const char *type; // "bf16"
};
// --isa CLASS, --threads N, --type T, --serve; --models DIR is accepted and ignored. Exits with a message on anything else.
struct bench_options bench_options(int argc, char **argv);

// The line protocol of `ooze bench` (cli/bench_child.h) for rates [n] in FLOP/s that measure() fills: prints `ready`, then for
// each "run" {"value": geometric mean, "parts": {name: rate}} in GFLOP/s. Returns the exit code.
int products_serve(const char *ready, const struct product *list, int n,
                   void (*measure)(void *ctx, double *ret_rates), void *ctx);

#endif
