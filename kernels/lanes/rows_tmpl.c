// Template: n (at most 16) elements from element i on of an array of F32 or BF16, for templates whose rows may be either.
ALWAYS v16 rows_load(const enum dtype t, const void *p, int64_t i, int64_t n)
{
    return t == DT_F32 ? v_load_n((const float *)p + i, n) : v_load_bf16_n((const uint16_t *)p + i, n);
}

// BF16: rounded to nearest even.
ALWAYS void rows_store(const enum dtype t, void *p, int64_t i, v16 a, int64_t n)
{
    if (t == DT_F32)
        v_store_n((float *)p + i, a, n);
    else
        v_store_bf16_n((uint16_t *)p + i, a, n);
}
