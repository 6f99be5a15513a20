// The list of matrix products and the loop that serves their rates: see gemm_shapes.h.
#include "tests/bench/gemm_shapes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

int products_list(struct product *list)
{
    static const struct product layers[] = {{FORWARD, "qkv", 0, 960, 576},
                                            {FORWARD, "o", 0, 576, 576},
                                            {FORWARD, "gate-up", 0, 3072, 576},
                                            {FORWARD, "down", 0, 576, 1536},
                                            {FORWARD, "head", 0, 49152, 576}};
    static const int64_t forward[] = {1, 8, 32, 128, 512, 1024, 4096}, backward[] = {1024, 4096};
    int n = 0;
    for (int d = FORWARD; d <= DW; d++)
        for (size_t l = 0; l < sizeof layers / sizeof layers[0]; l++)
            for (size_t i = 0; i < (d == FORWARD ? sizeof forward : sizeof backward) / sizeof forward[0];
                 i++) {
                list[n] = layers[l];
                list[n].direction = (enum direction)d;
                list[n++].m = (d == FORWARD ? forward : backward)[i];
            }
    return n;
}

void product_name(const struct product *p, char *buf, size_t size)
{
    static const char *const directions[] = {"forward", "dx", "dw"};
    snprintf(buf, size, "%s/%s/%lld", directions[p->direction], p->layer, (long long)p->m);
}

void product_numbers(float *x, int64_t n, uint32_t seed)
{
    uint32_t u = seed * 2654435761u + 1;
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((u = u * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
}

static double now(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}

double product_seconds(void (*run)(void *ctx), void *ctx, double seconds)
{
    double best = 1e30, start = now();
    for (int i = 0; i < 2 || now() - start < seconds; i++) {
        double t0 = now();
        run(ctx);
        double t = now() - t0;
        best = t < best ? t : best;
    }
    return best;
}

struct bench_options bench_options(int argc, char **argv)
{
    struct bench_options o = {.isa = "auto", .type = "bf16"};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--serve")) {
            o.serve = true;
            continue;
        }
        i++;
        if (!strcmp(argv[i - 1], "--isa"))
            o.isa = value;
        else if (!strcmp(argv[i - 1], "--threads"))
            o.threads = atoi(value);
        else if (!strcmp(argv[i - 1], "--type"))
            o.type = value;
        else if (strcmp(argv[i - 1], "--models")) {
            fprintf(stderr, "usage: %s [--isa CLASS] [--threads N] [--type f32|bf16|fp8] [--serve]\n",
                    argv[0]);
            exit(2);
        }
    }
    return o;
}

static void answer(const struct product *list, int n, const double *rates)
{
    double logs = 0;
    for (int i = 0; i < n; i++)
        logs += log(rates[i] * 1e-9);
    printf("{\"value\":%.6g,\"parts\":{", exp(logs / n));
    for (int i = 0; i < n; i++) {
        char name[40];
        product_name(&list[i], name, sizeof name);
        printf("%s\"%s\":%.6g", i ? "," : "", name, rates[i] * 1e-9);
    }
    printf("}}\n");
    fflush(stdout);
}

int products_serve(const char *ready, const struct product *list, int n,
                   void (*measure)(void *ctx, double *ret_rates), void *ctx)
{
    char line[64];
    double rates[PRODUCTS_MAX];
    printf("%s\n", ready);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && strcmp(line, "quit\n"))
        if (!strcmp(line, "run\n")) {
            measure(ctx, rates);
            answer(list, n, rates);
        }
    return 0;
}
