// The reader of safetensors files: see safetensors.h. Any thread; no state beyond the object.
#include "model/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static enum status tensor_dtype(const char *name, enum dtype *ret)
{
    static const enum dtype known[] = {DT_F32, DT_BF16, DT_F16, DT_FP8, DT_I32, DT_U8};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(name, dtype_name(known[i])) == 0) {
            *ret = known[i];
            return STATUS_OK;
        }
    return STATUS_UNSUPPORTED;
}

// One member of the header. data_len: bytes of the data section.
static enum status tensor_parse(const char *name, const json_t *j, size_t data_len, const char *what,
                                struct safetensor *t, struct error *err)
{
    const char *type = json_string_value(json_object_get(j, "dtype"));
    const json_t *shape = json_object_get(j, "shape"), *span = json_object_get(j, "data_offsets");
    *t = (struct safetensor){.name = name};
    if (!json_is_object(j) || json_object_size(j) != 3 || !type || !json_is_array(shape) ||
        json_array_size(span) != 2)
        return error_set(err, STATUS_CORRUPT,
                         "%s: tensor \"%.100s\": want exactly dtype, shape and data_offsets", what, name);
    if (tensor_dtype(type, &t->dtype))
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: tensor \"%.100s\" has dtype \"%.20s\" (F32, BF16, F16, F8_E4M3 "
                         "are read)",
                         what, name, type);
    if (json_array_size(shape) > SAFETENSORS_DIMS)
        return error_set(err, STATUS_UNSUPPORTED, "%s: tensor \"%.100s\" has more than %d dimensions", what,
                         name, SAFETENSORS_DIMS);
    t->n_dims = (int)json_array_size(shape);
    int64_t bytes = (int64_t)dtype_bytes(t->dtype);
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        t->dims[i] = json_integer_value(dim);
        if (!json_is_integer(dim) || t->dims[i] < 0 || __builtin_mul_overflow(bytes, t->dims[i], &bytes))
            return error_set(err, STATUS_CORRUPT, "%s: tensor \"%.100s\": impossible shape", what, name);
    }
    const json_t *b = json_array_get(span, 0), *e = json_array_get(span, 1);
    int64_t begin = json_integer_value(b), end = json_integer_value(e);
    if (!json_is_integer(b) || !json_is_integer(e) || begin < 0 || end < begin)
        return error_set(err, STATUS_CORRUPT, "%s: tensor \"%.100s\": impossible data_offsets", what, name);
    if ((uint64_t)end > data_len)
        return error_set(err, STATUS_CORRUPT,
                         "%s: truncated: tensor \"%.100s\" ends at byte %lld of the data, the file "
                         "has %zu",
                         what, name, (long long)end, data_len);
    if (end - begin != bytes)
        return error_set(err, STATUS_CORRUPT, "%s: tensor \"%.100s\": %lld bytes for a shape of %lld bytes",
                         what, name, (long long)(end - begin), (long long)bytes);
    t->begin = (size_t)begin;
    t->bytes = (size_t)bytes;
    return STATUS_OK;
}

static int by_begin(const void *a, const void *b)
{
    const struct safetensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; // empty ones first
}

static int by_name(const void *a, const void *b)
{
    const struct safetensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

// Invariant 2.
static enum status tiling_check(const struct safetensors *s, size_t data_len, const char *what,
                                struct error *err)
{
    size_t at = 0;
    for (size_t i = 0; i < s->n; i++) {
        if (s->tensors[i].begin != at)
            return error_set(err, STATUS_CORRUPT,
                             "%s: tensor \"%.100s\" begins at byte %zu of the data; expected %zu (%s)", what,
                             s->tensors[i].name, s->tensors[i].begin, at,
                             s->tensors[i].begin < at ? "tensors overlap" : "a hole");
        at += s->tensors[i].bytes;
    }
    if (at != data_len)
        return error_set(err, STATUS_CORRUPT, "%s: %zu bytes after the last tensor", what, data_len - at);
    return STATUS_OK;
}

static enum status metadata_check(const json_t *m, const char *what, struct error *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(m))
        return error_set(err, STATUS_CORRUPT, "%s: __metadata__ is not an object", what);
    json_object_foreach((json_t *)m, key, value) if (!json_is_string(value)) return error_set(
        err, STATUS_CORRUPT, "%s: __metadata__ \"%.100s\" is not a string", what, key);
    return STATUS_OK;
}

static enum status header_parse(struct safetensors *s, const uint8_t *data, size_t data_len, const char *what,
                                struct error *err)
{
    const char *key;
    json_t *value;
    enum status rc = STATUS_OK;
    if (!json_is_object(s->header))
        return error_set(err, STATUS_CORRUPT, "%s: the header is not a JSON object", what);
    s->tensors = mem_must(json_object_size(s->header), sizeof(s->tensors[0]));
    json_object_foreach(s->header, key, value)
    {
        if (strcmp(key, "__metadata__") == 0)
            rc = metadata_check(value, what, err);
        else
            rc = tensor_parse(key, value, data_len, what, &s->tensors[s->n++], err);
        if (rc)
            return rc;
    }
    qsort(s->tensors, s->n, sizeof(s->tensors[0]), by_begin);
    rc = tiling_check(s, data_len, what, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < s->n; i++)
        s->tensors[i].data = data + s->tensors[i].begin;
    qsort(s->tensors, s->n, sizeof(s->tensors[0]), by_name);
    return STATUS_OK;
}

enum status safetensors_parse(const void *data, size_t len, const char *what, struct safetensors *ret,
                              struct error *err)
{
    const uint8_t *p = data;
    struct safetensors s = {0};
    uint64_t header = 0;
    if (len < 8)
        return error_set(err, STATUS_CORRUPT, "%s: truncated: %zu bytes are no safetensors file", what, len);
    for (int i = 0; i < 8; i++)
        header |= (uint64_t)p[i] << 8 * i;
    if (header > SAFETENSORS_HEADER_MAX)
        return error_set(err, STATUS_CORRUPT, "%s: a header of %llu bytes is over the limit of %zu", what,
                         (unsigned long long)header, SAFETENSORS_HEADER_MAX);
    if (header > len - 8)
        return error_set(err, STATUS_CORRUPT, "%s: truncated: the header has %llu bytes, the file %zu", what,
                         (unsigned long long)header, len);
    enum status rc = json_parse((const char *)p + 8, (size_t)header, what, &s.header, err);
    if (!rc)
        rc = header_parse(&s, p + 8 + header, len - 8 - (size_t)header, what, err);
    if (rc) {
        safetensors_close(&s);
        return rc;
    }
    *ret = s;
    return STATUS_OK;
}

enum status safetensors_open(const char *path, bool nofollow, struct safetensors *ret, struct error *err)
{
    struct file_map map = {0};
    enum status rc = file_map_open(path, nofollow, &map, err);
    if (rc)
        return rc;
    rc = safetensors_parse(map.data, map.len, path, ret, err);
    if (rc)
        file_map_close(&map);
    else
        ret->map = map;
    return rc;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    json_decref(s->header);
    free(s->tensors);
    file_map_close(&s->map);
    *s = (struct safetensors){0};
}

const struct safetensor *safetensors_find(const struct safetensors *s, const char *name)
{
    const struct safetensor key = {.name = name};
    return s->n ? bsearch(&key, s->tensors, s->n, sizeof(key), by_name) : NULL;
}

const char *safetensors_metadata(const struct safetensors *s, const char *key)
{
    return json_string_value(json_object_get(json_object_get(s->header, "__metadata__"), key));
}
