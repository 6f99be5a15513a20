// Weights files (contract 2): the trainer's bytes for the engines, and model.safetensors of a folder. The bytes depend on
// (layout, weights, version, dtype) alone. Runs on the thread that publishes or exports and on the pool of the device it gives.
//
// The file is mapped and produced in pieces of about 1 MiB: rows of a matrix are rounded or quantised straight to where they belong
// (with their scales, which lie elsewhere in the file), after whoever has to change them first has done so (weights_before), a
// cache's worth at a time. Whoever completes a chunk of the hash takes its digest, while the bytes are still in a cache. Nothing is
// written twice or read again.
//
// Invariants
//   1. The room is there before the first byte is: a full disk is found before the work (and before any weight is changed), and no
//      reader maps a hole.
//   2. missing[c] counts the bytes of chunk c that nobody has produced yet. It is lowered after the bytes are written (release) and
//      the one who brings it to 0 sees them all (acquire).
#include "model/weights_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "kernels/kernels.h"
#include "model/plan.h"

#define PIECE_FLOATS ((int64_t)1 << 18)
#define CACHE_FLOATS ((int64_t)1 << 14) // of the master, with what belongs to them

struct piece {
    const struct plan_tensor *t, *scales; // scales: of an FP8 matrix
    int64_t begin, end;                   // rows; elements of what is not FP8
};

struct product {
    struct device *d;
    const float *master;
    struct weights_before *before; // fn NULL = none
    char *data;                    // the whole file
    size_t bytes, header;
    uint8_t (*digests)[HASH_DIGEST];
    _Atomic int64_t *missing; // [n_chunks]
    size_t n_chunks;
    struct piece *pieces;
    int n, cap;
};

// ---- pieces -----------------------------------------------------------------------------------------------------------------

static void piece_add(struct product *p, struct piece piece)
{
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 512;
        p->pieces = mem_grow(p->pieces, (size_t)p->cap, sizeof *p->pieces);
    }
    p->pieces[p->n++] = piece;
}

static const struct plan_tensor *scales_of(const struct plan *plan, const struct plan_tensor *t)
{
    for (int32_t i = 0; i < plan->n; i++)
        if (plan->tensors[i].is_scale && plan->tensors[i].param == t->param)
            return &plan->tensors[i];
    assert(!"an FP8 matrix without scales");
    return NULL;
}

static void pieces_list(struct product *p, const struct plan *plan)
{
    for (int32_t i = 0; i < plan->n; i++) {
        const struct plan_tensor *t = &plan->tensors[i];
        if (t->is_scale)
            continue; // comes with its matrix
        struct piece piece = {.t = t};
        int64_t all = t->rows * t->cols, step = PIECE_FLOATS;
        if (t->dtype == DT_FP8) {
            piece.scales = scales_of(plan, t);
            all = t->rows;
            step = 2 * PIECE_FLOATS / (t->cols * FP8_BLOCK) * FP8_BLOCK;
            step = step < FP8_BLOCK ? FP8_BLOCK : step;
        }
        for (piece.begin = 0; piece.begin < all; piece.begin = piece.end) {
            piece.end = all - piece.begin < step ? all : piece.begin + step;
            piece_add(p, piece);
        }
    }
}

// The bytes [at, at + n) of the file are there.
static void produced(struct product *p, size_t at, size_t n)
{
    while (n > 0) {
        size_t c = at / HASH_CHUNK_BYTES, left = (c + 1) * HASH_CHUNK_BYTES - at, m = n < left ? n : left;
        if (atomic_fetch_sub(&p->missing[c], (int64_t)m) == (int64_t)m) {
            size_t begin = c * HASH_CHUNK_BYTES, rest = p->bytes - begin;
            weights_hash_chunk(p->data + begin, rest < HASH_CHUNK_BYTES ? rest : HASH_CHUNK_BYTES,
                               p->digests[c]);
        }
        at += m;
        n -= m;
    }
}

// Elements [begin, end) of param are about to be read.
static void before(const struct product *p, struct device *d, const struct param *param, int64_t begin,
                   int64_t end)
{
    if (p->before->fn)
        p->before->fn(p->before->ctx, d, param, begin, end);
}

