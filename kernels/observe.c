// The observed op table: see observe.h. Each wrapper describes its call, tells the observer, runs the device's own op, and tells
// the observer again. Runs on the thread that owns the device.
//
// Cost model: flops count the formula's multiplications and additions (a transcendental as one); bytes count each operand and
// result once, as if everything that is used twice stayed in a cache.
#include "kernels/observe.h"

#include "kernels/scratch.h"

static const struct kernels *real(const struct device *d)
{
    return &((const struct scratch *)d->scratch)->table;
}

static void tell_before(const struct device *d, struct op_call *c)
{
    c->layer = d->mark_layer;
    c->block = d->mark_block ? d->mark_block : "";
    if (d->observer->before)
        d->observer->before(d->observer->ctx, c);
}

static void tell_after(const struct device *d, const struct op_call *c)
{
    if (d->observer->after)
        d->observer->after(d->observer->ctx, c);
}

// CALL(op, .m = …) … WATCH(op, arguments after d)
#define CALL(field, ...) struct op_call c = {.op = OP_INDEX(field), .name = #field, __VA_ARGS__}
#define WATCH(field, ...)                                                                                    \
    do {                                                                                                     \
        tell_before(d, &c);                                                                                  \
        real(d)->field(d, __VA_ARGS__);                                                                      \
        tell_after(d, &c);                                                                                   \
    } while (0)

static void add_output(struct op_call *c, enum dtype t, const void *p, int64_t rows, int64_t width,
                       int64_t stride)
{
    size_t element = dtype_bytes(t);
    if (p && rows > 0)
        c->outputs[c->n_outputs++] =
            (struct op_output){p, rows, (size_t)width * element, (size_t)stride * element};
}

// Row r of an array of t.
static const void *row_at(enum dtype t, const void *p, int64_t r, int64_t ld)
{
    return (const char *)p + r * ld * (int64_t)dtype_bytes(t);
}

#define F32 sizeof(float)

// ---- weights, GEMM, embedding --------------------------------------------------------------------------------

static void obs_weight_pack(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                            enum dtype src_dtype, bool transpose, void *dst)
{
    CALL(weight_pack, .dtype = dtype, .n = n, .k = k);
    c.bytes = (double)n * (double)k * (double)(dtype_bytes(dtype) + dtype_bytes(src_dtype));
    WATCH(weight_pack, dtype, n, k, src, src_dtype, transpose, dst);
}

static double gemm_weight_bytes(const struct gemm_weight *w)
{
    double scales = w->dtype == DT_FP8 ? (double)(ceil_div(w->n, FP8_BLOCK) * ceil_div(w->k, FP8_BLOCK)) : 0;
    return (double)w->n * (double)w->k * (double)dtype_bytes(w->dtype) + scales * F32;
}

static void obs_gemm(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x,
                     const float *bias, bool accumulate, float *y, int64_t ldy)
{
    CALL(gemm, .dtype = w->dtype, .m = m, .n = w->n, .k = w->k);
    double mn = (double)m * (double)w->n;
    c.flops = 2 * mn * (double)w->k;
    c.bytes = gemm_weight_bytes(w) + (double)dtype_bytes(x.dtype) * (double)m * (double)w->k +
              F32 * (accumulate ? 2 : 1) * mn;
    add_output(&c, DT_F32, y, m, w->n, ldy);
    WATCH(gemm, w, m, x, bias, accumulate, y, ldy);
}

static void obs_gemm_dw(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                        struct rows x, float *dw)
{
    CALL(gemm_dw, .dtype = dtype, .m = m, .n = n, .k = k);
    c.flops = 2 * (double)m * (double)n * (double)k;
    c.bytes =
        (double)m * ((double)n * (double)dtype_bytes(dy.dtype) + (double)k * (double)dtype_bytes(x.dtype)) +
        2 * F32 * (double)n * (double)k;
    add_output(&c, DT_F32, dw, n, k, k);
    WATCH(gemm_dw, dtype, m, n, k, dy, x, dw);
}

