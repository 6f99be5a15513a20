// Opening a device: choosing the class of kernels, building its op table, and naming its numerics.
//
// Any thread may open devices; a device is then used by one thread at a time, and the thread that opened it
// has flush-to-zero set (another one that takes it over calls pool_thread_init first).
#include "kernels/device.h"

#include <assert.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "kernels/cpu.h"
#include "kernels/fmath.h"
#include "kernels/scratch.h"

// Raised whenever any op's order of operations changes, or what it is given to operate on. 3: attention_grad of models whose weights
// are not F32 reads the forward's output rounded to bf16.
#define KERNELS_REVISION 3

static const char *const ISA_NAMES[] = {"ref", "avx2", "avx512", "avx512bf16", "amx"};

const char *isa_name(enum isa i)
{
    return ISA_NAMES[i];
}

enum isa device_best_isa(void)
{
    for (int i = ISA_AMX; i > ISA_REF; i--)
        if (cpu_built((enum isa)i) && cpu_has((enum isa)i))
            return (enum isa)i;
    return ISA_REF;
}

static void table_fill(struct kernels *k, enum isa isa)
{
    ref_table(k);
#if OOZE_HAVE_AVX2
    if (isa >= ISA_AVX2)
        avx2_table(k);
#endif
#if OOZE_HAVE_AVX512
    if (isa >= ISA_AVX512)
        avx512_table(k);
#endif
#if OOZE_HAVE_AVX512BF16
    if (isa >= ISA_AVX512BF16)
        avx512bf16_table(k);
#endif
#if OOZE_HAVE_AMX
    if (isa >= ISA_AMX)
        amx_table(k);
#endif
    (void)isa;
}

static enum status isa_parse(const char *name, enum isa *ret, struct error *err)
{
    if (!strcmp(name, "auto")) {
        *ret = device_best_isa();
        return STATUS_OK;
    }
    for (int i = ISA_REF; i <= ISA_AMX; i++) {
        if (strcmp(name, ISA_NAMES[i]))
            continue;
        if (!cpu_built((enum isa)i))
            return error_set(err, STATUS_UNSUPPORTED, "isa %s: this build has no such kernels; use auto",
                             name);
        if (!cpu_has((enum isa)i))
            return error_set(err, STATUS_UNSUPPORTED,
                             "isa %s: this processor lacks it; the best it has is %s", name,
                             ISA_NAMES[device_best_isa()]);
        *ret = (enum isa)i;
        return STATUS_OK;
    }
    return error_set(err, STATUS_INVALID, "isa '%s' is none of auto, ref, avx2, avx512, avx512bf16, amx",
                     name);
}

static int threads_default(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set))
        return 1;
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n > 1024 ? 1024 : n;
}

// Bits of one small product per weight format. Processors may differ inside a dot-product instruction (the
// order and rounding of its two terms), so the id carries what this one computed rather than what a manual
// promises.
// false: no memory.
static bool probe_hash(struct device *d, uint64_t *ret)
{
    enum { M = 3, N = 5, K = 261 };
    float x[M * K], w[N * K], y[3][M * N], scales[3] = {0.75f, 1.5f, 0.3125f}, dw[N * N] = {0};
    uint8_t codes[N * K];
    uint32_t u = 12345;
    for (int i = 0; i < M * K; i++)
        x[i] = ((float)((u = u * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1) *
               fmath_exp((float)(i % 17) - 8);
    for (int i = 0; i < N * K; i++) {
        w[i] = (float)((u = u * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
        codes[i] = f32_to_fp8(w[i] * 16);
    }
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_FP8};
    for (int t = 0; t < 3; t++) {
        struct gemm_weight g = {.dtype = types[t], .n = N, .k = K, .scales = scales};
        g.data = device_alloc(d, d->k->weight_bytes(types[t], N, K)); // not scratch, which is the ops' own
        if (!g.data)
            return false;
        bool fp8 = types[t] == DT_FP8;
        d->k->weight_pack(d, types[t], N, K, fp8 ? (void *)codes : (void *)w, fp8 ? DT_FP8 : DT_F32, false,
                          g.data);
        d->k->gemm(d, &g, M, rows_f32(x, K), NULL, false, y[t], N);
        device_free(d, g.data);
    }
    d->k->gemm_dw(d, DT_BF16, K, N, N, rows_f32(w, N), rows_f32(w, N), dw);
    *ret = hash64_seed(dw, sizeof dw, hash64(y, sizeof y));
    return true;
}

// Without a pool and with scratch of their own: as many may compute at once as there are threads.
static void solo_open(struct device *d)
{
    d->solo = mem_must((size_t)pool_threads(d->pool), sizeof(struct device *));
    for (int i = 0; i < pool_threads(d->pool); i++) {
        struct device *s = d->solo[i] = mem_must(1, sizeof *s);
        *s = (struct device){.k = d->k, .isa = d->isa, .scratch = scratch_open(1)};
        memcpy(s->name, d->name, sizeof s->name);
        memcpy(s->numerics_id, d->numerics_id, sizeof s->numerics_id);
    }
}

enum status device_open(const char *kind, const char *isa, int n_threads, struct device **ret,
                        struct error *err)
{
    if (strcmp(kind, "cpu"))
        return error_set(err, STATUS_UNSUPPORTED, "device '%s': this build knows cpu only", kind);
    enum isa which = ISA_REF;
    enum status s = isa_parse(isa, &which, err);
    if (s)
        return s;
    pool_thread_init();
    struct pool *pool;
    s = pool_open(n_threads ? n_threads : threads_default(), &pool, err);
    if (s)
        return s;
    struct device *d = mem_must(1, sizeof *d);
    struct scratch *scratch = scratch_open(pool_threads(pool));
    table_fill(&scratch->table, which);
    *d = (struct device){.k = &scratch->table, .pool = pool, .isa = which, .scratch = scratch};
    snprintf(d->name, sizeof d->name, "cpu:%s, %d thread%s", ISA_NAMES[which], pool_threads(pool),
             pool_threads(pool) == 1 ? "" : "s");
    uint64_t probe;
    if (!probe_hash(d, &probe)) {
        pool_close(pool);
        scratch_close(scratch);
        free(d);
        return error_set(err, STATUS_NOMEM, "no memory for the device's first products");
    }
    // ref, avx2 and avx512 promise the same bits: one id.
    snprintf(d->numerics_id, sizeof d->numerics_id, "ooze-%s/r%d/%s/attn%d/vocab%d/fp8-%d/%016llx",
             OOZE_VERSION, KERNELS_REVISION, which <= ISA_AVX512 ? "fma" : ISA_NAMES[which], ATTN_BLOCK,
             VOCAB_CHUNK, FP8_BLOCK, (unsigned long long)probe);
    solo_open(d);
    *ret = d;
    return STATUS_OK;
}

void device_close(struct device *d)
{
    if (!d)
        return;
    for (int i = 0; i < pool_threads(d->pool); i++) {
        scratch_close(d->solo[i]->scratch);
        free(d->solo[i]);
    }
    free(d->solo);
    pool_close(d->pool);
    scratch_close(d->scratch);
    free(d);
}

struct device *device_solo(struct device *d, int thread)
{
    assert(d->solo && thread >= 0 && thread < pool_threads(d->pool));
    return d->solo[thread];
}

void *device_alloc(struct device *d, size_t bytes)
{
    (void)d;
    return mem_alloc(bytes);
}

void device_free(struct device *d, void *p)
{
    (void)d;
    mem_free(p);
}
