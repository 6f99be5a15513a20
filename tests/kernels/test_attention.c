// kv_write, attention and attention_grad of every class against ref: batches of sequences of any length, prefill chunks and decode steps,
// grouped heads, page sizes and orders, both cache formats; pages are full of NaN where nothing was stored.
#include "tests/kernels/check.h"

static struct check check;

struct batch {
    int n_seqs, n_heads, n_kv, dim, page_tokens;
    enum dtype t;
    struct attn_seq seqs[6];
    int32_t pages[6][16];
    int n_pages, rows; // rows: of this call
    int64_t ldq, ldk, ldo;
};

static struct batch batch_new(int i)
{
    static const int dims[] = {64, 32, 16, 48, 80, 24, 128, 5}, pages[] = {32, 64, 128};
    struct batch b = {.n_seqs = (int)check_between(&check, 1, 5), .n_kv = (int)check_between(&check, 1, 3)};
    b.n_heads = b.n_kv * (int)check_between(&check, 1, 4);
    b.dim = dims[i % 8];
    b.page_tokens = pages[i % 3];
    b.t = (enum dtype)(i / 3 % 3); // F32, BF16, FP8
    for (int s = 0; s < b.n_seqs; s++) {
        b.seqs[s].n_rows = (int)check_between(&check, 1, i % 2 ? 1 : 70);
        b.seqs[s].pos0 = (int)check_between(&check, 0, i % 4 < 2 ? 90 : 0);
        b.seqs[s].row0 = b.rows;
        b.rows += b.seqs[s].n_rows;
        for (int p = 0; p * b.page_tokens < b.seqs[s].pos0 + b.seqs[s].n_rows; p++)
            b.pages[s][p] = b.n_pages++;
        b.seqs[s].pages = b.pages[s];
    }
    b.ldq = b.n_heads * b.dim + check_between(&check, 0, 3);
    b.ldk = b.n_kv * b.dim + check_between(&check, 0, 3);
    b.ldo = b.n_heads * b.dim + check_between(&check, 0, 3);
    return b;
}

static size_t cache_bytes(const struct batch *b)
{
    return (size_t)b->n_pages * (size_t)(b->n_kv * b->dim * b->page_tokens) * dtype_bytes(b->t);
}

// Guarded pages, full of NaN.
struct pages {
    struct guarded part[4]; // keys, values, scales of keys, of values
    struct attn_cache c;
};

static struct pages pages_new(const struct batch *b)
{
    struct pages p = {
        .c = {.dtype = b->t, .page_tokens = b->page_tokens, .n_kv = b->n_kv, .head_dim = b->dim}};
    size_t scales = b->t == DT_FP8 ? (size_t)(b->n_pages * b->n_kv * b->page_tokens) * sizeof(float) : 0;
    for (int i = 0; i < 4; i++) {
        p.part[i] = guarded_new(i < 2 ? cache_bytes(b) : scales);
        memset(p.part[i].p, 0xff, p.part[i].bytes);
    }
    p.c.k = p.part[0].p;
    p.c.v = p.part[1].p;
    p.c.k_scale = scales ? p.part[2].p : NULL;
    p.c.v_scale = scales ? p.part[3].p : NULL;
    return p;
}

static void pages_check(const struct pages *p)
{
    static const char *const names[] = {"kv_write keys", "kv_write values", "kv_write key scales",
                                        "kv_write value scales"};
    for (int i = 0; i < 4; i++)
        guarded_check(&p->part[i], names[i]);
}

static void pages_free(struct pages *p)
{
    for (int i = 0; i < 4; i++)
        guarded_free(&p->part[i]);
}

// A key or value row as a cache of dtype t returns it.
static void row_rounded(enum dtype t, int dim, const float *x, double *y)
{
    float top = 1e-12f;
    for (int i = 0; i < dim; i++)
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    float scale = top / 448;
    for (int i = 0; i < dim; i++)
        y[i] = t == DT_F32    ? (double)x[i]
               : t == DT_BF16 ? (double)bf16_to_f32(f32_to_bf16(x[i]))
                              : (double)fp8_to_f32(f32_to_fp8(x[i] / scale)) * (double)scale;
}

// Classes whose attention over such pages goes in an order of its own, in pages of an order of their own.
static bool own_attention(const struct device *d, enum dtype t)
{
    return check_own_order(d) && t != DT_F32;
}