static void piece_quantize(struct product *p, struct device *d, const struct piece *piece)
{
    const struct plan_tensor *t = piece->t;
    int64_t across = piece->scales->cols, first = piece->begin / FP8_BLOCK;
    size_t codes = p->header + (size_t)t->begin, scales = p->header + (size_t)piece->scales->begin;
    const float *w = p->master + t->param->offset;
    int64_t end, block = first;
    for (int64_t i = piece->begin; i < piece->end; i = end, block++) {
        end = piece->end - i < FP8_BLOCK ? piece->end : i + FP8_BLOCK;
        before(p, d, t->param, i * t->cols, end * t->cols);
        d->k->fp8_quantize(d, end - i, t->cols, w + i * t->cols,
                           (uint8_t *)p->data + codes + (size_t)(i * t->cols),
                           (float *)(void *)(p->data + scales) + block * across);
    }
    produced(p, codes + (size_t)(piece->begin * t->cols), (size_t)((piece->end - piece->begin) * t->cols));
    produced(p, scales + (size_t)(first * across) * sizeof(float),
             (size_t)((block - first) * across) * sizeof(float));
}

static void piece_round(struct product *p, struct device *d, const struct piece *piece)
{
    const struct plan_tensor *t = piece->t;
    size_t size = dtype_bytes(t->dtype);
    char *to = p->data + p->header + t->begin;
    const float *w = p->master + t->param->offset;
    int64_t end;
    for (int64_t i = piece->begin; i < piece->end; i = end) {
        end = piece->end - i < CACHE_FLOATS ? piece->end : i + CACHE_FLOATS;
        before(p, d, t->param, i, end);
        if (t->dtype == DT_BF16)
            d->k->to_bf16(d, end - i, w + i, (uint16_t *)(void *)to + i);
        else
            memcpy(to + (size_t)i * size, w + i, (size_t)(end - i) * size);
    }
    produced(p, p->header + (size_t)t->begin + (size_t)piece->begin * size,
             (size_t)(piece->end - piece->begin) * size);
}

static void piece_do(void *ctx, int task, int thread)
{
    struct product *p = ctx;
    struct device *d = device_solo(p->d, thread);
    const struct piece *piece = &p->pieces[task];
    if (piece->t->dtype == DT_FP8)
        piece_quantize(p, d, piece);
    else
        piece_round(p, d, piece);
}

// Fills p->data and takes the hash.
static void produce(struct product *p, const struct plan *plan, const struct buf *header,
                    char ret_hash[HASH_HEX])
{
    p->n_chunks = (p->bytes + HASH_CHUNK_BYTES - 1) / HASH_CHUNK_BYTES;
    p->digests = mem_must(p->n_chunks, HASH_DIGEST);
    p->missing = mem_must(p->n_chunks, sizeof *p->missing);
    for (size_t c = 0; c < p->n_chunks; c++) {
        size_t rest = p->bytes - c * HASH_CHUNK_BYTES;
        atomic_init(&p->missing[c], (int64_t)(rest < HASH_CHUNK_BYTES ? rest : HASH_CHUNK_BYTES));
    }
    pieces_list(p, plan);
    memcpy(p->data, header->data, header->len);
    produced(p, 0, header->len);
    pool_run(p->d->pool, p->n, piece_do, p);
    p->before->done = true;
    weights_hash_digests((const uint8_t(*)[HASH_DIGEST])p->digests, p->n_chunks, ret_hash);
    free(p->digests);
    free((void *)p->missing);
    free(p->pieces);
}

// ---- where the bytes go -----------------------------------------------------------------------------------------------------

// A file for good: it waits until the disk has the bytes.
static enum status emit_durable(const char *path, unsigned mode, const struct plan *plan,
                                const struct buf *header, struct product *p, char ret_hash[HASH_HEX],
                                struct error *err)
{
    struct file_atomic f = {.fd = -1};
    enum status rc = file_atomic_open(&f, path, mode, err);
    if (rc)
        return rc;
    int e = posix_fallocate(f.fd, 0, (off_t)p->bytes);
    p->data = e ? MAP_FAILED : mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, f.fd, 0);
    if (p->data == MAP_FAILED) {
        rc = error_errno(err, e ? e : errno, "reserving %zu bytes for %s", p->bytes, f.tmp);
        file_atomic_abandon(&f);
        return rc;
    }
    produce(p, plan, header, ret_hash);
    munmap(p->data, p->bytes);
    return file_atomic_commit(&f, err);
}

