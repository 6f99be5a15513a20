// Template, for rows of either F32 or BF16. ROWS_RANGE: NAME_range(t, a, begin, end) as the function of a split for each of the two.
#ifndef KERNELS_LANES_ROWS_TMPL
#define KERNELS_LANES_ROWS_TMPL
#define ROWS_RANGE(name)                                                                                     \
    static void name##_f32(void *ctx, int64_t begin, int64_t end, int thread)                                \
    {                                                                                                        \
        (void)thread;                                                                                        \
        name##_range(DT_F32, ctx, begin, end);                                                               \
    }                                                                                                        \
    static void name##_bf16(void *ctx, int64_t begin, int64_t end, int thread)                               \
    {                                                                                                        \
        (void)thread;                                                                                        \
        name##_range(DT_BF16, ctx, begin, end);                                                              \
    }
#define ROWS_PICK(name, t) ((t) == DT_F32 ? name##_f32 : name##_bf16)

// n (at most 16) elements from element i on of an array of F32 or BF16, for templates whose rows may be either. Whole
// vectors (n = 16, known when it is compiled) go without masks.
ALWAYS v16 rows_load(const enum dtype t, const void *p, int64_t i, int64_t n)
{
    if (n >= 16)
        return t == DT_F32 ? v_load((const float *)p + i) : v_load_bf16((const uint16_t *)p + i);
    return t == DT_F32 ? v_load_n((const float *)p + i, n) : v_load_bf16_n((const uint16_t *)p + i, n);
}

// BF16: rounded to nearest even. a is a result of arithmetic, no subnormal then (FTZ): the one thing of which the instruction would
// make something else.
ALWAYS void rows_store(const enum dtype t, void *p, int64_t i, v16 a, int64_t n)
{
#ifdef __AVX512BF16__
    if (t == DT_BF16 && n >= 16) {
        _mm256_storeu_si256((__m256i *)((uint16_t *)p + i), (__m256i)_mm512_cvtneps_pbh(a));
        return;
    }
#endif
    if (t == DT_BF16)
        v_store_bf16_n((uint16_t *)p + i, a, n);
    else if (n >= 16)
        v_store((float *)p + i, a);
    else
        v_store_n((float *)p + i, a, n);
}
#endif
