// Weights out of a published file: see loading.h.
#include "model/loading.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/hash.h"
#include "base/mem.h"
#include "model/folder.h"
#include "model/plan.h"
#include "model/safetensors.h"
#include "model/weights.h"

#define PIECE_BYTES ((int64_t)1 << 20)
#define PACK_ROWS   FP8_BLOCK // pieces of a matrix begin at multiples of this (kernels.h, weight_pack)

enum piece_kind { PIECE_HASH, PIECE_MATRIX, PIECE_EMBEDDING, PIECE_REST };

struct piece {
    enum piece_kind kind;
    size_t at;                   // of its bytes in the file
    struct gemm_weight *part;    // MATRIX
    int64_t begin, end;          // rows; HASH: the chunk
    const struct linear *linear; // MATRIX
    int first;                   // MATRIX: its first parameter in linear
};

struct loading {
    struct weights *w;
    struct safetensors file;
    struct kept_map *map; // NULL: file has a map of its own
    const uint8_t *data;  // of the whole file
    size_t bytes;
    char path[512], expect[HASH_HEX]; // "" = not checked
    uint8_t (*digests)[HASH_DIGEST];  // of the chunks
    size_t n_chunks;
    struct piece *pieces; // in order of `at`
    int n, cap;
    _Atomic int taken, done;
    _Atomic int64_t done_ns;
};

// ---- what a piece does ------------------------------------------------------------------------------------------------------

static const uint8_t *tensor(const struct loading *l, const char *name)
{
    return safetensors_find(&l->file, name)->data;
}

static void chunk_hash(struct loading *l, size_t i)
{
    const uint8_t *p = l->data + i * HASH_CHUNK_BYTES;
    size_t left = l->bytes - i * HASH_CHUNK_BYTES, n = left < HASH_CHUNK_BYTES ? left : HASH_CHUNK_BYTES;
    weights_hash_chunk(p, n, l->digests[i]);
}

static void rows_pack(const struct loading *l, struct device *d, const struct piece *p)
{
    const struct gemm_weight *g = p->part;
    const struct param *first = p->linear->params[p->first];
    const uint8_t *src = tensor(l, first->name) + p->begin * g->k * (int64_t)dtype_bytes(g->dtype);
    char *dst = (char *)g->data + d->k->weight_bytes(g->dtype, p->begin, g->k);
    d->k->weight_pack(d, g->dtype, p->end - p->begin, g->k, src, g->dtype, false, dst);
}

static void embedding_copy(const struct loading *l, const struct piece *p)
{
    size_t row = (size_t)l->w->c.hidden * dtype_bytes(weights_embedding_dtype(l->w->dtype));
    size_t from = (size_t)p->begin * row, n = (size_t)(p->end - p->begin) * row;
    memcpy((char *)l->w->embedding + from, tensor(l, l->w->embedding_param->name) + from, n);
}

static void scales_copy(const struct loading *l, const struct linear *linear, int i)
{
    const struct gemm_weight *g = &linear->fwd[i];
    float *scales = g->scales;
    int last = linear->n_parts == 1 ? linear->n_params : i + 1;
    for (int k = i; k < last; k++) {
        char name[128];
        int64_t n = param_scales(linear->params[k]);
        snprintf(name, sizeof name, "%s_scale_inv", linear->params[k]->name);
        memcpy(scales, tensor(l, name), (size_t)n * sizeof(float));
        scales += n;
    }
}

// Vectors and scales: a thousandth of the bytes.
static void rest_fill(const struct loading *l, struct device *d)
{
    for (int32_t i = 0; i < l->w->n_vectors; i++) {
        const struct bound_vector *v = &l->w->vectors[i];
        const void *src = tensor(l, v->param->name);
        if (param_dtype(v->param, l->w->dtype) == DT_BF16)
            d->k->from_bf16(d, v->param->cols, src, v->data);
        else
            memcpy(v->data, src, (size_t)v->param->cols * sizeof(float));
    }
    for (int32_t i = 0; i < l->w->n_linears; i++)
        for (int k = 0; k < l->w->linears[i]->n_parts; k++)
            if (l->w->linears[i]->fwd[k].dtype == DT_FP8)
                scales_copy(l, l->w->linears[i], k);
}

static void piece_do(struct loading *l, struct device *d, const struct piece *p)
{
    switch (p->kind) {
    case PIECE_HASH:
        chunk_hash(l, (size_t)p->begin);
        break;
    case PIECE_MATRIX:
        rows_pack(l, d, p);
        break;
    case PIECE_EMBEDDING:
        embedding_copy(l, p);
        break;
    case PIECE_REST:
        rest_fill(l, d);
        break;
    }
}

