// The machine's bounds: see peaks.h. The caller's thread runs everything together with the device's pool.
#include "tests/bench/peaks.h"

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/peak.h"

static double now(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}

#define REPETITIONS 60

double peak_fma(struct device *d)
{
    return peak_flops(d, DT_F32, REPETITIONS);
}

double peak_bf16(struct device *d)
{
    return peak_flops(d, DT_BF16, REPETITIONS);
}

// ---- memory ----------------------------------------------------------------------------------------------------------

#define LINE 64

// Reads `streams` runs of n lines each, `apart` bytes apart, one line of each in turn; `ahead` lines are asked for in advance.
#define READ_BODY(type)                                                                                      \
    const char *q = p;                                                                                       \
    type sum[8] = {{0}};                                                                                     \
    for (int64_t i = 0; i < n; i++, q += LINE)                                                               \
        _Pragma("GCC unroll 8") for (int s = 0; s < streams; s++)                                            \
        {                                                                                                    \
            const type *line = (const type *)(q + s * apart);                                                \
            if (ahead)                                                                                       \
                __builtin_prefetch(q + s * apart + ahead * LINE);                                            \
            for (int j = 0; j < LINE / (int)sizeof(type); j++)                                               \
                sum[s] ^= line[j];                                                                           \
        }                                                                                                    \
    int64_t out = 0;                                                                                         \
    _Pragma("GCC unroll 8") for (int s = 0; s < 8; s++) out ^= sum[s][0];                                    \
    return out;

typedef int64_t half_line __attribute__((vector_size(32)));
typedef int64_t word __attribute__((vector_size(16)));
typedef int64_t read_fn(const void *p, int64_t n, int64_t apart);

#define READ_DEFINE(name, attribute, type, n_streams, n_ahead)                                               \
    attribute static int64_t name(const void *p, int64_t n, int64_t apart)                                   \
    {                                                                                                        \
        enum { streams = n_streams, ahead = n_ahead };                                                       \
        READ_BODY(type)                                                                                      \
    }
#define READ_EACH(kind, attribute, type)                                                                     \
    READ_DEFINE(kind##_1, attribute, type, 1, 0)                                                             \
    READ_DEFINE(kind##_2, attribute, type, 2, 0)                                                             \
    READ_DEFINE(kind##_4, attribute, type, 4, 0)                                                             \
    READ_DEFINE(kind##_8, attribute, type, 8, 0)                                                             \
    READ_DEFINE(kind##_1p, attribute, type, 1, 64)                                                           \
    READ_DEFINE(kind##_2p, attribute, type, 2, 32)                                                           \
    READ_DEFINE(kind##_4p, attribute, type, 4, 16)                                                           \
    READ_DEFINE(kind##_8p, attribute, type, 8, 16)
#define READ_NAMES(kind) kind##_1, kind##_2, kind##_4, kind##_8, kind##_1p, kind##_2p, kind##_4p, kind##_8p
static const int READ_STREAMS[PEAK_READ_WAYS] = {1, 2, 4, 8, 1, 2, 4, 8};

READ_EACH(plain, , word)
#if defined(__x86_64__)
typedef int64_t whole_line __attribute__((vector_size(64)));
READ_EACH(avx, __attribute__((target("avx2"))), half_line)
READ_EACH(avx512, __attribute__((target("avx512f"))), whole_line)
#endif

struct pass {
    const char *from;
    char *to;
    size_t bytes;
    int tasks, streams;
    read_fn *read;
    volatile int64_t sink;
};

static void pass_task(void *ctx, int task, int thread)
{
    (void)thread;
    struct pass *p = ctx;
    size_t unit = LINE * (size_t)p->streams * (size_t)p->tasks,
           share = p->bytes / unit * LINE * (size_t)p->streams;
    if (p->to)
        memcpy(p->to + (size_t)task * share, p->from + (size_t)task * share, share);
    else
        p->sink = p->read(p->from + (size_t)task * share, (int64_t)(share / LINE) / p->streams,
                          (int64_t)share / p->streams);
}

// Seconds for all of p's bytes; what the shares leave out at the end is less than a share's rounding and counted as done by rule of three.
static double pass_seconds(struct device *d, struct pass *p)
{
    size_t unit = LINE * (size_t)p->streams * (size_t)p->tasks, done = p->bytes / unit * unit;
    assert(done);
    double t0 = now();
    pool_run(d->pool, p->tasks, pass_task, p);
    return (now() - t0) * (double)p->bytes / (double)done;
}

static read_fn *const *read_ways(void)
{
    static read_fn *const plain[] = {READ_NAMES(plain)};
#if defined(__x86_64__)
    static read_fn *const avx[] = {READ_NAMES(avx)}, *const avx512[] = {READ_NAMES(avx512)};
    if (__builtin_cpu_supports("avx512f"))
        return avx512;
    if (__builtin_cpu_supports("avx2"))
        return avx;
#endif
    return plain;
}

double peak_read_pass(struct device *d, const void *from, size_t bytes, int way)
{
    struct pass p = {.from = from,
                     .bytes = bytes,
                     .tasks = pool_threads(d->pool),
                     .streams = READ_STREAMS[way],
                     .read = read_ways()[way]};
    return pass_seconds(d, &p);
}

double peak_read(struct device *d, const void *from, size_t bytes, double seconds)
{
    double best = 1e30, start = now();
    for (int i = 0; i < 2 * PEAK_READ_WAYS || now() - start < seconds; i++) {
        double t = peak_read_pass(d, from, bytes, i % PEAK_READ_WAYS);
        best = t < best ? t : best;
    }
    return (double)bytes / best;
}

double peak_copy(struct device *d, void *to, const void *from, size_t bytes, double seconds)
{
    double best = 1e30, start = now();
    for (int i = 0; i < 3 || now() - start < seconds; i++) {
        struct pass p = {
            .from = from, .to = to, .bytes = bytes, .tasks = pool_threads(d->pool), .streams = 1};
        double t = pass_seconds(d, &p);
        best = t < best ? t : best;
    }
    return (double)bytes / best;
}