static void obs_bias_grad(struct device *d, int64_t m, int64_t n, const float *dy, int64_t lddy, float *db)
{
    CALL(bias_grad, .m = m, .n = n);
    c.flops = (double)m * (double)n;
    c.bytes = F32 * ((double)m * (double)n + 2 * (double)n);
    add_output(&c, DT_F32, db, 1, n, n);
    WATCH(bias_grad, m, n, dy, lddy, db);
}

static void obs_embed(struct device *d, enum dtype dtype, const void *table, int64_t n, int64_t t,
                      const int32_t *ids, float *y)
{
    CALL(embed, .dtype = dtype, .m = t, .n = n);
    c.bytes = (double)t * (double)n * (double)(dtype_bytes(dtype) + F32);
    add_output(&c, DT_F32, y, t, n, n);
    WATCH(embed, dtype, table, n, t, ids, y);
}

static void obs_embed_grad(struct device *d, int64_t n, int64_t t, const int32_t *ids, const float *dy,
                           float *dtable)
{
    CALL(embed_grad, .m = t, .n = n);
    c.flops = (double)t * (double)n;
    c.bytes = 3 * F32 * (double)t * (double)n;
    WATCH(embed_grad, n, t, ids, dy, dtable);
}

// ---- norm, rope, activation ----------------------------------------------------------------------------------

static void obs_rmsnorm(struct device *d, int64_t t, int64_t n, const float *x, int64_t ldx, const float *w,
                        float eps, enum dtype y_dtype, void *y, int64_t ldy, float *rstd)
{
    CALL(rmsnorm, .dtype = y_dtype, .m = t, .n = n);
    c.flops = 4 * (double)t * (double)n;
    c.bytes = (F32 + (double)dtype_bytes(y_dtype)) * (double)t * (double)n + F32 * (double)n;
    add_output(&c, y_dtype, y, t, n, ldy);
    WATCH(rmsnorm, t, n, x, ldx, w, eps, y_dtype, y, ldy, rstd);
}

static void obs_rmsnorm_grad(struct device *d, int64_t t, int64_t n, const float *x, int64_t ldx,
                             const float *w, float eps, const float *dy, int64_t lddy, bool accumulate,
                             float *dx, int64_t lddx, float *dw)
{
    CALL(rmsnorm_grad, .m = t, .n = n);
    c.flops = 12 * (double)t * (double)n;
    c.bytes = F32 * ((accumulate ? 4 : 3) * (double)t * (double)n + 3 * (double)n);
    add_output(&c, DT_F32, dx, t, n, lddx);
    add_output(&c, DT_F32, dw, 1, n, n);
    WATCH(rmsnorm_grad, t, n, x, ldx, w, eps, dy, lddy, accumulate, dx, lddx, dw);
}

static void obs_rope(struct device *d, int64_t t, int64_t heads, int64_t head_dim, float *x, int64_t ldx,
                     const int32_t *pos, const float *cosines, const float *sines, int sign)
{
    CALL(rope, .m = t, .n = heads * head_dim);
    c.flops = 3 * (double)t * (double)(heads * head_dim);
    c.bytes = F32 * (double)t * (2 * (double)(heads * head_dim) + (double)head_dim);
    add_output(&c, DT_F32, x, t, heads * head_dim, ldx);
    WATCH(rope, t, heads, head_dim, x, ldx, pos, cosines, sines, sign);
}

static void obs_swiglu(struct device *d, int64_t t, int64_t f, const float *gu, enum dtype y_dtype, void *y,
                       uint16_t *kept)
{
    CALL(swiglu, .dtype = y_dtype, .m = t, .n = f);
    c.flops = 4 * (double)t * (double)f;
    c.bytes = (2 * F32 + (double)dtype_bytes(y_dtype) + (kept ? 4 : 0)) * (double)t * (double)f;
    add_output(&c, y_dtype, y, t, f, f);
    WATCH(swiglu, t, f, gu, y_dtype, y, kept);
}

static void obs_swiglu_grad(struct device *d, int64_t t, int64_t f, enum dtype dtype, const void *gu,
                            const float *dy, void *dgu, void *y)
{
    CALL(swiglu_grad, .dtype = dtype, .m = t, .n = f);
    c.flops = 10 * (double)t * (double)f;
    c.bytes = (F32 + (y ? 5 : 4) * (double)dtype_bytes(dtype)) * (double)t * (double)f;
    add_output(&c, dtype, dgu, t, 2 * f, 2 * f);
    add_output(&c, dtype, y, t, f, f);
    WATCH(swiglu_grad, t, f, dtype, gu, dy, dgu, y);
}