// ---- the list of pieces -----------------------------------------------------------------------------------------------------

static void piece_add(struct loading *l, struct piece p)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 512;
        l->pieces = mem_grow(l->pieces, (size_t)l->cap, sizeof *l->pieces);
    }
    l->pieces[l->n++] = p;
}

// Cuts `rows` rows of row_bytes bytes each, the first at `at`, into pieces like p.
static void rows_add(struct loading *l, struct piece p, int64_t rows, int64_t row_bytes, size_t at)
{
    int64_t step = PIECE_BYTES / (row_bytes * PACK_ROWS) * PACK_ROWS;
    if (step < PACK_ROWS)
        step = PACK_ROWS;
    for (p.begin = 0; p.begin < rows; p.begin = p.end) {
        p.end = rows - p.begin < step ? rows : p.begin + step;
        p.at = at + (size_t)(p.begin * row_bytes);
        piece_add(l, p);
    }
}

static size_t place(const struct loading *l, const struct param *p)
{
    return (size_t)(tensor(l, p->name) - l->data);
}

static void linear_add(struct loading *l, struct linear *linear)
{
    for (int i = 0; i < linear->n_parts; i++) {
        struct gemm_weight *g = &linear->fwd[i];
        struct piece p = {.kind = PIECE_MATRIX, .part = g, .linear = linear, .first = i};
        rows_add(l, p, g->n, g->k * (int64_t)dtype_bytes(g->dtype), place(l, linear->params[i]));
    }
}

static int by_place(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1; // the chunk before what lies in it
    return 0;
}

static void pieces_list(struct loading *l, bool hash)
{
    struct weights *w = l->w;
    l->n_chunks = (l->bytes + HASH_CHUNK_BYTES - 1) / HASH_CHUNK_BYTES;
    l->digests = mem_must(l->n_chunks, HASH_DIGEST);
    for (size_t i = 0; i < l->n_chunks && hash; i++)
        piece_add(l, (struct piece){.kind = PIECE_HASH, .at = i * HASH_CHUNK_BYTES, .begin = (int64_t)i});
    piece_add(l, (struct piece){.kind = PIECE_REST});
    rows_add(l, (struct piece){.kind = PIECE_EMBEDDING}, w->c.vocab,
             w->c.hidden * (int64_t)dtype_bytes(weights_embedding_dtype(w->dtype)),
             place(l, w->embedding_param));
    for (int32_t i = 0; i < w->n_linears; i++)
        linear_add(l, w->linears[i]);
    qsort(l->pieces, (size_t)l->n, sizeof *l->pieces, by_place);
}

// The file must be what weights_file_write lays out for this model: same tensors, dtypes, shapes and places.
static enum status plan_check(const struct weights *w, const struct safetensors *f, const char *path,
                              struct error *err)
{
    struct plan p;
    enum status rc = STATUS_OK;
    plan_init(&p, &w->l, w->dtype);
    if (f->n != (size_t)p.n)
        rc = error_set(err, STATUS_INVALID, "%s: %zu tensors; this model in %s has %d", path, f->n,
                       dtype_name(w->dtype), (int)p.n);
    if (!rc && (uintptr_t)(f->tensors[0].data - f->tensors[0].begin) % MEM_ALIGN)
        rc = error_set(err, STATUS_INVALID, "%s: the header is not padded to %d bytes", path, MEM_ALIGN);
    for (int32_t i = 0; i < p.n && !rc; i++) {
        const struct plan_tensor *t = &p.tensors[i];
        const struct safetensor *have = safetensors_find(f, t->name);
        bool vector = t->param->vector && !t->is_scale;
        if (!have)
            rc = error_set(err, STATUS_NOTFOUND, "%s: tensor \"%s\" is missing", path, t->name);
        else if (have->dtype != t->dtype)
            rc = error_set(err, STATUS_TYPE, "%s: tensor \"%s\" is %s, this engine wants %s", path, t->name,
                           dtype_name(have->dtype), dtype_name(t->dtype));
        else if (have->n_dims != (vector ? 1 : 2) || have->dims[have->n_dims - 1] != t->cols ||
                 (!vector && have->dims[0] != t->rows) || have->begin != (size_t)t->begin)
            rc = error_set(err, STATUS_INVALID,
                           "%s: tensor \"%s\" has another shape or place than this model's", path, t->name);
    }
    plan_done(&p);
    return rc;
}

void loading_free(struct loading *l)
{
    if (!l)
        return;
    safetensors_close(&l->file);
    kept_release(l->map);
    free(l->digests);
    free(l->pieces);
    free(l);
}

