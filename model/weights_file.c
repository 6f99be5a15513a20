// Weights files (contract 2): the trainer's bytes for the engines, and model.safetensors of a folder. The bytes depend on
// (layout, weights, version, dtype) alone. Runs on the thread that publishes or exports and on the pool of the device it gives.
//
// The file is mapped and produced in pieces of about 1 MiB: rows of a matrix are rounded or quantised straight to where they belong
// (with their scales, which lie elsewhere in the file). Whoever completes a chunk of the hash takes its digest, while the bytes
// are still in a cache. Nothing is written twice or read again.
//
// Invariants
//   1. The room is there before the first byte is: a full disk is found before the work, and no reader maps a hole.
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
#define HUGE_PAGE    ((size_t)2 << 20)

struct piece {
    const struct plan_tensor *t, *scales; // scales: of an FP8 matrix
    int64_t begin, end;                   // rows; elements of what is not FP8
};

struct product {
    struct device *d;
    const float *master;
    char *data; // the whole file
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

static void piece_quantize(struct product *p, struct device *d, const struct piece *piece)
{
    const struct plan_tensor *t = piece->t;
    int64_t across = piece->scales->cols, block = piece->begin / FP8_BLOCK;
    int64_t blocks = (piece->end - piece->begin + FP8_BLOCK - 1) / FP8_BLOCK;
    size_t codes = p->header + (size_t)(t->begin + piece->begin * t->cols);
    size_t scales = p->header + (size_t)piece->scales->begin + (size_t)(block * across) * sizeof(float);
    d->k->fp8_quantize(d, piece->end - piece->begin, t->cols,
                       p->master + t->param->offset + piece->begin * t->cols, (uint8_t *)p->data + codes,
                       (float *)(void *)(p->data + scales));
    produced(p, codes, (size_t)((piece->end - piece->begin) * t->cols));
    produced(p, scales, (size_t)(blocks * across) * sizeof(float));
}

static void piece_do(void *ctx, int task, int thread)
{
    struct product *p = ctx;
    struct device *d = device_solo(p->d, thread);
    const struct piece *piece = &p->pieces[task];
    const struct plan_tensor *t = piece->t;
    if (t->dtype == DT_FP8) {
        piece_quantize(p, d, piece);
        return;
    }
    size_t size = dtype_bytes(t->dtype), at = p->header + (size_t)t->begin + (size_t)piece->begin * size;
    int64_t n = piece->end - piece->begin;
    const float *w = p->master + t->param->offset + piece->begin;
    if (t->dtype == DT_BF16)
        d->k->to_bf16(d, n, w, (uint16_t *)(void *)(p->data + at));
    else
        memcpy(p->data + at, w, (size_t)n * size);
    produced(p, at, (size_t)n * size);
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
    weights_hash_digests((const uint8_t(*)[HASH_DIGEST])p->digests, p->n_chunks, ret_hash);
    free(p->digests);
    free((void *)p->missing);
    free(p->pieces);
}

// ---- the room ---------------------------------------------------------------------------------------------------------------

struct reserve {
    char *data;
    size_t bytes;
    _Atomic int failed; // errno
};

static void reserve_piece(void *ctx, int task, int thread)
{
    struct reserve *r = ctx;
    size_t at = (size_t)task * HUGE_PAGE, left = r->bytes - at;
    (void)thread;
#ifdef MADV_POPULATE_WRITE
    if (madvise(r->data + at, left < HUGE_PAGE ? left : HUGE_PAGE, MADV_POPULATE_WRITE) != 0)
        atomic_store(&r->failed, errno);
#else
    (void)at;
    (void)left;
    atomic_store(&r->failed, EINVAL);
#endif
}

// Pages of shared memory: huge ones where the system lends them, and all of them there before the first byte is written. false: this
// kernel cannot.
static bool populate(struct product *p)
{
    struct reserve r = {.data = p->data, .bytes = p->bytes};
    (void)madvise(p->data, p->bytes, MADV_HUGEPAGE);
    pool_run(p->d->pool, (int)((p->bytes + HUGE_PAGE - 1) / HUGE_PAGE), reserve_piece, &r);
    return atomic_load(&r.failed) == 0;
}

// Takes over the file `old` as f's temporary. A write lease is given only to the one who alone has a file open or mapped; under its
// new name nobody will open it any more.
static bool file_take(struct file_atomic *f, const char *old)
{
    struct file_atomic t = *f;
    if (rename(old, t.tmp) != 0)
        return false;
    t.fd = open(t.tmp, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (t.fd >= 0 && fcntl(t.fd, F_SETLEASE, F_WRLCK) == 0 && fcntl(t.fd, F_SETLEASE, F_UNLCK) == 0) {
        f->fd = t.fd;
        return true;
    }
    if (t.fd >= 0)
        close(t.fd);
    unlink(t.tmp);
    return false;
}

static enum status file_begin(struct file_atomic *f, const char *path, const char *old, unsigned mode,
                              bool durable, struct product *p, struct error *err)
{
    enum status rc = file_atomic_open(f, path, mode, err);
    if (rc)
        return rc;
    int fresh = f->fd;
    if (old && file_take(f, old))
        close(fresh);
    else if (old && !file_exists(f->tmp)) { // the taking failed half-way
        close(fresh);
        rc = file_atomic_open(f, path, mode, err);
        if (rc)
            return rc;
    }
    if (ftruncate(f->fd, (off_t)p->bytes) != 0) {
        rc = error_errno(err, errno, "sizing %s", f->tmp);
        goto fail;
    }
    p->data = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    if (p->data == MAP_FAILED) {
        rc = error_errno(err, errno, "mapping %s", f->tmp);
        goto fail;
    }
    int e = !durable && populate(p) ? 0 : posix_fallocate(f->fd, 0, (off_t)p->bytes);
    if (!e)
        return STATUS_OK;
    munmap(p->data, p->bytes);
    rc = error_errno(err, e, "reserving %zu bytes for %s", p->bytes, f->tmp);
fail:
    file_atomic_abandon(f);
    return rc;
}

static enum status file_end(struct file_atomic *f, bool durable, struct error *err)
{
    if (durable)
        return file_atomic_commit(f, err);
    if (rename(f->tmp, f->path) < 0) {
        enum status rc = error_errno(err, errno, "renaming %s to %s", f->tmp, f->path);
        file_atomic_abandon(f);
        return rc;
    }
    close(f->fd);
    f->fd = -1;
    return STATUS_OK;
}

static enum status emit_file(const char *path, const char *old, bool durable, unsigned mode,
                             const struct plan *plan, const struct buf *header, struct product *p,
                             char ret_hash[HASH_HEX], struct error *err)
{
    struct file_atomic file = {.fd = -1};
    enum status rc = file_begin(&file, path, old, mode, durable, p, err);
    if (rc)
        return rc;
    produce(p, plan, header, ret_hash);
    munmap(p->data, p->bytes);
    return file_end(&file, durable, err);
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

enum status weights_file_emit(const char *path, const char *old, struct device *d, const struct layout *l,
                              const float *master, enum dtype dtype, int64_t version, bool durable,
                              char ret_hash[HASH_HEX], int64_t *ret_bytes, struct error *err)
{
    struct plan plan;
    struct buf header = {0};
    struct device *own = NULL;
    char hash[HASH_HEX];
    // The ops are elementwise within fixed blocks: every class and thread count gives the same bytes.
    enum status rc = d ? STATUS_OK : device_open("cpu", "auto", 1, &own, err);
    if (rc)
        return rc;
    plan_init(&plan, l, dtype);
    plan_header(&plan, dtype, version, &header);
    struct product p = {.d = d ? d : own,
                        .master = master,
                        .bytes = header.len + (size_t)plan.data_bytes,
                        .header = header.len};
    rc = path ? emit_file(path, old, durable, version < 0 ? 0644 : 0600, &plan, &header, &p, hash, err)
              : emit_hash(&plan, &header, &p, hash, err);
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
    return weights_file_emit(path, NULL, d, l, master, dtype, version, durable, ret_hash, ret_bytes, err);
}

enum status weights_file_rewrite(const char *path, const char *old, struct device *d, const struct layout *l,
                                 const float *master, enum dtype dtype, int64_t version,
                                 char ret_hash[HASH_HEX], int64_t *ret_bytes, struct error *err)
{
    assert(version >= 0);
    return weights_file_emit(path, old, d, l, master, dtype, version, false, ret_hash, ret_bytes, err);
}

enum status weights_file_hash(struct device *d, const struct layout *l, const float *master, enum dtype dtype,
                              int64_t version, char ret_hash[HASH_HEX], struct error *err)
{
    assert(version >= 0);
    return weights_file_emit(NULL, NULL, d, l, master, dtype, version, false, ret_hash, NULL, err);
}
