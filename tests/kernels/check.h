// What the kernel tests share: a device per class this processor has and the class amx over the model of its instructions, buffers
// between guard zones, numbers of all kinds, sizes of all kinds, and the harness that runs one op on every class and compares.
//
// The promise: every op of kernels.h agrees with ref on at least CHECK_SHAPES random shapes a class. ops.def names the program that
// proves each op; check_close fails when a program has not done its ops often enough, or when kernels.h has an op that ops.def lacks.
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
#include "tests/isa.h"
#ifdef AMX_TILE_HEADER
#include "kernels/amx/amx.h"
#endif

#define CHECK_SHAPES 1000
#define GUARD        256 // bytes before and after every output
#define CANARY       0xa5

// An op's number is its field in struct kernels.
#define OP(field) ((int)(offsetof(struct kernels, field) / sizeof(void (*)(void))))
#define OPS       ((int)(sizeof(struct kernels) / sizeof(void (*)(void))))

struct check {
    struct device *ref;
    struct device *twin[5]; // classes above ref
    int n_twins;
    struct rng rng;
    struct kernels model_table; // of the class amx over the model
    void *kept[64];             // what check_alloc gave for the shape at hand
    int n_kept;
    int shapes[OPS][6]; // [op][twin]
    bool bf16;    // outputs of 2 bytes an element are numbers, of which any NaN equals any NaN; else bytes
    bool aligned; // outputs start at 64 bytes, as device_alloc gives them; else often at their element's size
};

static inline struct device *check_open(const char *isa, int threads)
{
    struct device *d;
    struct error err;
    if (device_open("cpu", isa, threads, &d, &err))
        fail_msg("%s", err.text);
    return d;
}

// A device of the class amx whose tiles are software: all other ops as on the best class there is. NULL without AVX-512 BF16.
static inline struct device *check_open_model(struct kernels *table, int threads)
{
#ifdef AMX_TILE_HEADER
    struct error err;
    struct device *d;
    if (test_isa_masked(ISA_AVX512BF16) || device_open("cpu", "avx512bf16", threads, &d, &err))
        return NULL;
    *table = *d->k;
    AMX(table)(table);
    d->k = table;
    d->isa = ISA_AMX;
    snprintf(d->name, sizeof d->name, "cpu:amx in software, %d threads", threads);
    return d;
#else
    (void)table;
    (void)threads;
    return NULL;
#endif
}

// Opens ref and every class the processor has; says which it lacks. Returns false when there is nothing to compare.
static inline bool check_init(struct check *c, uint64_t seed)
{
    memset(c, 0, sizeof *c);
    c->ref = check_open("ref", 2);
    rng_init(&c->rng, seed, 0);
    for (int i = ISA_AVX2; i <= ISA_AMX; i++) {
        struct error err;
        if (test_isa_masked((enum isa)i))
            print_message("skipped: class %s is masked\n", isa_name((enum isa)i));
        else if (device_open("cpu", isa_name((enum isa)i), 2, &c->twin[c->n_twins], &err))
            print_message("skipped: %s\n", err.text);
        else
            c->n_twins++;
    }
    struct device *model = check_open_model(&c->model_table, 2);
    if (model)
        c->twin[c->n_twins++] = model;
    return c->n_twins > 0;
}

// The verdict of `program`: rc, or failure where one of its ops was not compared often enough.
static inline int check_close(struct check *c, const char *program, int rc)
{
    static const struct {
        const char *name, *program;
        int op;
    } ops[] = {
#define CHECKED(field, where) {#field, where, OP(field)},
#include "tests/kernels/ops.def"
#undef CHECKED
    };
    int n = (int)(sizeof ops / sizeof ops[0]);
    if (n != OPS) {
        print_message("FAILED: kernels.h has %d ops, tests/kernels/ops.def %d\n", OPS, n);
        rc = 1;
    }
    for (int i = 0; i < n; i++) {
        if (strcmp(ops[i].program, program))
            continue;
        for (int t = 0; t < c->n_twins; t++)
            if (c->shapes[ops[i].op][t] < CHECK_SHAPES) {
                print_message("FAILED: %s on %s: %d shapes, want %d\n", ops[i].name, c->twin[t]->name,
                              c->shapes[ops[i].op][t], CHECK_SHAPES);
                rc = 1;
            }
        print_message("%-15s %6d shapes on each of %d classes\n", ops[i].name, c->shapes[ops[i].op][0],
                      c->n_twins);
    }
    for (int i = 0; i < c->n_twins; i++)
        device_close(c->twin[i]);
    device_close(c->ref);
    return rc;
}

// ---- sizes and numbers ---------------------------------------------------------------------------------------------

static inline int64_t check_between(struct check *c, int64_t lo, int64_t hi)
{
    return lo + (int64_t)rng_below(&c->rng, (uint64_t)(hi - lo + 1));
}

