// kernels/observe.h: every op is seen, named, placed and costed; an observed device computes the same bits.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "kernels/observe.h"

struct seen {
    int before, after;
    struct op_call last;
};

static void see_before(void *ctx, const struct op_call *c)
{
    struct seen *s = ctx;
    s->before++;
    s->last = *c;
}

static void see_after(void *ctx, const struct op_call *c)
{
    struct seen *s = ctx;
    s->after++;
    assert_string_equal(c->name, s->last.name);
    assert_int_equal(s->before, s->after);
}

static struct device *open_device(void)
{
    struct device *d = NULL;
    struct error err;
    assert_int_equal(device_open("cpu", "auto", 1, &d, &err), STATUS_OK);
    return d;
}

static void test_every_op(void **state)
{
    (void)state;
    struct device *d = open_device();
    struct seen s = {0};
    struct observer o = {&s, see_before, see_after};
    typedef void op_fn(void);
    op_fn *plain[OP_COUNT], *watched[OP_COUNT];
    memcpy(plain, d->k, sizeof plain);
    device_observe(d, &o);
    memcpy(watched, d->k, sizeof watched);
    for (int32_t i = 0; i < OP_COUNT; i++) {
        if (i == OP_INDEX(weight_bytes))
            assert_ptr_equal(plain[i], watched[i]);
        else if (plain[i] == watched[i])
            fail_msg("op %d of struct kernels has no wrapper in observe.c", i);
    }
    device_observe(d, NULL);
    assert_memory_equal(plain, d->k, sizeof plain);
    device_close(d);
}

static void test_gemm_is_described(void **state)
{
    (void)state;
    enum { M = 3, N = 70, K = 130, LDY = 80 };
    struct device *d = open_device();
    static float w[N * K], x[M * K], y[M * LDY], z[M * LDY];
    for (int i = 0; i < N * K; i++)
        w[i] = (float)(i % 13) - 6;
    for (int i = 0; i < M * K; i++)
        x[i] = (float)(i % 7) / 8;
    struct gemm_weight g = {.dtype = DT_BF16, .n = N, .k = K};
    g.data = device_alloc(d, d->k->weight_bytes(DT_BF16, N, K));
    d->k->weight_pack(d, DT_BF16, N, K, w, DT_F32, false, g.data);
    d->k->gemm(d, &g, M, rows_f32(x, K), NULL, false, y, LDY);
    struct seen s = {0};
    struct observer o = {&s, see_before, see_after};
    device_observe(d, &o);
    device_mark(d, 4, "mlp");
    d->k->gemm(d, &g, M, rows_f32(x, K), NULL, false, z, LDY);
    device_observe(d, NULL);
    d->k->gemm(d, &g, M, rows_f32(x, K), NULL, false, z, LDY); // unseen
    assert_int_equal(s.after, 1);
    assert_memory_equal(y, z, sizeof y);
    assert_int_equal(s.last.op, OP_INDEX(gemm));
    assert_string_equal(s.last.name, "gemm");
    assert_string_equal(s.last.block, "mlp");
    assert_int_equal(s.last.layer, 4);
    assert_int_equal(s.last.m, M);
    assert_int_equal(s.last.n, N);
    assert_int_equal(s.last.k, K);
    assert_true(s.last.flops == 2.0 * M * N * K);
    assert_true(s.last.bytes == 2.0 * N * K + 4.0 * M * K + 4.0 * M * N);
    assert_int_equal(s.last.n_outputs, 1);
    const struct op_output *out = &s.last.outputs[0];
    assert_ptr_equal(out->p, z);
    assert_int_equal(out->rows, M);
    assert_int_equal(out->row_bytes, 4 * N);
    assert_int_equal(out->stride_bytes, 4 * LDY);
    device_free(d, g.data);
    device_close(d);
}