static void test_attention(void **state)
{
    (void)state;
    for (int i = 0; i < 240; i++) {
        struct batch b = batch_new(i);
        for (int s = 0; s < b.n_seqs; s++)
            b.seqs[s].pages = b.pages[s];
        struct pages pages = pages_new(&b);
        const struct attn_cache c = pages.c;
        // history first, then this call's rows
        struct attn_seq history[6], *now = b.seqs;
        int past = 0;
        for (int s = 0; s < b.n_seqs; s++) {
            history[s] = (struct attn_seq){past, now[s].pos0, 0, now[s].pages};
            past += now[s].pos0;
        }
        float *hk = check_floats(&check, past * b.ldk, 1, 0), *hv = check_floats(&check, past * b.ldk, 1, 0);
        float *nk = check_floats(&check, b.rows * b.ldk, 1, 0),
              *nv = check_floats(&check, b.rows * b.ldk, 1, 0);
        float *q = check_floats(&check, b.rows * b.ldq, i % 5 ? 1 : 20, 0);
        struct guarded want = guarded_new((size_t)(b.rows * b.ldo) * 4),
                       want_lse = guarded_new((size_t)(b.rows * b.n_heads) * 4);
        check.ref->k->kv_write(check.ref, &c, b.n_seqs, history, hk, b.ldk, hv, b.ldk);
        check.ref->k->kv_write(check.ref, &c, b.n_seqs, now, nk, b.ldk, nv, b.ldk);
        memset(want.p, 1, want.bytes);
        check.ref->k->attention(check.ref, &c, b.n_heads, 0.125f, b.n_seqs, now, q, b.ldq, want.p, b.ldo,
                                want_lse.p);
        pages_check(&pages);
        for (int t = 0; t < check.n_twins; t++) {
            struct device *d = check.twin[t];
            struct guarded got = guarded_new(want.bytes), lse = guarded_new(want_lse.bytes);
            struct pages pages2 = pages_new(&b);
            const struct attn_cache c2 = pages2.c;
            d->k->kv_write(d, &c2, b.n_seqs, history, hk, b.ldk, hv, b.ldk);
            d->k->kv_write(d, &c2, b.n_seqs, now, nk, b.ldk, nv, b.ldk);
            pages_check(&pages2);
            for (int part = own_attention(d, b.t) ? 2 : 0; part < 4; part++)
                check_same_bytes("kv_write", d, pages.part[part].p, pages2.part[part].p,
                                 pages.part[part].bytes);
            memset(got.p, 1, got.bytes);
            d->k->attention(d, &c2, b.n_heads, 0.125f, b.n_seqs, now, q, b.ldq, got.p, b.ldo,
                            i % 3 ? lse.p : NULL);
            guarded_check(&got, "attention");
            guarded_check(&lse, "attention lse");
            check_same("attention", d, want.p, got.p, b.rows * b.ldo);
            if (i % 3)
                check_same("attention lse", d, want_lse.p, lse.p, b.rows * b.n_heads);
            guarded_free(&got);
            guarded_free(&lse);
            pages_free(&pages2);
        }
        // The reference against a plain soft-max in double, last row of the first sequence, first head.
        int64_t row = now[0].row0 + now[0].n_rows - 1, keys = now[0].pos0 + now[0].n_rows;
        double top = -1e300, sum = 0, first = 0;
        for (int pass = 0; pass < 2; pass++)
            for (int64_t j = 0; j < keys; j++) {
                bool old = j < now[0].pos0;
                const float *kj =
                    old ? hk + (history[0].row0 + j) * b.ldk : nk + (now[0].row0 + j - now[0].pos0) * b.ldk;
                const float *vj =
                    old ? hv + (history[0].row0 + j) * b.ldk : nv + (now[0].row0 + j - now[0].pos0) * b.ldk;
                double s = 0, kr[128], vr[128];
                row_rounded(b.t, b.dim, kj, kr);
                row_rounded(b.t, b.dim, vj, vr);
                for (int x = 0; x < b.dim; x++)
                    s += (double)q[row * b.ldq + x] * kr[x];
                s *= 0.125;
                if (pass == 0) {
                    top = s > top ? s : top;
                } else {
                    sum += exp(s - top);
                    first += exp(s - top) * vr[0];
                }
            }
        check_near("ref attention", check.ref, first / sum, ((float *)want.p)[row * b.ldo], 1e-4);
        check_near("ref attention lse", check.ref, top + log(sum), ((float *)want_lse.p)[row * b.n_heads],
                   1e-4);
        free(hk);
        free(hv);
        free(nk);
        free(nv);
        free(q);
        pages_free(&pages);
        guarded_free(&want);
        guarded_free(&want_lse);
    }
}

// Forward of whole sequences in double: loss = sum(out * dout). k, v [rows, G*D].
static double loss_double(const struct batch *b, const double *q, const double *k, const double *v,
                          const float *dout, double scale)
{
    double loss = 0, p[256];
    int hd = b->n_heads * b->dim, gd = b->n_kv * b->dim;
    for (int s = 0; s < b->n_seqs; s++)
        for (int i = 0; i < b->seqs[s].n_rows; i++)
            for (int h = 0; h < b->n_heads; h++) {
                int g = h / (b->n_heads / b->n_kv), r0 = b->seqs[s].row0;
                double sum = 0;
                for (int j = 0; j <= i; j++) {
                    double dot = 0;
                    for (int x = 0; x < b->dim; x++)
                        dot += q[(r0 + i) * hd + h * b->dim + x] * k[(r0 + j) * gd + g * b->dim + x];
                    sum += p[j] = exp(dot * scale);
                }
                for (int j = 0; j <= i; j++)
                    for (int x = 0; x < b->dim; x++)
                        loss += p[j] / sum * v[(r0 + j) * gd + g * b->dim + x] *
                                (double)dout[(r0 + i) * hd + h * b->dim + x];
            }
    return loss;
}

