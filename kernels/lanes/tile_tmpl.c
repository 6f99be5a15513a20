// Template: the register tile, heart of every matrix kernel. Included after a class's lanes.h by the
// templates that need it.
//
// acc[r][v] = fma(a(r, k), b(k, v), acc[r][v]) for k ascending: rows x cols vectors of 16 columns, one chain
// per element. With rows and cols known at compile time the loops unroll and acc lives in registers. Which
// rows share a tile moves no bits.

// Where a tile's operands lie: a(r, k) at a[r * a_row + k * a_k]; column vector v of b(k) at
// b[k * b_k + v / 2 * b_pair + v % 2 * 16], in elements of the dtype.
struct operands {
    const float *a;
    int64_t a_row, a_k;
    const void *b;
    int64_t b_k, b_pair;
};

ALWAYS v16 tile_load(const enum dtype t, const void *b, int64_t i)
{
    return t == DT_F32    ? v_load((const float *)b + i)
           : t == DT_BF16 ? v_load_bf16((const uint16_t *)b + i)
                          : v_load_fp8((const uint8_t *)b + i);
}

ALWAYS v16 tile_load_n(const enum dtype t, const void *b, int64_t i, int64_t n)
{
    return t == DT_F32    ? v_load_n((const float *)b + i, n)
           : t == DT_BF16 ? v_load_bf16_n((const uint16_t *)b + i, n)
                          : v_load_fp8_n((const uint8_t *)b + i, n);
}

// n_cols < 0: all columns are there; else only the first n_cols may be read, the others count as 0.
ALWAYS void tile_chain(const int rows, const int cols, const enum dtype t, int64_t n_k,
                       const struct operands *o, int64_t n_cols, v16 *acc)
{
    const float *a = o->a;
    const char *b = o->b;
    const int64_t a_row = o->a_row, a_k = o->a_k, b_pair = o->b_pair,
                  b_step = o->b_k * (int64_t)dtype_bytes(t);
    for (int64_t k = 0; k < n_k; k++) {
        v16 bv[8];
#pragma GCC unroll 8
        for (int v = 0; v < cols; v++) {
            int64_t left = n_cols - 16 * v;
            bv[v] = n_cols < 0 ? tile_load(t, b, v / 2 * b_pair + v % 2 * 16)
                               : tile_load_n(t, b, v / 2 * b_pair + v % 2 * 16, left < 0 ? 0 : left);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            v16 av = v_set(a[r * a_row]);
#pragma GCC unroll 8
            for (int v = 0; v < cols; v++)
                acc[r * cols + v] = v_fma(av, bv[v], acc[r * cols + v]);
        }
        a += a_k;
        b += b_step;
    }
}

// ---- tiles that end in memory
// ------------------------------------------------------------------------------------------ c[r * ldc + …] =
// (fresh ? 0 : c) continued by the chain; TILE_COLS vectors wide.

typedef void tile_fn(int64_t n_k, const struct operands *o, int64_t n_cols, float *c, int64_t ldc,
                     bool fresh);

ALWAYS void tile_memory(const int rows, const enum dtype t, const bool partial, int64_t n_k,
                        const struct operands *o, int64_t n_cols, float *c, int64_t ldc, bool fresh)
{
    v16 acc[TILE_ROWS * TILE_COLS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < TILE_COLS; v++) {
            int64_t left = n_cols - 16 * v;
            acc[r * TILE_COLS + v] = fresh     ? v_zero()
                                     : partial ? v_load_n(c + r * ldc + 16 * v, left < 0 ? 0 : left)
                                               : v_load(c + r * ldc + 16 * v);
        }
    tile_chain(rows, TILE_COLS, t, n_k, o, partial ? n_cols : -1, acc);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < TILE_COLS; v++) {
            int64_t left = n_cols - 16 * v;
            if (!partial)
                v_store(c + r * ldc + 16 * v, acc[r * TILE_COLS + v]);
            else if (left > 0)
                v_store_n(c + r * ldc + 16 * v, acc[r * TILE_COLS + v], left);
        }
}

// Every height by name, whole and with masked columns.
#define TILE_DEFINE(rows, name, t)                                                                           \
    static void tile_##name##_##rows(int64_t n_k, const struct operands *o, int64_t n_cols, float *c,        \
                                     int64_t ldc, bool fresh)                                                \
    {                                                                                                        \
        tile_memory(rows, t, false, n_k, o, n_cols, c, ldc, fresh);                                          \
    }
#define TILE_DEFINE_PART(rows, name, t)                                                                      \
    static void part_##name##_##rows(int64_t n_k, const struct operands *o, int64_t n_cols, float *c,        \
                                     int64_t ldc, bool fresh)                                                \
    {                                                                                                        \
        tile_memory(rows, t, true, n_k, o, n_cols, c, ldc, fresh);                                           \
    }

#if TILE_ROWS == 12
#define TILE_EACH(X, ...)                                                                                    \
    X(1, __VA_ARGS__)                                                                                        \
    X(2, __VA_ARGS__)                                                                                        \
    X(3, __VA_ARGS__)                                                                                        \
    X(4, __VA_ARGS__)                                                                                        \
    X(5, __VA_ARGS__)                                                                                        \
    X(6, __VA_ARGS__)                                                                                        \
    X(7, __VA_ARGS__)                                                                                        \
    X(8, __VA_ARGS__) X(9, __VA_ARGS__) X(10, __VA_ARGS__) X(11, __VA_ARGS__) X(12, __VA_ARGS__)
#else
#define TILE_EACH(X, ...)                                                                                    \
    X(1, __VA_ARGS__)                                                                                        \
    X(2, __VA_ARGS__) X(3, __VA_ARGS__) X(4, __VA_ARGS__) X(5, __VA_ARGS__) X(6, __VA_ARGS__)
#endif
#define TILE_NAME(rows, name)      tile_##name##_##rows,
#define TILE_NAME_PART(rows, name) part_##name##_##rows,
