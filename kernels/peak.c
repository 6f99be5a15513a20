// The arithmetic peak of the processor: see peak.h. The caller's thread works together with the device's pool.
#include "kernels/peak.h"

#include <stdatomic.h>

#include "base/clock.h"
#include "kernels/amx/amx.h"
#include "kernels/cpu.h"

#define CHAINS      24     // independent accumulators: latency times throughput, twice over
#define ROUNDS      100000 // of one repetition
#define ROUNDS_TILE 16000  // of products of tiles, 64 cycles each

#if defined(__x86_64__)
typedef float wide __attribute__((vector_size(64)));
typedef float narrow __attribute__((vector_size(32)));

// n rounds of one instruction over a set of accumulators; what comes out depends on all of them.
#define LOOP_DEFINE(name, isa, type, chains, instruction)                                                    \
    __attribute__((target(isa))) static float name(int64_t n)                                                \
    {                                                                                                        \
        type a[chains] = {{0}}, x = {1.0f}, y = {0.5f};                                                      \
        for (int64_t i = 0; i < n; i++)                                                                      \
            _Pragma("GCC unroll 32") for (int j = 0; j < chains; j++) __asm__ volatile(                      \
                instruction " %1, %2, %0" : "+v"(a[j]) : "v"(x), "v"(y));                                    \
        float s = 0;                                                                                         \
        _Pragma("GCC unroll 32") for (int j = 0; j < chains; j++) s += a[j][0];                              \
        return s;                                                                                            \
    }
LOOP_DEFINE(fma_wide, "avx512f", wide, CHAINS, "vfmadd231ps")
LOOP_DEFINE(fma_narrow, "avx2,fma", narrow, CHAINS / 2, "vfmadd231ps")
LOOP_DEFINE(dot_wide, "avx512f,avx512bf16", wide, CHAINS, "vdpbf16ps")
#endif

struct loop {
    float (*fn)(int64_t n);
    int64_t rounds;
    _Atomic float sink; // of whichever thread ends last
};

static float scalar_chains(int64_t n)
{
    volatile float x = 1.0f;
    float a[8] = {0}, y = x;
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < 8; j++)
            a[j] = __builtin_fmaf(y, y, a[j]);
    return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}

static void loop_task(void *ctx, int task, int thread)
{
    (void)task;
    (void)thread;
    struct loop *l = ctx;
    atomic_store_explicit(&l->sink, l->fn(l->rounds), memory_order_relaxed);
}

// flops: of one round on one thread.
static double loop_peak(struct device *d, float (*fn)(int64_t), int64_t rounds, double flops, int repetitions)
{
    struct loop l = {.fn = fn, .rounds = rounds};
    int threads = pool_threads(d->pool);
    double best = 0;
    for (int i = 0; i < repetitions; i++) {
        int64_t start = clock_mono_ns(clock_system());
        pool_run(d->pool, threads, loop_task, &l);
        double ns = (double)(clock_mono_ns(clock_system()) - start);
        double rate = flops * (double)rounds * threads / (ns * 1e-9);
        best = ns > 0 && rate > best ? rate : best;
    }
    return best;
}

double peak_flops(struct device *d, enum dtype dtype, int repetitions)
{
#if OOZE_HAVE_AMX
    // A device of the class has the system's leave to use tiles; one that computes them in software, as the tests' does, may not.
    if (dtype == DT_BF16 && d->isa >= ISA_AMX && cpu_has(ISA_AMX))
        return loop_peak(d, amx_peak, ROUNDS_TILE, AMX_PEAK_FLOPS, repetitions);
#endif
#if defined(__x86_64__)
    if (dtype == DT_BF16 && d->isa >= ISA_AVX512BF16)
        return loop_peak(d, dot_wide, ROUNDS, 4.0 * 16 * CHAINS, repetitions);
    if (d->isa >= ISA_AVX512)
        return loop_peak(d, fma_wide, ROUNDS, 2.0 * 16 * CHAINS, repetitions);
    if (d->isa == ISA_AVX2)
        return loop_peak(d, fma_narrow, ROUNDS, 2.0 * 8 * CHAINS / 2, repetitions);
#endif
    (void)dtype;
    return loop_peak(d, scalar_chains, ROUNDS, 2.0 * 8, repetitions);
}