// A size in [lo, hi]: half of them at or beside powers of two, primes, or the ends.
static inline int64_t check_size(struct check *c, int64_t lo, int64_t hi)
{
    static const int64_t edges[] = {0,   1,   2,   3,   5,   7,   8,   11,  13,  15,  16,  17,  23,  31,
                                    32,  33,  47,  48,  49,  63,  64,  65,  95,  96,  97,  101, 127, 128,
                                    129, 191, 193, 251, 255, 256, 257, 383, 384, 511, 512, 513};
    if (rng_below(&c->rng, 2))
        for (int tries = 0; tries < 8; tries++) {
            int64_t e = edges[rng_below(&c->rng, sizeof edges / sizeof edges[0])];
            if (e >= lo && e <= hi)
                return e;
        }
    return check_between(c, lo, hi);
}

// A stride for rows of this width: the width itself, a little more, or much more.
static inline int64_t check_stride(struct check *c, int64_t width)
{
    return width + (int64_t[]){0, 0, 1, 3, 16, 37}[rng_below(&c->rng, 6)];
}

// Memory for the shape at hand, aligned to `align` bytes and often to no more than that; its end is the block's end.
static inline void *check_alloc(struct check *c, size_t bytes, size_t align)
{
    size_t shift = align * rng_below(&c->rng, 8);
    char *base = malloc(bytes + shift + 1);
    assert_non_null(base);
    assert_true(c->n_kept < (int)(sizeof c->kept / sizeof c->kept[0]));
    c->kept[c->n_kept++] = base;
    return base + shift;
}
static inline void check_release(struct check *c)
{
    while (c->n_kept)
        free(c->kept[--c->n_kept]);
}

// Normal numbers; `special` of 1000 of them are zeros of both signs, infinite, NaN, huge, tiny or subnormal.
static inline void check_fill(struct check *c, float *x, int64_t n, float scale, int special)
{
    static const float odd[] = {0.0f,   -0.0f,  INFINITY, -INFINITY,  NAN,     3e38f,    -3e38f,
                                1e-38f, 1e-42f, -1e-42f,  1e30f,      -1e-30f, 1.4e-45f, -1.17549435e-38f,
                                65504,  1e-20f, 448,      0x1.fep127f};
    for (int64_t i = 0; i < n; i++) {
        x[i] = rng_normal(&c->rng) * scale;
        if (special && rng_below(&c->rng, 1000) < (uint64_t)special)
            x[i] = odd[rng_below(&c->rng, sizeof odd / sizeof odd[0])];
    }
}
static inline float *check_floats(struct check *c, int64_t n, float scale, int special)
{
    float *x = check_alloc(c, (size_t)n * sizeof *x, sizeof *x);
    check_fill(c, x, n, scale, special);
    return x;
}
static inline void *check_bytes(struct check *c, size_t n, size_t align)
{
    uint8_t *p = check_alloc(c, n, align);
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)rng_u32(&c->rng);
    return p;
}

// ---- guarded buffers -----------------------------------------------------------------------------------------------

struct guarded {
    char *base;
    size_t bytes;
    void *p;
};

// shift: how far the start lies from a line of 64 bytes
static inline struct guarded guarded_at(size_t bytes, size_t shift)
{
    struct guarded g = {.bytes = bytes};
    size_t room = (bytes + shift + 63) / 64 * 64 + 2 * GUARD;
    g.base = aligned_alloc(64, room);
    assert_non_null(g.base);
    memset(g.base, CANARY, room);
    g.p = g.base + GUARD + shift;
    return g;
}
static inline struct guarded guarded_new(size_t bytes)
{
    return guarded_at(bytes, 0);
}
static inline void guarded_check(const struct guarded *g, const char *what, const struct device *d)
{
    const unsigned char *p = g->p;
    for (size_t i = 1; i <= GUARD; i++)
        if (p[-(ptrdiff_t)i] != CANARY)
            fail_msg("%s on %s: written %zu bytes before the buffer", what, d->name, i);
    for (size_t i = 0; i < GUARD; i++)
        if (p[g->bytes + i] != CANARY)
            fail_msg("%s on %s: written %zu bytes past the end", what, d->name, i + 1);
}
static inline void guarded_free(struct guarded *g)
{
    free(g->base);
    *g = (struct guarded){0};
}

// ---- comparison ------------------------------------------------------------------------------------------------------

