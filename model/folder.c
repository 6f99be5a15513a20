// Model folders in the Hugging Face layout: in (one safetensors file or shards behind an index) and out. Runs on the thread
// that loads or exports; no state.
#include "model/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "kernels/kernels.h"
#include "model/plan.h"
#include "model/safetensors.h"
#include "model/weights_file.h"

#define SHARDS_MAX      1024
#define INDEX_BYTES_MAX ((size_t)64 << 20)
#define COPY_BYTES_MAX  ((size_t)256 << 20)

// ---- in: which files ------------------------------------------------------------------------------------------------

struct shard {
    char path[4096];
    struct safetensors st;
};
struct shards {
    struct shard *v;
    size_t n;
};

static void shards_close(struct shards *s)
{
    for (size_t i = 0; i < s->n; i++)
        safetensors_close(&s->v[i].st);
    free(s->v);
    *s = (struct shards){0};
}

static enum status shard_add(struct shards *s, const char *dir, const char *name, struct error *err)
{
    if (s->n == SHARDS_MAX)
        return error_set(err, STATUS_LIMIT, "%s: more than %d files of weights", dir, SHARDS_MAX);
    s->v = mem_grow(s->v, s->n + 1, sizeof(s->v[0]));
    struct shard *h = &s->v[s->n];
    memset(h, 0, sizeof(*h));
    enum status rc = file_join(h->path, sizeof(h->path), dir, name, err);
    if (!rc)
        rc = safetensors_open(h->path, false, &h->st, err);
    if (!rc)
        s->n++;
    return rc;
}

// model.safetensors.index.json: {"weight_map": {tensor: file}}. Every tensor must be in the file the index names.
static enum status index_read(struct shards *s, const char *dir, const char *index, struct error *err)
{
    json_t *j = NULL, *value;
    const char *key;
    enum status rc = json_parse_file(index, INDEX_BYTES_MAX, &j, err);
    json_t *map = json_object_get(j, "weight_map");
    if (!rc && json_object_size(map) == 0)
        rc = error_set(err, STATUS_CORRUPT, "%s: no weight_map", index);
    json_object_foreach(map, key, value)
    {
        const char *name = json_string_value(value);
        size_t at = 0;
        if (rc)
            break;
        if (!name || !*name || strchr(name, '/') || name[0] == '.') {
            rc = error_set(err, STATUS_CORRUPT, "%s: tensor \"%.100s\" has no plain file name", index, key);
            break;
        }
        while (at < s->n && strcmp(strrchr(s->v[at].path, '/') + 1, name) != 0)
            at++;
        if (at == s->n)
            rc = shard_add(s, dir, name, err);
        if (!rc && !safetensors_find(&s->v[at].st, key))
            rc = error_set(err, STATUS_CORRUPT, "%s: tensor \"%.100s\" is not in the file that %s names",
                           s->v[at].path, key, index);
    }
    json_decref(j);
    return rc;
}

static enum status shards_open(const char *dir, struct shards *s, struct error *err)
{
    char path[4096];
    enum status rc = file_join(path, sizeof(path), dir, "model.safetensors", err);
    if (rc)
        return rc;
    if (file_exists(path))
        return shard_add(s, dir, "model.safetensors", err);
    rc = file_join(path, sizeof(path), dir, "model.safetensors.index.json", err);
    if (rc)
        return rc;
    if (file_exists(path))
        return index_read(s, dir, path, err);
    return error_set(
        err, STATUS_NOTFOUND,
        "%s: neither model.safetensors nor model.safetensors.index.json; is this a model folder?", dir);
}

// The one tensor of that name over all shards; *ret NULL when there is none.
static enum status tensor_find(const struct shards *s, const char *name, const struct safetensor **ret,
                               const struct shard **ret_shard, struct error *err)
{
    *ret = NULL;
    for (size_t i = 0; i < s->n; i++) {
        const struct safetensor *t = safetensors_find(&s->v[i].st, name);
        if (t && *ret)
            return error_set(err, STATUS_CORRUPT, "%s: tensor \"%.100s\" is in %s too", s->v[i].path, name,
                             (*ret_shard)->path);
        if (t) {
            *ret = t;
            *ret_shard = &s->v[i];
        }
    }
    return STATUS_OK;
}

// ---- in: tensors ------------------------------------------------------------------------------------------------------

static bool shape_is(const struct safetensor *t, int64_t rows, int64_t cols, bool vector)
{
    return vector ? t->n_dims == 1 && t->dims[0] == cols
                  : t->n_dims == 2 && t->dims[0] == rows && t->dims[1] == cols;
}

static enum status shape_check(const struct safetensor *t, const char *path, int64_t rows, int64_t cols,
                               bool vector, struct error *err)
{
    char got[120] = "";
    for (int i = 0; i < t->n_dims; i++)
        snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s%lld", i ? ", " : "",
                 (long long)t->dims[i]);
    if (shape_is(t, rows, cols, vector))
        return STATUS_OK;
    if (vector)
        return error_set(err, STATUS_INVALID, "%s: tensor \"%s\" has shape [%s]; config.json asks for [%lld]",
                         path, t->name, got, (long long)cols);
    return error_set(err, STATUS_INVALID,
                     "%s: tensor \"%s\" has shape [%s]; config.json asks for [%lld, %lld]", path, t->name,
                     got, (long long)rows, (long long)cols);
}