static void obs_add(struct device *d, int64_t n, const float *x, float *y)
{
    CALL(add, .m = 1, .n = n);
    c.flops = (double)n;
    c.bytes = 3 * F32 * (double)n;
    add_output(&c, DT_F32, y, 1, n, n);
    WATCH(add, n, x, y);
}

static void obs_round_bf16(struct device *d, int64_t n, float *x)
{
    CALL(round_bf16, .m = 1, .n = n);
    c.bytes = 2 * F32 * (double)n;
    add_output(&c, DT_F32, x, 1, n, n);
    WATCH(round_bf16, n, x);
}

// ---- attention -----------------------------------------------------------------------------------------------

// Rows of the sequences, which follow one another, and the keys they see: pairs of query and key, keys read once a sequence.
struct extent {
    int64_t row0, rows;
    double pairs, keys;
};

static struct extent extent_of(int n_seqs, const struct attn_seq *seqs)
{
    struct extent e = {.row0 = n_seqs > 0 ? seqs[0].row0 : 0};
    for (int i = 0; i < n_seqs; i++) {
        double n = seqs[i].n_rows, first = (double)seqs[i].pos0 + 1;
        e.rows = seqs[i].row0 + seqs[i].n_rows - e.row0;
        e.pairs += n * first + n * (n - 1) / 2;
        e.keys += (double)seqs[i].pos0 + n;
    }
    return e;
}

// Keys and values of one position.
static double kv_row_bytes(const struct attn_cache *c)
{
    double scale = c->dtype == DT_FP8 ? F32 : 0;
    return 2 * (double)c->n_kv * ((double)c->head_dim * (double)dtype_bytes(c->dtype) + scale);
}

static void obs_kv_write(struct device *d, const struct attn_cache *cache, int n_seqs,
                         const struct attn_seq *seqs, const float *k, int64_t ldk, const float *v,
                         int64_t ldv)
{
    struct extent e = extent_of(n_seqs, seqs);
    int64_t width = (int64_t)cache->n_kv * cache->head_dim;
    CALL(kv_write, .dtype = cache->dtype, .m = e.rows, .n = 2 * width);
    c.bytes = (double)e.rows * (2 * F32 * (double)width + kv_row_bytes(cache));
    WATCH(kv_write, cache, n_seqs, seqs, k, ldk, v, ldv);
}

static void obs_attention(struct device *d, const struct attn_cache *cache, int n_heads, float scale,
                          int n_seqs, const struct attn_seq *seqs, const float *q, int64_t ldq,
                          enum dtype out_dtype, void *out, int64_t ldo, float *lse)
{
    struct extent e = extent_of(n_seqs, seqs);
    int64_t width = (int64_t)n_heads * cache->head_dim;
    CALL(attention, .dtype = cache->dtype, .m = e.rows, .n = width);
    c.flops = 4 * e.pairs * (double)width;
    c.bytes = (F32 + (double)dtype_bytes(out_dtype)) * (double)e.rows * (double)width +
              e.keys * kv_row_bytes(cache);
    add_output(&c, out_dtype, row_at(out_dtype, out, e.row0, ldo), e.rows, width, ldo);
    WATCH(attention, cache, n_heads, scale, n_seqs, seqs, q, ldq, out_dtype, out, ldo, lse);
}

