// Weights files (contract 2): the trainer's bytes for the engines, and model.safetensors of a folder. The bytes depend on
// (layout, weights, version, dtype) alone; their hash is computed while they are produced. Runs on the thread that
// publishes or exports; no state.
#include "model/weights_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "kernels/kernels.h"
#include "model/plan.h"

#define CHUNK_FLOATS ((int64_t)1 << 18)

// Codes and scales of one matrix at a time are not enough: the scales of all matrices precede all codes in the file.
struct quantized {
    uint8_t *codes; // per fp8 tensor at its begin - first_code
    float *scales;  // per scale tensor at its begin / 4
    int64_t first_code;
};

static enum status quantize_all(const struct plan *p, const float *master, struct quantized *ret,
                                struct error *err)
{
    struct quantized q = {.first_code = p->data_bytes};
    struct device *d = NULL;
    int64_t n_scales = 0;
    for (int32_t i = 0; i < p->n; i++) {
        const struct plan_tensor *t = &p->tensors[i];
        if (t->dtype == DT_FP8 && t->begin < q.first_code)
            q.first_code = t->begin;
        if (t->is_scale)
            n_scales += t->bytes / (int64_t)sizeof(float);
    }
    if (!n_scales)
        return STATUS_OK;
    q.codes = mem_alloc((size_t)(p->data_bytes - q.first_code));
    q.scales = mem_alloc((size_t)n_scales * sizeof(float));
    if (!q.codes || !q.scales) {
        mem_free(q.codes);
        mem_free(q.scales);
        return error_set(err, STATUS_NOMEM, "no memory for the FP8 copy of the weights");
    }
    // The op is elementwise within fixed blocks: every class and thread count gives the same bytes.
    enum status rc = device_open("cpu", "auto", 1, &d, err);
    if (rc) {
        mem_free(q.codes);
        mem_free(q.scales);
        return rc;
    }
    float *scales = q.scales;
    for (int32_t i = 0; i < p->n; i++) {
        const struct plan_tensor *t = &p->tensors[i];
        if (t->dtype != DT_FP8)
            continue;
        d->k->fp8_quantize(d, t->rows, t->cols, master + t->param->offset,
                           q.codes + (t->begin - q.first_code), scales);
        scales += param_scales(t->param);
    }
    device_close(d);
    *ret = q;
    return STATUS_OK;
}

// Where the bytes go: always into the hash, and into a file when there is one.
struct sink {
    struct weights_hash hash;
    struct file_atomic *file;
};

static enum status sink_put(struct sink *s, const void *p, size_t n, struct error *err)
{
    weights_hash_update(&s->hash, p, n);
    return s->file ? file_atomic_write(s->file, p, n, err) : STATUS_OK;
}

static enum status tensor_put(struct sink *s, const struct plan_tensor *t, const struct quantized *q,
                              const float *master, uint16_t *half, struct error *err)
{
    if (t->is_scale)
        return sink_put(s, q->scales + t->begin / (int64_t)sizeof(float), (size_t)t->bytes, err);
    if (t->dtype == DT_FP8)
        return sink_put(s, q->codes + (t->begin - q->first_code), (size_t)t->bytes, err);
    const float *w = master + t->param->offset;
    if (t->dtype == DT_F32)
        return sink_put(s, w, (size_t)t->bytes, err);
    int64_t n = t->rows * t->cols;
    for (int64_t i = 0; i < n; i += CHUNK_FLOATS) {
        int64_t m = n - i < CHUNK_FLOATS ? n - i : CHUNK_FLOATS;
        for (int64_t k = 0; k < m; k++)
            half[k] = f32_to_bf16(w[i + k]);
        enum status rc = sink_put(s, half, (size_t)m * sizeof(half[0]), err);
        if (rc)
            return rc;
    }
    return STATUS_OK;
}

static enum status file_begin(struct file_atomic *f, const char *path, unsigned mode, int64_t bytes,
                              struct error *err)
{
    enum status rc = file_atomic_open(f, path, mode, err);
    if (rc)
        return rc;
    // A full disk is found here, before minutes of work and before a reader maps a hole.
    int e = posix_fallocate(f->fd, 0, bytes);
    if (e && e != EOPNOTSUPP && e != EINVAL) {
        rc = error_errno(err, e, "reserving %lld bytes for %s", (long long)bytes, f->tmp);
        file_atomic_abandon(f);
    }
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

static enum status produce(struct sink *s, const struct plan *p, const struct buf *header,
                           const float *master, struct error *err)
{
    struct quantized q = {0};
    uint16_t *half = mem_alloc(CHUNK_FLOATS * sizeof(uint16_t));
    enum status rc = half ? quantize_all(p, master, &q, err) : error_set(err, STATUS_NOMEM, "no memory");
    if (!rc)
        rc = sink_put(s, header->data, header->len, err);
    for (int32_t i = 0; i < p->n && !rc; i++)
        rc = tensor_put(s, &p->tensors[i], &q, master, half, err);
    mem_free(half);
    mem_free(q.codes);
    mem_free(q.scales);
    return rc;
}

enum status weights_file_emit(const char *path, const struct layout *l, const float *master, enum dtype dtype,
                              int64_t version, bool durable, char ret_hash[HASH_HEX], int64_t *ret_bytes,
                              struct error *err)
{
    struct plan plan;
    struct buf header = {0};
    struct file_atomic file = {.fd = -1};
    struct sink sink = {.file = path ? &file : NULL};
    plan_init(&plan, l, dtype);
    plan_header(&plan, dtype, version, &header);
    weights_hash_init(&sink.hash);
    int64_t bytes = (int64_t)header.len + plan.data_bytes;
    enum status rc = path ? file_begin(&file, path, version < 0 ? 0644 : 0600, bytes, err) : STATUS_OK;
    if (!rc)
        rc = produce(&sink, &plan, &header, master, err);
    if (!rc && path)
        rc = file_end(&file, durable, err);
    if (!rc) {
        weights_hash_final(&sink.hash, ret_hash);
        if (ret_bytes)
            *ret_bytes = bytes;
    } else if (path && file.fd >= 0) {
        file_atomic_abandon(&file);
    }
    weights_hash_done(&sink.hash);
    buf_done(&header);
    plan_done(&plan);
    return rc;
}

enum status weights_file_write(const char *path, const struct model_config *c, const struct layout *l,
                               const float *master, enum dtype dtype, int64_t version, bool durable,
                               char ret_hash[HASH_HEX], int64_t *ret_bytes, struct error *err)
{
    (void)c; // the layout says everything the bytes depend on
    assert(version >= 0);
    return weights_file_emit(path, l, master, dtype, version, durable, ret_hash, ret_bytes, err);
}

enum status weights_file_hash(const struct model_config *c, const struct layout *l, const float *master,
                              enum dtype dtype, int64_t version, char ret_hash[HASH_HEX], struct error *err)
{
    (void)c;
    assert(version >= 0);
    return weights_file_emit(NULL, l, master, dtype, version, false, ret_hash, NULL, err);
}