static double *doubles(const float *x, int64_t n)
{
    double *y = malloc((size_t)(n ? n : 1) * sizeof *y);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i];
    return y;
}

static void finite_differences(const struct batch *b, float *const in[3], float *const grad[3],
                               const float *dout, double scale)
{
    int64_t n[3] = {(int64_t)b->rows * b->n_heads * b->dim, (int64_t)b->rows * b->n_kv * b->dim,
                    (int64_t)b->rows * b->n_kv * b->dim};
    double *x[3];
    for (int a = 0; a < 3; a++)
        x[a] = doubles(in[a], n[a]);
    for (int probe = 0; probe < 12; probe++) {
        int a = probe % 3;
        int64_t at = check_between(&check, 0, n[a] - 1);
        double keep = x[a][at], h = 1e-5;
        x[a][at] = keep + h;
        double up = loss_double(b, x[0], x[1], x[2], dout, scale);
        x[a][at] = keep - h;
        double down = loss_double(b, x[0], x[1], x[2], dout, scale);
        x[a][at] = keep;
        check_near("attention_grad against differences", check.ref, (up - down) / (2 * h), grad[a][at], 2e-4);
    }
    for (int a = 0; a < 3; a++)
        free(x[a]);
}

static void test_attention_grad(void **state)
{
    (void)state;
    for (int i = 0, differences = 0; i < 90; i++) {
        struct batch b = batch_new(2 * i); // even: sequences of up to 70 rows
        b.rows = 0;
        b.n_pages = 0;
        for (int s = 0; s < b.n_seqs; s++) {
            b.seqs[s].pos0 = 0;
            b.seqs[s].row0 = b.rows;
            b.rows += b.seqs[s].n_rows;
            b.seqs[s].pages = b.pages[s];
            for (int p = 0; p * b.page_tokens < b.seqs[s].n_rows; p++)
                b.pages[s][p] = b.n_pages++;
        }
        int64_t hd = b.n_heads * b.dim, gd = b.n_kv * b.dim;
        float *q = check_floats(&check, b.rows * hd, 1, 0), *k = check_floats(&check, b.rows * gd, 1, 0);
        float *v = check_floats(&check, b.rows * gd, 1, 0), *dout = check_floats(&check, b.rows * hd, 1, 0);
        float *out = malloc((size_t)(b.rows * hd) * 4), *lse = malloc((size_t)(b.rows * b.n_heads) * 4);
        struct pages pages = pages_new(&b);
        const struct attn_cache c = pages.c;
        struct kernels const *r = check.ref->k;
        r->kv_write(check.ref, &c, b.n_seqs, b.seqs, k, gd, v, gd);
        float scale = 0.2f;
        r->attention(check.ref, &c, b.n_heads, scale, b.n_seqs, b.seqs, q, hd, out, hd, lse);
        float *want[3];
        for (int a = 0; a < 3; a++)
            want[a] = check_floats(&check, b.rows * (a ? gd : hd), 1, 100);
        r->attention_grad(check.ref, b.t, b.n_heads, b.n_kv, b.dim, scale, b.n_seqs, b.seqs, q, hd, k, gd, v,
                          gd, out, hd, lse, dout, hd, want[0], hd, want[1], gd, want[2], gd);
        if (b.t == DT_F32 && differences++ < 12)
            finite_differences(&b, (float *[]){q, k, v}, want, dout, (double)scale);
        for (int t = 0; t < check.n_twins; t++) {
            struct device *d = check.twin[t];
            struct guarded got[3];
            for (int a = 0; a < 3; a++) {
                got[a] = guarded_new((size_t)(b.rows * (a ? gd : hd)) * 4);
                memset(got[a].p, 0xff, got[a].bytes);
            }
            d->k->attention_grad(d, b.t, b.n_heads, b.n_kv, b.dim, scale, b.n_seqs, b.seqs, q, hd, k, gd, v,
                                 gd, out, hd, lse, dout, hd, got[0].p, hd, got[1].p, gd, got[2].p, gd);
            static const char *const names[] = {"attention_grad dq", "attention_grad dk",
                                                "attention_grad dv"};
            for (int a = 0; a < 3; a++) {
                guarded_check(&got[a], names[a]);
                check_same(names[a], d, want[a], got[a].p, b.rows * (a ? gd : hd));
                guarded_free(&got[a]);
            }
        }
        for (int a = 0; a < 3; a++)
            free(want[a]);
        free(q);
        free(k);
        free(v);
        free(dout);
        free(out);
        free(lse);
        pages_free(&pages);
    }
}

int main(void)
{
    if (!check_init(&check, 22))
        return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention),
                                       cmocka_unit_test(test_attention_grad)};
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    check_done(&check);
    return rc;
}