// Bit equality; any NaN equals any NaN (which operand's payload survives is nobody's promise).
static inline void check_same(const char *what, const struct device *d, const float *want, const float *got,
                              int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (want[i] != want[i] && got[i] != got[i])
            continue;
        uint32_t a, b; // in bits too: subnormals read as 0 here
        memcpy(&a, &got[i], 4);
        memcpy(&b, &want[i], 4);
        if (a != b)
            fail_msg("%s on %s: element %lld of %lld is %.9g (%08x), want %.9g (%08x)", what, d->name,
                     (long long)i, (long long)n, (double)got[i], a, (double)want[i], b);
    }
}
// The same of bf16.
static inline void check_same_bf16(const char *what, const struct device *d, const uint16_t *want,
                                   const uint16_t *got, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if ((want[i] & 0x7fff) > 0x7f80 && (got[i] & 0x7fff) > 0x7f80)
            continue;
        if (want[i] != got[i])
            fail_msg("%s on %s: element %lld of %lld is %.9g (%04x), want %.9g (%04x)", what, d->name,
                     (long long)i, (long long)n, (double)bf16_to_f32(got[i]), got[i],
                     (double)bf16_to_f32(want[i]), want[i]);
    }
}
static inline void check_same_bytes(const char *what, const struct device *d, const void *want,
                                    const void *got, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (((const unsigned char *)want)[i] != ((const unsigned char *)got)[i])
            fail_msg("%s on %s: byte %zu is %02x, want %02x", what, d->name, i,
                     ((const unsigned char *)got)[i], ((const unsigned char *)want)[i]);
}
// |got - want| <= bound
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

// ---- the harness ------------------------------------------------------------------------------------------------------

// An array that an op writes: [rows, width] elements of `size` bytes (4: f32, otherwise bytes), stride ld. init [rows, ld] is what
// it holds before.
struct output {
    const char *name;
    int64_t rows, width, ld;
    size_t size;
    const void *init;
};

#define CHECK_OUTPUTS 4
typedef void op_fn(struct device *d, void *ctx, void **out);
// Compares outputs of a class with an order of its own; want is ref's.
typedef void own_fn(void *ctx, const struct device *d, void *const *want, void *const *got);

static inline void output_run(struct check *c, struct device *d, op_fn *fn, void *ctx, int n,
                              const struct output *outs, struct guarded *ret)
{
    void *p[CHECK_OUTPUTS];
    for (int i = 0; i < n; i++) {
        const struct output *o = &outs[i];
        size_t bytes = o->rows ? (size_t)((o->rows - 1) * o->ld + o->width) * o->size : 0;
        ret[i] = guarded_at(bytes, c->aligned ? 0 : o->size * rng_below(&c->rng, 64 / o->size));
        p[i] = ret[i].p;
        if (bytes)
            memcpy(p[i], o->init, bytes);
    }
    fn(d, ctx, p);
    for (int i = 0; i < n; i++) {
        const struct output *o = &outs[i];
        guarded_check(&ret[i], o->name, d);
        for (int64_t r = 0; r + 1 < o->rows; r++) { // between the rows nothing is written
            size_t at = (size_t)(r * o->ld + o->width) * o->size, gap = (size_t)(o->ld - o->width) * o->size;
            if (memcmp((char *)p[i] + at, (const char *)o->init + at, gap))
                fail_msg("%s on %s: written behind row %lld", o->name, d->name, (long long)r);
        }
    }
}

// Runs op `op` on ref and on every class, and compares guards, gaps and bits. own (may be NULL) compares classes with an order of
// their own instead.
static inline void check_op(struct check *c, int op, op_fn *fn, void *ctx, int n, const struct output *outs,
                            own_fn *own)
{
    struct guarded want[CHECK_OUTPUTS], got[CHECK_OUTPUTS];
    assert_true(n <= CHECK_OUTPUTS);
    output_run(c, c->ref, fn, ctx, n, outs, want);
    for (int t = 0; t < c->n_twins; t++) {
        struct device *d = c->twin[t];
        output_run(c, d, fn, ctx, n, outs, got);
        void *a[CHECK_OUTPUTS], *b[CHECK_OUTPUTS];
        for (int i = 0; i < n; i++) {
            a[i] = want[i].p;
            b[i] = got[i].p;
        }
        if (own && check_own_order(d))
            own(ctx, d, a, b);
        else
            for (int i = 0; i < n; i++) {
                if (outs[i].size == sizeof(float))
                    check_same(outs[i].name, d, a[i], b[i], (int64_t)(want[i].bytes / sizeof(float)));
                else if (outs[i].size == 2 && c->bf16)
                    check_same_bf16(outs[i].name, d, a[i], b[i], (int64_t)(want[i].bytes / 2));
                else
                    check_same_bytes(outs[i].name, d, a[i], b[i], want[i].bytes);
            }
        for (int i = 0; i < n; i++)
            guarded_free(&got[i]);
        c->shapes[op][t]++;
    }
    for (int i = 0; i < n; i++)
        guarded_free(&want[i]);
}

#endif
