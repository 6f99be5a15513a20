// What the kernel tests share: one device per class this processor has, buffers between guard zones, numbers of all sizes, and the
// comparison of bits.
#ifndef TESTS_KERNELS_CHECK_H
#define TESTS_KERNELS_CHECK_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/rng.h"
#include "kernels/kernels.h"

#define GUARD 256 // bytes before and after every buffer

struct check {
    struct device *ref;
    struct device *twin[4]; // classes above ref
    int n_twins;
    struct rng rng;
};

static inline struct device *check_open(const char *isa, int threads)
{
    struct device *d;
    struct error err;
    if (device_open("cpu", isa, threads, &d, &err))
        fail_msg("%s", err.text);
    return d;
}

// Opens ref and every class the processor has; says which it lacks. Returns false when there is nothing to compare.
static inline bool check_init(struct check *c, uint64_t seed)
{
    static const char *const names[] = {"avx2", "avx512", "avx512bf16", "amx"};
    *c = (struct check){.ref = check_open("ref", 2)};
    rng_init(&c->rng, seed, 0);
    for (int i = 0; i < 4; i++) {
        struct error err;
        if (device_open("cpu", names[i], 2, &c->twin[c->n_twins], &err))
            print_message("skipped: %s\n", err.text);
        else
            c->n_twins++;
    }
    return c->n_twins > 0;
}

static inline void check_done(struct check *c)
{
    for (int i = 0; i < c->n_twins; i++)
        device_close(c->twin[i]);
    device_close(c->ref);
}

static inline int64_t check_between(struct check *c, int64_t lo, int64_t hi)
{
    return lo + (int64_t)rng_below(&c->rng, (uint64_t)(hi - lo + 1));
}

// ---- guarded buffers -----------------------------------------------------------------------------------------------

struct guarded {
    char *base;
    size_t bytes;
    void *p;
};

static inline struct guarded guarded_new(size_t bytes)
{
    struct guarded g = {.bytes = bytes};
    size_t room = (bytes + 63) / 64 * 64;
    g.base = aligned_alloc(64, room + 2 * GUARD);
    assert_non_null(g.base);
    memset(g.base, 0xa5, room + 2 * GUARD);
    // even starts are aligned, and the end is watched to the byte
    g.p = g.base + GUARD;
    return g;
}
static inline void guarded_check(const struct guarded *g, const char *what)
{
    size_t room = (g->bytes + 63) / 64 * 64;
    for (size_t i = 0; i < GUARD; i++)
        if ((unsigned char)g->base[i] != 0xa5)
            fail_msg("%s: written %zu bytes before the buffer", what, GUARD - i);
    for (size_t i = GUARD + g->bytes; i < room + 2 * GUARD; i++)
        if ((unsigned char)g->base[i] != 0xa5)
            fail_msg("%s: written %zu bytes past the end", what, i - GUARD - g->bytes);
}
static inline void guarded_free(struct guarded *g)
{
    free(g->base);
    *g = (struct guarded){0};
}

// ---- numbers -------------------------------------------------------------------------------------------------------

// Normal numbers; `special` of 1000 of them are zero, infinite, NaN, huge, tiny or subnormal.
static inline void check_fill(struct check *c, float *x, int64_t n, float scale, int special)
{
    static const float odd[] = {0.0f,   -0.0f,  INFINITY, -INFINITY, NAN,   3e38f,
                                -3e38f, 1e-38f, 1e-42f,   -1e-42f,   1e30f, -1e-30f};
    for (int64_t i = 0; i < n; i++) {
        x[i] = rng_normal(&c->rng) * scale;
        if (special && rng_below(&c->rng, 1000) < (uint64_t)special)
            x[i] = odd[rng_below(&c->rng, sizeof odd / sizeof odd[0])];
    }
}
static inline float *check_floats(struct check *c, int64_t n, float scale, int special)
{
    float *x = malloc((size_t)(n ? n : 1) * sizeof *x);
    assert_non_null(x);
    check_fill(c, x, n, scale, special);
    return x;
}

// Bit equality; any NaN equals any NaN (which operand's payload survives is nobody's promise).
static inline void check_same(const char *what, const struct device *d, const float *want, const float *got,
                              int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (want[i] != want[i] && got[i] != got[i])
            continue;
        if (memcmp(&want[i], &got[i], sizeof(float)))
            fail_msg("%s on %s: element %lld is %.9g (%a), ref says %.9g (%a)", what, d->name, (long long)i,
                     (double)got[i], (double)got[i], (double)want[i], (double)want[i]);
    }
}
static inline void check_same_bytes(const char *what, const struct device *d, const void *want,
                                    const void *got, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (((const unsigned char *)want)[i] != ((const unsigned char *)got)[i])
            fail_msg("%s on %s: byte %zu is %02x, ref says %02x", what, d->name, i,
                     ((const unsigned char *)got)[i], ((const unsigned char *)want)[i]);
}
// |got - want| <= tol * scale, scale the size of the sum of magnitudes.
static inline void check_near(const char *what, const struct device *d, double want, double got, double bound)
{
    if (!(fabs(got - want) <= bound))
        fail_msg("%s on %s: %.9g, want %.9g within %.3g", what, d->name, got, want, bound);
}

// The classes whose products of bf16 and FP8 weights follow an order of their own.
static inline bool check_own_order(const struct device *d)
{
    return d->isa >= ISA_AVX512BF16;
}

#endif