// Element i of a tensor that may lie unaligned in the file.
static float element(const struct safetensor *t, int64_t i)
{
    uint16_t h;
    float f;
    switch (t->dtype) {
    case DT_F32:
        memcpy(&f, t->data + i * 4, 4);
        return f;
    case DT_BF16:
        memcpy(&h, t->data + i * 2, 2);
        return bf16_to_f32(h);
    case DT_F16:
        memcpy(&h, t->data + i * 2, 2);
        return f16_to_f32(h);
    default:
        return fp8_to_f32(t->data[i]);
    }
}

static enum status scales_apply(const struct shards *s, const struct param *p, const struct shard *shard,
                                float *w, struct error *err)
{
    char name[128];
    const struct safetensor *t;
    int64_t across = (p->cols + FP8_BLOCK - 1) / FP8_BLOCK, down = (p->rows + FP8_BLOCK - 1) / FP8_BLOCK;
    snprintf(name, sizeof(name), "%s_scale_inv", p->name);
    enum status rc = tensor_find(s, name, &t, &shard, err);
    if (rc)
        return rc;
    if (!t)
        return error_set(err, STATUS_NOTFOUND, "%s: tensor \"%s\" is F8_E4M3 but \"%s\" is missing",
                         shard->path, p->name, name);
    rc = shape_check(t, shard->path, down, across, false, err);
    if (!rc && t->dtype != DT_F32 && t->dtype != DT_BF16)
        rc = error_set(err, STATUS_TYPE, "%s: tensor \"%s\" is %s; scales are F32 or BF16", shard->path, name,
                       dtype_name(t->dtype));
    if (rc)
        return rc;
    for (int64_t r = 0; r < p->rows; r++)
        for (int64_t k = 0; k < p->cols; k++)
            w[r * p->cols + k] *= element(t, r / FP8_BLOCK * across + k / FP8_BLOCK);
    return STATUS_OK;
}

static enum status param_read(const struct shards *s, const char *dir, const struct param *p, float *w,
                              struct error *err)
{
    const struct safetensor *t;
    const struct shard *shard = NULL;
    enum status rc = tensor_find(s, p->name, &t, &shard, err);
    if (rc)
        return rc;
    if (!t)
        return error_set(err, STATUS_NOTFOUND, "%s: tensor \"%s\" is missing", dir, p->name);
    rc = shape_check(t, shard->path, p->rows, p->cols, p->vector, err);
    if (rc)
        return rc;
    if (t->dtype == DT_I32 || t->dtype == DT_U8 || (t->dtype == DT_FP8 && p->vector))
        return error_set(err, STATUS_TYPE, "%s: tensor \"%s\" has dtype %s", shard->path, p->name,
                         dtype_name(t->dtype));
    int64_t n = p->rows * p->cols;
    for (int64_t i = 0; i < n; i++)
        w[i] = element(t, i);
    if (t->dtype == DT_FP8)
        rc = scales_apply(s, p, shard, w, err);
    for (int64_t i = 0; i < n && !rc; i++)
        if (!isfinite(w[i]))
            rc = error_set(err, STATUS_NUMERIC, "%s: tensor \"%s\" element %lld is not finite", shard->path,
                           p->name, (long long)i);
    return rc;
}

// Tensors that a folder may hold although the model has no parameter of that name: block scales of FP8 matrices, rope
// frequencies of old exports, and the head of a tied model when it repeats the embedding.
static bool surplus_allowed(const struct shards *s, const struct model_config *c, const struct layout *l,
                            const struct safetensor *t)
{
    size_t n = strlen(t->name), m = strlen("_scale_inv");
    char name[96];
    if (n > m && n - m < sizeof(name) && strcmp(t->name + n - m, "_scale_inv") == 0) {
        snprintf(name, sizeof(name), "%.*s", (int)(n - m), t->name);
        const struct param *p = layout_find(l, name);
        const struct safetensor *w = NULL;
        for (size_t i = 0; i < s->n && !w; i++)
            w = safetensors_find(&s->v[i].st, name);
        return p && w && w->dtype == DT_FP8;
    }
    if (n > 9 && strcmp(t->name + n - 9, ".inv_freq") == 0)
        return true;
    if (c->tie_embeddings && strcmp(t->name, "lm_head.weight") == 0)
        for (size_t i = 0; i < s->n; i++) {
            const struct safetensor *e = safetensors_find(&s->v[i].st, "model.embed_tokens.weight");
            if (e && e->dtype == t->dtype && e->bytes == t->bytes && memcmp(e->data, t->data, t->bytes) == 0)
                return true;
        }
    return false;
}