// A file for the engines.
static enum status emit_shared(const struct weights_output *out, unsigned mode, const struct plan *plan,
                               const struct buf *header, struct product *p, char ret_hash[HASH_HEX],
                               struct error *err)
{
    struct kept own = {0};
    struct kept_map *map;
    char tmp[4096];
    if (snprintf(tmp, sizeof tmp, "%s.tmp.%d", out->path, (int)getpid()) >= (int)sizeof tmp)
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…", out->path);
    unlink(tmp); // left over by an earlier process with our pid
    enum status rc =
        kept_write(out->kept ? out->kept : &own, tmp, out->old, mode, p->bytes, p->d->pool, &map, err);
    if (rc)
        return rc;
    p->data = map->data;
    produce(p, plan, header, ret_hash);
    kept_release(map); // before anybody can find it
    if (rename(tmp, out->path) != 0) {
        rc = error_errno(err, errno, "renaming %s to %s", tmp, out->path);
        unlink(tmp);
    }
    kept_done(&own);
    return rc;
}

static enum status emit_hash(const struct plan *plan, const struct buf *header, struct product *p,
                             char ret_hash[HASH_HEX], struct error *err)
{
    p->data = mem_alloc(p->bytes);
    if (!p->data)
        return error_set(err, STATUS_NOMEM, "no memory for the published copy of the weights");
    produce(p, plan, header, ret_hash);
    mem_free(p->data);
    return STATUS_OK;
}

enum status weights_file_emit(const struct weights_output *out, bool durable, struct device *d,
                              const struct layout *l, const float *master, enum dtype dtype, int64_t version,
                              char ret_hash[HASH_HEX], int64_t *ret_bytes, struct error *err)
{
    struct plan plan;
    struct buf header = {0};
    struct device *own = NULL;
    struct weights_before none = {0};
    char hash[HASH_HEX];
    unsigned mode = version < 0 ? 0644 : 0600;
    // The ops are elementwise within fixed blocks: every class and thread count gives the same bytes.
    enum status rc = d ? STATUS_OK : device_open("cpu", "auto", 1, &own, err);
    if (rc)
        return rc;
    plan_init(&plan, l, dtype);
    plan_header(&plan, dtype, version, &header);
    struct product p = {.d = d ? d : own,
                        .master = master,
                        .before = out->before ? out->before : &none,
                        .bytes = header.len + (size_t)plan.data_bytes,
                        .header = header.len};
    if (!out->path)
        rc = emit_hash(&plan, &header, &p, hash, err);
    else if (durable)
        rc = emit_durable(out->path, mode, &plan, &header, &p, hash, err);
    else
        rc = emit_shared(out, mode, &plan, &header, &p, hash, err);
    if (!rc) {
        memcpy(ret_hash, hash, HASH_HEX);
        if (ret_bytes)
            *ret_bytes = (int64_t)p.bytes;
    }
    buf_done(&header);
    plan_done(&plan);
    device_close(own);
    return rc;
}

enum status weights_file_write(const char *path, struct device *d, const struct layout *l,
                               const float *master, enum dtype dtype, int64_t version, bool durable,
                               char ret_hash[HASH_HEX], int64_t *ret_bytes, struct error *err)
{
    assert(version >= 0);
    const struct weights_output out = {.path = path};
    return weights_file_emit(&out, durable, d, l, master, dtype, version, ret_hash, ret_bytes, err);
}

enum status weights_file_rewrite(const struct weights_output *out, bool durable, struct device *d,
                                 const struct layout *l, const float *master, enum dtype dtype,
                                 int64_t version, char ret_hash[HASH_HEX], int64_t *ret_bytes,
                                 struct error *err)
{
    assert(version >= 0);
    return weights_file_emit(out, durable, d, l, master, dtype, version, ret_hash, ret_bytes, err);
}

enum status weights_file_hash(struct device *d, const struct layout *l, const float *master, enum dtype dtype,
                              int64_t version, char ret_hash[HASH_HEX], struct error *err)
{
    assert(version >= 0);
    const struct weights_output out = {0};
    return weights_file_emit(&out, false, d, l, master, dtype, version, ret_hash, NULL, err);
}
