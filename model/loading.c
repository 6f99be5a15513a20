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
#include "model/parts.h"
#include "model/safetensors.h"
#include "model/weights.h"

#define AHEAD ((size_t)4096) // bytes hashed while as many more are asked for

// A piece is a chunk of the hash with the parts that begin in it.
struct loading {
    struct weights *w;
    const struct parts *parts;
    struct kept_map *kept; // NULL: the map is its own
    struct file_map map;   // else empty
    const uint8_t *data;   // of the whole file
    size_t bytes, header;
    char path[512];        // for errors, perhaps cut
    char expect[HASH_HEX]; // "" = not checked
    bool hash;
    uint8_t (*digests)[HASH_DIGEST]; // of the pieces
    int *first;                      // [n + 1] of each piece
    int n;
    _Atomic int taken, done;
    _Atomic int64_t done_ns;
};

// ---- what a piece does ------------------------------------------------------------------------------------------------------

// The values, or the scales, of a parameter in the file.
static const void *place(const struct loading *l, const struct param *p, bool scales)
{
    return l->data + l->header + l->parts->places[2 * (p - l->w->l.params) + scales];
}

static void rows_pack(const struct loading *l, struct device *d, const struct part *p)
{
    const struct gemm_weight *g = p->weight;
    const uint8_t *src = l->data + l->header + p->begin;
    char *dst = (char *)g->data + d->k->weight_bytes(g->dtype, p->row, g->k);
    d->k->weight_pack(d, g->dtype, p->rows, g->k, src, g->dtype, false, dst);
}

static void embedding_copy(const struct loading *l, const struct part *p)
{
    size_t row = (size_t)l->w->c.hidden * dtype_bytes(weights_embedding_dtype(l->w->dtype));
    mem_copy_past((char *)l->w->embedding + (size_t)p->row * row, l->data + l->header + p->begin,
                  p->end - p->begin);
}

static void scales_copy(const struct loading *l, const struct linear *linear, int i)
{
    const struct gemm_weight *g = &linear->fwd[i];
    float *scales = g->scales;
    int last = linear->n_parts == 1 ? linear->n_params : i + 1;
    for (int k = i; k < last; k++) {
        int64_t n = param_scales(linear->params[k]);
        memcpy(scales, place(l, linear->params[k], true), (size_t)n * sizeof(float));
        scales += n;
    }
}