static enum status file_open(struct loading *l, const char *path, struct kept *kept, struct error *err)
{
    if (!kept) {
        enum status rc = safetensors_open(path, true, &l->file, err);
        l->data = l->file.map.data;
        l->bytes = l->file.map.len;
        return rc;
    }
    enum status rc = kept_read(kept, path, &l->map, &l->bytes, err);
    if (rc)
        return rc;
    l->data = (const uint8_t *)l->map->data;
    return safetensors_parse(l->data, l->bytes, path, &l->file, err);
}

enum status loading_open(struct weights *w, const char *path, const char *expect_hash, struct kept *kept,
                         struct loading **ret, struct error *err)
{
    assert(!w->train); // their values are a flat vector's
    struct loading *l = mem_must(1, sizeof *l);
    l->w = w;
    snprintf(l->path, sizeof l->path, "%s", path);
    snprintf(l->expect, sizeof l->expect, "%s", expect_hash ? expect_hash : "");
    enum status rc = file_open(l, path, kept, err);
    if (!rc)
        rc = plan_check(w, &l->file, path, err);
    if (rc) {
        loading_free(l);
        return rc;
    }
    pieces_list(l, expect_hash != NULL);
    *ret = l;
    return STATUS_OK;
}

// ---- work -------------------------------------------------------------------------------------------------------------------

struct shift {
    struct loading *l;
    struct device *d;
    const struct clock *clock;
    int64_t deadline_ns;
};

static int64_t thread_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void shift_work(void *ctx, int task, int thread)
{
    struct shift *s = ctx;
    struct loading *l = s->l;
    struct device *d = device_solo(s->d, thread);
    (void)task;
    while (clock_mono_ns(s->clock) < s->deadline_ns) {
        int i = atomic_fetch_add(&l->taken, 1);
        if (i >= l->n)
            return;
        int64_t t0 = thread_cpu_ns();
        piece_do(l, d, &l->pieces[i]);
        atomic_fetch_add(&l->done_ns, thread_cpu_ns() - t0);
        atomic_fetch_add(&l->done, 1);
    }
}

void loading_work(struct loading *l, struct device *d, const struct clock *clock, int64_t deadline_ns)
{
    assert(d->isa == l->w->d->isa); // packed layouts are a class's own
    struct shift s = {l, d, clock, deadline_ns};
    pool_run(d->pool, pool_threads(d->pool), shift_work, &s);
}

int64_t loading_left_ns(const struct loading *l)
{
    int done = atomic_load(&l->done), left = l->n - atomic_load(&l->taken);
    if (left <= 0)
        return 0;
    return done ? (int64_t)((double)atomic_load(&l->done_ns) / done * left) : -1;
}

static enum status hash_check(const struct loading *l, struct error *err)
{
    char hex[HASH_HEX];
    weights_hash_digests((const uint8_t(*)[HASH_DIGEST])l->digests, l->n_chunks, hex);
    if (strcmp(hex, l->expect) != 0)
        return error_set(err, STATUS_CORRUPT,
                         "%s: hash %.16s…, expected %.16s…: the file is not the published one", l->path, hex,
                         l->expect);
    return STATUS_OK;
}

enum status loading_finish(const struct loading *l, struct error *err)
{
    if (!l)
        return error_set(err, STATUS_INVALID, "no weights are being loaded");
    if (atomic_load(&l->done) < l->n)
        return error_set(err, STATUS_CANCELED, "%s: loading was given up", l->path);
    return *l->expect ? hash_check(l, err) : STATUS_OK;
}

enum status loading_close(struct loading *l, struct error *err)
{
    enum status rc = loading_finish(l, err);
    loading_free(l);
    return rc;
}

// ---- in one call ------------------------------------------------------------------------------------------------------------

static void chunk_task(void *ctx, int task, int thread)
{
    (void)thread;
    chunk_hash(ctx, (size_t)task);
}

// The hash first, so that a file that is not the published one changes nothing.
enum status weights_load(struct weights *w, const char *path, const char *expect_hash, struct error *err)
{
    struct loading *l;
    enum status rc = loading_open(w, path, NULL, NULL, &l, err);
    if (rc)
        return rc;
    if (expect_hash) {
        snprintf(l->expect, sizeof l->expect, "%s", expect_hash);
        pool_run(w->d->pool, (int)l->n_chunks, chunk_task, l);
        rc = hash_check(l, err);
        *l->expect = 0;
    }
    if (rc) {
        loading_free(l);
        return rc;
    }
    loading_work(l, w->d, clock_system(), INT64_MAX);
    return loading_close(l, err);
}