static enum status surplus_check(const struct shards *s, const struct model_config *c, const struct layout *l,
                                 struct error *err)
{
    for (size_t i = 0; i < s->n; i++)
        for (size_t k = 0; k < s->v[i].st.n; k++) {
            const struct safetensor *t = &s->v[i].st.tensors[k];
            if (!layout_find(l, t->name) && !surplus_allowed(s, c, l, t))
                return error_set(err, STATUS_INVALID,
                                 "%s: tensor \"%.100s\" does not belong to a %s model of this config.json",
                                 s->v[i].path, t->name, c->arch);
        }
    return STATUS_OK;
}

enum status model_folder_read(const char *dir, const struct model_config *c, const struct layout *l,
                              float **ret_master, struct error *err)
{
    struct shards s = {0};
    float *master = NULL;
    enum status rc = shards_open(dir, &s, err);
    if (!rc)
        rc = surplus_check(&s, c, l, err);
    if (!rc) {
        master = mem_alloc((size_t)l->total * sizeof(float));
        if (!master)
            rc = error_set(err, STATUS_NOMEM, "%s: no memory for %lld parameters", dir,
                           (long long)l->n_parameters);
    }
    for (int32_t i = 0; i < l->n && !rc; i++)
        rc = param_read(&s, dir, &l->params[i], master + l->params[i].offset, err);
    shards_close(&s);
    if (rc)
        mem_free(master);
    else
        *ret_master = master;
    return rc;
}

// ---- out --------------------------------------------------------------------------------------------------------------

static enum status file_copy(const char *from, const char *to, struct error *err)
{
    char *data = NULL;
    size_t n = 0;
    enum status rc = file_read(from, COPY_BYTES_MAX, &data, &n, err);
    if (!rc)
        rc = file_write_atomic(to, data, n, 0644, err);
    free(data);
    return rc;
}

static bool belongs_to_tokenizer(const char *name)
{
    static const char *const names[] = {
        "vocab.json",          "merges.txt",         "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "chat_template.json", "generation_config.json"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return strncmp(name, "tokenizer", strlen("tokenizer")) == 0;
}

static enum status tokenizer_copy(const char *from, const char *to, struct error *err)
{
    DIR *d = opendir(from);
    if (!d)
        return error_errno(err, errno, "opening tokenizer folder %s", from);
    enum status rc = STATUS_OK;
    for (struct dirent *e; !rc && (e = readdir(d));) {
        char src[4096], dst[4096];
        struct stat st;
        if (!belongs_to_tokenizer(e->d_name))
            continue;
        rc = file_join(src, sizeof(src), from, e->d_name, err);
        if (!rc)
            rc = file_join(dst, sizeof(dst), to, e->d_name, err);
        if (!rc && stat(src, &st) == 0 && S_ISREG(st.st_mode))
            rc = file_copy(src, dst, err);
    }
    closedir(d);
    return rc;
}

static enum status folder_rename(const char *tmp, const char *dir, struct error *err)
{
    char parent[4096];
    snprintf(parent, sizeof(parent), "%s", dir);
    char *slash = strrchr(parent, '/');
    if (!slash)
        snprintf(parent, sizeof(parent), ".");
    else
        slash[slash == parent] = 0;
    // A rename onto a name that appeared meanwhile fails unless that is an empty folder.
    if (rename(tmp, dir) < 0)
        return error_errno(err, errno, "renaming %s to %s", tmp, dir);
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum status rc =
        fd < 0 || fsync(fd) < 0 ? error_errno(err, errno, "syncing folder %s", parent) : STATUS_OK;
    if (fd >= 0)
        close(fd);
    return rc;
}

enum status model_folder_write(const char *dir, const struct model_config *c, const struct layout *l,
                               const float *master, enum dtype dtype, const char *tokenizer_dir,
                               char ret_hash[HASH_HEX], struct error *err)
{
    char tmp[4096], path[4096], plain[4096], hash[HASH_HEX];
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (snprintf(plain, sizeof(plain), "%.*s", (int)n, dir) >= (int)sizeof(plain) ||
        snprintf(tmp, sizeof(tmp), "%s.tmp.%d", plain, (int)getpid()) >= (int)sizeof(tmp))
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…", dir);
    if (file_exists(plain))
        return error_set(err, STATUS_EXISTS, "%s exists; remove it or choose another folder", plain);
    enum status rc = file_remove_tree(tmp, err);
    if (!rc)
        rc = file_mkdirs(tmp, 0755, err);
    if (!rc)
        rc = model_config_write(c, dtype, tmp, err);
    if (!rc && tokenizer_dir && *tokenizer_dir)
        rc = tokenizer_copy(tokenizer_dir, tmp, err);
    if (!rc)
        rc = file_join(path, sizeof(path), tmp, "model.safetensors", err);
    if (!rc)
        rc = weights_file_emit(&(struct weights_output){.path = path}, true, NULL, l, master, dtype, -1, hash,
                               NULL, err);
    if (!rc)
        rc = folder_rename(tmp, plain, err);
    if (!rc)
        memcpy(ret_hash, hash, HASH_HEX);
    else
        (void)!file_remove_tree(tmp, NULL);
    return rc;
}