static void obs_attention_grad(struct device *d, enum dtype dtype, int n_heads, int n_kv, int head_dim,
                               float scale, int n_seqs, const struct attn_seq *seqs, const float *q,
                               int64_t ldq, const float *k, int64_t ldk, const float *v, int64_t ldv,
                               enum dtype out_dtype, const void *out, int64_t ldo, const float *lse,
                               const float *dout, int64_t lddo, float *dq, int64_t lddq, float *dk,
                               int64_t lddk, float *dv, int64_t lddv)
{
    struct extent e = extent_of(n_seqs, seqs);
    int64_t width = (int64_t)n_heads * head_dim, kv = (int64_t)n_kv * head_dim;
    CALL(attention_grad, .dtype = dtype, .m = e.rows, .n = width);
    c.flops = 10 * e.pairs * (double)width;
    c.bytes = (double)e.rows * (F32 * (3 * (double)width + 4 * (double)kv + (double)n_heads) +
                                (double)dtype_bytes(out_dtype) * (double)width);
    add_output(&c, DT_F32, dq + e.row0 * lddq, e.rows, width, lddq);
    add_output(&c, DT_F32, dk + e.row0 * lddk, e.rows, kv, lddk);
    add_output(&c, DT_F32, dv + e.row0 * lddv, e.rows, kv, lddv);
    WATCH(attention_grad, dtype, n_heads, n_kv, head_dim, scale, n_seqs, seqs, q, ldq, k, ldk, v, ldv,
          out_dtype, out, ldo, lse, dout, lddo, dq, lddq, dk, lddk, dv, lddv);
}

// ---- vocabulary ----------------------------------------------------------------------------------------------

static void obs_logprob(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                        const float *inv_temp, const int32_t *targets, float *logprob, float *lse,
                        float *entropy)
{
    CALL(logprob, .m = r, .n = v);
    c.flops = (entropy ? 5 : 3) * (double)r * (double)v;
    c.bytes = F32 * (double)r * (double)v;
    add_output(&c, DT_F32, logprob, r, 1, 1);
    add_output(&c, DT_F32, lse, r, 1, 1);
    WATCH(logprob, r, v, logits, ld, inv_temp, targets, logprob, lse, entropy);
}

static void obs_logprob_grad(struct device *d, int64_t r, int64_t v, float *logits, int64_t ld,
                             const float *inv_temp, const int32_t *targets, const float *lse,
                             const float *dlogprob, const float *entropy, const float *dentropy)
{
    CALL(logprob_grad, .m = r, .n = v);
    c.flops = (dentropy ? 8 : 5) * (double)r * (double)v;
    c.bytes = 2 * F32 * (double)r * (double)v;
    add_output(&c, DT_F32, logits, r, v, ld);
    WATCH(logprob_grad, r, v, logits, ld, inv_temp, targets, lse, dlogprob, entropy, dentropy);
}

static void obs_sample(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                       const float *inv_temp, const float *uniform, int32_t *token, float *logprob,
                       float *lse)
{
    CALL(sample, .m = r, .n = v);
    c.flops = 3 * (double)r * (double)v;
    c.bytes = F32 * (double)r * (double)v;
    add_output(&c, DT_F32, logprob, r, 1, 1);
    add_output(&c, DT_F32, lse, r, 1, 1);
    WATCH(sample, r, v, logits, ld, inv_temp, uniform, token, logprob, lse);
}

static void obs_probs(struct device *d, int64_t r, int64_t v, const float *logits, int64_t ld,
                      const float *inv_temp, const float *lse, float *p, int64_t ldp)
{
    CALL(probs, .m = r, .n = v);
    c.flops = 3 * (double)r * (double)v;
    c.bytes = 2 * F32 * (double)r * (double)v;
    add_output(&c, DT_F32, p, r, v, ldp);
    WATCH(probs, r, v, logits, ld, inv_temp, lse, p, ldp);
}

// ---- optimizer and formats -----------------------------------------------------------------------------------

static double obs_sumsq(struct device *d, int64_t n, const float *x)
{
    CALL(sumsq, .m = 1, .n = n);
    c.flops = 2 * (double)n;
    c.bytes = F32 * (double)n;
    tell_before(d, &c);
    double sum = real(d)->sumsq(d, n, x);
    tell_after(d, &c);
    return sum;
}

static void obs_adamw(struct device *d, int64_t n, float *p, float *m, float *v, const float *g, float gscale,
                      float lr, float b1, float b2, float eps, float wd, float bc1, float bc2)
{
    CALL(adamw, .m = 1, .n = n);
    c.flops = 16 * (double)n;
    c.bytes = 7 * F32 * (double)n;
    add_output(&c, DT_F32, p, 1, n, n);
    add_output(&c, DT_F32, m, 1, n, n);
    add_output(&c, DT_F32, v, 1, n, n);
    WATCH(adamw, n, p, m, v, g, gscale, lr, b1, b2, eps, wd, bc1, bc2);
}