static void test_attention_counts_visible_keys(void **state)
{
    (void)state;
    enum { HEADS = 2, KV = 1, D = 16, PAGE = 32 };
    struct device *d = open_device();
    static float q[6 * HEADS * D], out[6 * HEADS * D], k[6 * D], v[6 * D], cells[2][2 * PAGE * D];
    struct attn_cache c = {
        .dtype = DT_F32, .page_tokens = PAGE, .n_kv = KV, .head_dim = D, .k = cells[0], .v = cells[1]};
    int32_t pages[] = {0, 1};
    // rows 0..3 at positions 0..3 of page 0, rows 4..5 at positions 10, 11 of page 1
    struct attn_seq seqs[] = {{0, 4, 0, pages}, {4, 2, 10, pages + 1}};
    struct seen s = {0};
    struct observer o = {&s, see_before, see_after};
    device_observe(d, &o);
    d->k->kv_write(d, &c, 2, seqs, k, D, v, D);
    assert_int_equal(s.last.n_outputs, 0);
    assert_int_equal(s.last.m, 6);
    d->k->attention(d, &c, HEADS, 0.25f, 2, seqs, q, HEADS * D, DT_F32, out, HEADS * D, NULL);
    assert_true(s.last.flops == 4.0 * (1 + 2 + 3 + 4 + 11 + 12) * HEADS * D);
    assert_true(s.last.bytes == 2.0 * 4 * 6 * HEADS * D + 2.0 * (4 + 12) * D * 4);
    assert_int_equal(s.last.outputs[0].rows, 6);
    assert_int_equal(s.after, 2);
    // rows 4, 5 alone, in bf16
    d->k->attention(d, &c, HEADS, 0.25f, 1, seqs + 1, q, HEADS * D, DT_BF16, out, HEADS * D, NULL);
    assert_true(s.last.bytes == (4.0 + 2) * 2 * HEADS * D + 2.0 * 12 * D * 4);
    assert_ptr_equal(s.last.outputs[0].p, (uint16_t *)out + 4 * HEADS * D);
    assert_int_equal(s.last.outputs[0].row_bytes, 2 * HEADS * D);
    device_close(d);
}

static void expect_output(const struct seen *s, int i, const void *p, int64_t rows, size_t row_bytes,
                          size_t stride_bytes)
{
    assert_true(i < s->last.n_outputs);
    const struct op_output *o = &s->last.outputs[i];
    assert_ptr_equal(o->p, p);
    assert_int_equal(o->rows, rows);
    assert_int_equal(o->row_bytes, row_bytes);
    assert_int_equal(o->stride_bytes, stride_bytes);
}

// What is written in bf16 is reported, and counted, as that.
static void test_bf16_outputs(void **state)
{
    (void)state;
    enum { T = 3, C = 20, LD = 24 };
    struct device *d = open_device();
    static float x[T * 2 * C], w[C], dy[T * C];
    static uint16_t y[T * LD], kept[T * 2 * C];
    struct seen s = {0};
    struct observer o = {&s, see_before, see_after};
    device_observe(d, &o);
    d->k->rmsnorm(d, T, C, x, C, w, 1e-5f, DT_BF16, y, LD, NULL);
    assert_int_equal(s.last.dtype, DT_BF16);
    assert_true(s.last.bytes == T * C * (4.0 + 2) + 4.0 * C);
    expect_output(&s, 0, y, T, 2 * C, 2 * LD);
    d->k->swiglu(d, T, C, x, DT_BF16, y, kept);
    assert_true(s.last.bytes == T * C * (8.0 + 2 + 4));
    expect_output(&s, 0, y, T, 2 * C, 2 * C);
    d->k->swiglu_grad(d, T, C, DT_BF16, kept, dy, kept, y);
    assert_true(s.last.bytes == T * C * (4.0 + 4 + 4 + 2));
    expect_output(&s, 0, kept, T, 4 * C, 4 * C);
    expect_output(&s, 1, y, T, 2 * C, 2 * C);
    d->k->to_bf16_rows(d, T, C, x, C, y, LD);
    assert_true(s.last.bytes == T * C * (4.0 + 2));
    expect_output(&s, 0, y, T, 2 * C, 2 * LD);
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_op),
        cmocka_unit_test(test_gemm_is_described),
        cmocka_unit_test(test_attention_counts_visible_keys),
        cmocka_unit_test(test_bf16_outputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