// Vectors and scales: a thousandth of the bytes.
static void rest_fill(const struct loading *l, struct device *d)
{
    for (int32_t i = 0; i < l->w->n_vectors; i++) {
        const struct bound_vector *v = &l->w->vectors[i];
        const void *src = place(l, v->param, false);
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

static void part_do(const struct loading *l, struct device *d, const struct part *p)
{
    switch (p->kind) {
    case PART_REST:
        rest_fill(l, d);
        break;
    case PART_MATRIX:
        rows_pack(l, d, p);
        break;
    case PART_EMBEDDING:
        embedding_copy(l, p);
        break;
    }
}

// Hashes [at, stop), and asks for as much of what follows: the hash leaves the memory idle, packing does not.
static void hash_add(const struct loading *l, struct weights_hash_part *hash, size_t at, size_t stop,
                     size_t end)
{
    size_t ahead = stop - at, n;
    for (; at < stop; at += n) {
        n = stop - at < AHEAD ? stop - at : AHEAD;
        for (size_t i = at + ahead; i < at + ahead + n && i < end; i += MEM_ALIGN)
            __builtin_prefetch(l->data + i, 0, 2);
        weights_hash_part_add(hash, l->data + at, n);
    }
}

// A part brings its bytes into the cache while it writes, there the hash finds them.
static void piece_do(const struct loading *l, struct device *d, int piece)
{
    struct weights_hash_part hash;
    size_t at = (size_t)piece * HASH_CHUNK_BYTES,
           end = l->bytes - at < HASH_CHUNK_BYTES ? l->bytes : at + HASH_CHUNK_BYTES;
    weights_hash_part_begin(&hash);
    for (int i = l->first[piece]; i < l->first[piece + 1]; i++) {
        const struct part *p = &l->parts->parts[i];
        size_t stop = l->header + p->end < end ? l->header + p->end : end;
        bool last = i + 1 == l->first[piece + 1] || l->header + p[1].begin >= stop; // that reads these bytes
        part_do(l, d, p);
        if (l->hash && last && stop > at) {
            hash_add(l, &hash, at, stop, end);
            at = stop;
        }
    }
    if (l->hash) {
        hash_add(l, &hash, at, end, end);
        weights_hash_part_end(&hash, l->digests[piece]);
    }
}

static void pieces_list(struct loading *l)
{
    l->n = (int)((l->bytes + HASH_CHUNK_BYTES - 1) / HASH_CHUNK_BYTES);
    l->digests = mem_must((size_t)l->n, HASH_DIGEST);
    l->first = mem_must((size_t)l->n + 1, sizeof *l->first);
    for (int c = 0, i = 0; c <= l->n; l->first[c++] = i)
        while (i < l->parts->n && l->header + l->parts->parts[i].begin < (size_t)c * HASH_CHUNK_BYTES)
            i++;
}

// ---- opening ----------------------------------------------------------------------------------------------------------------

// The file must be what weights_file_write lays out for this model: same tensors, dtypes, shapes and places.
static enum status plan_check(const struct plan *p, enum dtype dtype, const struct safetensors *f,
                              const char *path, struct error *err)
{
    if (f->n != (size_t)p->n)
        return error_set(err, STATUS_INVALID, "%s: %zu tensors; this model in %s has %d", path, f->n,
                         dtype_name(dtype), (int)p->n);
    if ((uintptr_t)(f->tensors[0].data - f->tensors[0].begin) % MEM_ALIGN)
        return error_set(err, STATUS_INVALID, "%s: the header is not padded to %d bytes", path, MEM_ALIGN);
    for (int32_t i = 0; i < p->n; i++) {
        const struct plan_tensor *t = &p->tensors[i];
        const struct safetensor *have = safetensors_find(f, t->name);
        bool vector = t->param->vector && !t->is_scale;
        if (!have)
            return error_set(err, STATUS_NOTFOUND, "%s: tensor \"%s\" is missing", path, t->name);
        if (have->dtype != t->dtype)
            return error_set(err, STATUS_TYPE, "%s: tensor \"%s\" is %s, this engine wants %s", path, t->name,
                             dtype_name(have->dtype), dtype_name(t->dtype));
        if (have->n_dims != (vector ? 1 : 2) || have->dims[have->n_dims - 1] != t->cols ||
            (!vector && have->dims[0] != t->rows) || have->begin != (size_t)t->begin)
            return error_set(err, STATUS_INVALID,
                             "%s: tensor \"%s\" has another shape or place than this model's", path, t->name);
    }
    return STATUS_OK;
}

static enum status header_check(struct loading *l, struct error *err)
{
    struct safetensors f;
    if (parts_begin_file(l->parts, l->data, l->bytes, &l->header))
        return STATUS_OK;
    enum status rc = safetensors_parse(l->data, l->bytes, l->path, &f, err);
    if (rc)
        return rc;
    rc = plan_check(&l->parts->plan, l->w->dtype, &f, l->path, err);
    l->header = l->bytes - (size_t)l->parts->plan.data_bytes; // the tensors tile what comes after it
    safetensors_close(&f);
    return rc;
}

void loading_free(struct loading *l)
{
    if (!l)
        return;
    kept_release(l->kept);
    file_map_close(&l->map);
    free(l->digests);
    free(l->first);
    free(l);
}

static enum status file_open(struct loading *l, const char *path, struct kept *kept, struct error *err)
{
    enum status rc =
        kept ? kept_read(kept, path, &l->kept, &l->bytes, err) : file_map_open(path, true, &l->map, err);
    if (!rc) {
        l->data = kept ? (const uint8_t *)l->kept->data : l->map.data;
        l->bytes = kept ? l->bytes : l->map.len;
    }
    return rc;
}

enum status loading_open(struct weights *w, const char *path, const char *expect_hash, struct kept *kept,
                         struct loading **ret, struct error *err)
{
    assert(!w->train); // their values are a flat vector's
    struct loading *l = mem_must(1, sizeof *l);
    l->w = w;
    l->parts = parts_of(w);
    snprintf(l->path, sizeof l->path, "%s", path);
    snprintf(l->expect, sizeof l->expect, "%s", expect_hash ? expect_hash : "");
    enum status rc = file_open(l, path, kept, err);
    if (!rc)
        rc = header_check(l, err);
    if (rc) {
        loading_free(l);
        return rc;
    }
    l->hash = expect_hash != NULL;
    pieces_list(l);
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
        piece_do(l, d, i);
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
    weights_hash_digests((const uint8_t(*)[HASH_DIGEST])l->digests, (size_t)l->n, hex);
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

static void hash_task(void *ctx, int task, int thread)
{
    const struct loading *l = ctx;
    size_t at = (size_t)task * HASH_CHUNK_BYTES, left = l->bytes - at;
    (void)thread;
    weights_hash_chunk(l->data + at, left < HASH_CHUNK_BYTES ? left : HASH_CHUNK_BYTES, l->digests[task]);
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
        pool_run(w->d->pool, l->n, hash_task, l);
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