static void obs_fp8_quantize(struct device *d, int64_t n, int64_t k, const float *w, uint8_t *q,
                             float *scales)
{
    int64_t across = ceil_div(k, FP8_BLOCK);
    CALL(fp8_quantize, .dtype = DT_FP8, .m = n, .n = k);
    c.flops = 3 * (double)n * (double)k;
    c.bytes = (double)n * (double)k * (F32 + 1);
    add_output(&c, DT_FP8, q, n, k, k);
    add_output(&c, DT_F32, scales, ceil_div(n, FP8_BLOCK), across, across);
    WATCH(fp8_quantize, n, k, w, q, scales);
}

static void obs_fp8_dequantize(struct device *d, int64_t n, int64_t k, const uint8_t *q, const float *scales,
                               float *w)
{
    CALL(fp8_dequantize, .dtype = DT_FP8, .m = n, .n = k);
    c.flops = (double)n * (double)k;
    c.bytes = (double)n * (double)k * (F32 + 1);
    add_output(&c, DT_F32, w, n, k, k);
    WATCH(fp8_dequantize, n, k, q, scales, w);
}

static void obs_to_bf16(struct device *d, int64_t n, const float *x, uint16_t *y)
{
    CALL(to_bf16, .dtype = DT_BF16, .m = 1, .n = n);
    c.bytes = (double)n * (F32 + 2);
    add_output(&c, DT_BF16, y, 1, n, n);
    WATCH(to_bf16, n, x, y);
}

static void obs_to_bf16_rows(struct device *d, int64_t t, int64_t n, const float *x, int64_t ldx, uint16_t *y,
                             int64_t ldy)
{
    CALL(to_bf16_rows, .dtype = DT_BF16, .m = t, .n = n);
    c.bytes = (double)t * (double)n * (F32 + 2);
    add_output(&c, DT_BF16, y, t, n, ldy);
    WATCH(to_bf16_rows, t, n, x, ldx, y, ldy);
}

static void obs_from_bf16(struct device *d, int64_t n, const uint16_t *x, float *y)
{
    CALL(from_bf16, .dtype = DT_BF16, .m = 1, .n = n);
    c.bytes = (double)n * (F32 + 2);
    add_output(&c, DT_F32, y, 1, n, n);
    WATCH(from_bf16, n, x, y);
}

// ---- the table -----------------------------------------------------------------------------------------------

// An op missing here runs unseen; tests/unit/kernels/test_observe.c expects all.
#define OBSERVED_OPS(X)                                                                                      \
    X(weight_pack)                                                                                           \
    X(gemm)                                                                                                  \
    X(gemm_dw)                                                                                               \
    X(bias_grad)                                                                                             \
    X(embed)                                                                                                 \
    X(embed_grad)                                                                                            \
    X(rmsnorm)                                                                                               \
    X(rmsnorm_grad)                                                                                          \
    X(rope)                                                                                                  \
    X(swiglu)                                                                                                \
    X(swiglu_grad)                                                                                           \
    X(add)                                                                                                   \
    X(round_bf16)                                                                                            \
    X(kv_write)                                                                                              \
    X(attention)                                                                                             \
    X(attention_grad)                                                                                        \
    X(logprob)                                                                                               \
    X(logprob_grad)                                                                                          \
    X(sample)                                                                                                \
    X(probs)                                                                                                 \
    X(sumsq)                                                                                                 \
    X(adamw)                                                                                                 \
    X(fp8_quantize)                                                                                          \
    X(fp8_dequantize)                                                                                        \
    X(to_bf16)                                                                                               \
    X(to_bf16_rows)                                                                                          \
    X(from_bf16)

void device_observe(struct device *d, const struct observer *o)
{
    struct scratch *s = d->scratch;
    s->observed = s->table;
#define OBSERVE(field) s->observed.field = obs_##field;
    OBSERVED_OPS(OBSERVE)
#undef OBSERVE
    d->observer = o;
    d->k = o ? &s->observed : &s->table;
}
