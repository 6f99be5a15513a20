// checkpoint: see checkpoint.h. Compute thread.
//
// Invariants
//   1. A name step-N exists only complete: everything inside was fsync'ed before the rename, the parent folder after it.
//   2. state.json is written last and names the hashes of the other files.
#include "trainer/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "model/folder.h"

#define CHECKPOINT_FORMAT 1
#define TMP_PREFIX        ".tmp-"

static enum status sync_folder(const char *dir, struct error *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) {
        enum status rc = error_errno(err, errno, "syncing %s", dir);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    close(fd);
    return STATUS_OK;
}

static enum status hash_file(const char *dir, const char *name, char ret[HASH_HEX], struct error *err)
{
    char path[RUNCONFIG_PATH];
    struct file_map map;
    struct weights_hash h;
    enum status rc = file_join(path, sizeof path, dir, name, err);
    if (!rc)
        rc = file_map_open(path, true, &map, err);
    if (rc)
        return rc;
    weights_hash_init(&h);
    weights_hash_update(&h, map.data, map.len);
    weights_hash_final(&h, ret);
    file_map_close(&map);
    return STATUS_OK;
}

// ---- optimizer.safetensors --------------------------------------------------------------------------------------------------

// The header depends on the layout's size alone, so reading is comparing. 8 bytes of length, then JSON padded to 8.
static size_t optimizer_header(int64_t total, char *ret, size_t n)
{
    long long bytes = (long long)total * 4;
    int len = snprintf(ret + 8, n - 8,
                       "{\"__metadata__\":{\"format\":\"ooze-optimizer-1\"},"
                       "\"exp_avg\":{\"dtype\":\"F32\",\"shape\":[%lld],\"data_offsets\":[0,%lld]},"
                       "\"exp_avg_sq\":{\"dtype\":\"F32\",\"shape\":[%lld],\"data_offsets\":[%lld,%lld]}}",
                       (long long)total, bytes, (long long)total, bytes, 2 * bytes);
    while (len % 8)
        ret[8 + len++] = ' ';
    uint64_t le = (uint64_t)len;
    for (int i = 0; i < 8; i++)
        ret[i] = (char)(le >> (8 * i) & 0xff);
    return 8 + (size_t)len;
}

static enum status optimizer_write(const struct trainer *t, const char *dir, char ret_hash[HASH_HEX],
                                   struct error *err)
{
    char path[RUNCONFIG_PATH], header[512];
    struct file_atomic f;
    struct weights_hash h;
    size_t n = optimizer_header(t->layout.total, header, sizeof header);
    size_t bytes = (size_t)t->layout.total * sizeof(float);
    enum status rc = file_join(path, sizeof path, dir, "optimizer.safetensors", err);
    if (!rc)
        rc = file_atomic_open(&f, path, 0600, err);
    if (rc)
        return rc;
    weights_hash_init(&h);
    const struct {
        const void *p;
        size_t n;
    } parts[] = {{header, n}, {t->optimizer.m, bytes}, {t->optimizer.v, bytes}};
    for (size_t i = 0; i < 3 && !rc; i++) {
        rc = file_atomic_write(&f, parts[i].p, parts[i].n, err);
        weights_hash_update(&h, parts[i].p, parts[i].n);
    }
    if (!rc)
        rc = file_atomic_commit(&f, err);
    if (rc) {
        file_atomic_abandon(&f);
        weights_hash_done(&h);
        return rc;
    }
    weights_hash_final(&h, ret_hash);
    return STATUS_OK;
}

static enum status optimizer_map(const struct trainer *t, const char *dir, struct file_map *ret,
                                 const float **ret_moments, struct error *err)
{
    char path[RUNCONFIG_PATH], header[512];
    size_t n = optimizer_header(t->layout.total, header, sizeof header);
    enum status rc = file_join(path, sizeof path, dir, "optimizer.safetensors", err);
    if (!rc)
        rc = file_map_open(path, true, ret, err);
    if (rc)
        return rc;
    if (ret->len != n + 2 * (size_t)t->layout.total * sizeof(float) || memcmp(ret->data, header, n) != 0) {
        file_map_close(ret);
        return error_set(err, STATUS_CORRUPT, "%s does not hold the moments of %lld parameters", path,
                         (long long)t->layout.total);
    }
    *ret_moments = (const float *)(ret->data + n); // n is a multiple of 8
    return STATUS_OK;
}

// ---- state.json -------------------------------------------------------------------------------------------------------------

struct state {
    int64_t format, step, stage, updates;
    bool reset_pending;
    char numerics_id[128];
    char model_hash[HASH_HEX], optimizer_hash[HASH_HEX];
};

static enum status state_write(const struct trainer *t, const char *dir, const char *run,
                               const char *model_hash, const char *optimizer_hash, char ret_hash[HASH_HEX],
                               struct error *err)
{
    char path[RUNCONFIG_PATH];
    enum status rc = file_join(path, sizeof path, dir, "state.json", err);
    if (rc)
        return rc;
    json_t *j = json_pack("{s:i, s:I, s:I, s:I, s:b, s:s, s:s, s:s, s:s, s:s}", "format", CHECKPOINT_FORMAT,
                          "step", (json_int_t)t->step, "stage", (json_int_t)t->stage, "updates",
                          (json_int_t)t->optimizer.updates, "reset_pending", t->reset_pending, "numerics_id",
                          t->device->numerics_id, "run", run, "dtype", dtype_name(trainer_dtype(t->config)),
                          "model_hash", model_hash, "optimizer_hash", optimizer_hash);
    if (!j)
        return error_set(err, STATUS_INTERNAL, "%s cannot be built", path);
    char *text = json_text(j);
    json_decref(j);
    hash_sha256_hex(text, strlen(text), ret_hash);
    rc = file_write_atomic(path, text, strlen(text), 0600, err);
    free(text);
    return rc;
}

static enum status state_parse(const json_t *j, const char *path, struct state *ret, struct error *err)
{
    const char *numerics = NULL, *model = NULL, *optimizer = NULL;
    enum status rc =
        json_get_int(j, "format", true, 0, CHECKPOINT_FORMAT, CHECKPOINT_FORMAT, path, &ret->format, err);
    if (!rc)
        rc = json_get_int(j, "step", true, 0, 0, INT64_MAX, path, &ret->step, err);
    if (!rc)
        rc = json_get_int(j, "stage", true, 0, 0, RUNCONFIG_STAGES, path, &ret->stage, err);
    if (!rc)
        rc = json_get_int(j, "updates", true, 0, 0, INT64_MAX, path, &ret->updates, err);
    if (!rc)
        rc = json_get_bool(j, "reset_pending", true, false, path, &ret->reset_pending, err);
    if (!rc)
        rc = json_get_string(j, "numerics_id", true, NULL, path, &numerics, err);
    if (!rc)
        rc = json_get_string(j, "model_hash", true, NULL, path, &model, err);
    if (!rc)
        rc = json_get_string(j, "optimizer_hash", true, NULL, path, &optimizer, err);
    if (rc)
        return rc;
    snprintf(ret->numerics_id, sizeof ret->numerics_id, "%s", numerics);
    snprintf(ret->model_hash, sizeof ret->model_hash, "%s", model);
    snprintf(ret->optimizer_hash, sizeof ret->optimizer_hash, "%s", optimizer);
    return STATUS_OK;
}

static enum status state_read(const char *dir, const char *expect_hash, struct state *ret, struct error *err)
{
    char path[RUNCONFIG_PATH], hash[HASH_HEX], *text = NULL;
    size_t n = 0;
    json_t *j = NULL;
    enum status rc = file_join(path, sizeof path, dir, "state.json", err);
    if (!rc)
        rc = file_read(path, 1 << 20, &text, &n, err);
    if (rc)
        return rc;
    hash_sha256_hex(text, n, hash);
    if (expect_hash && *expect_hash && strcmp(expect_hash, hash) != 0)
        rc = error_set(err, STATUS_CORRUPT, "checkpoint %s has hash %s, the ledger recorded %s", dir, hash,
                       expect_hash);
    if (!rc)
        rc = json_parse(text, n, path, &j, err);
    if (!rc)
        rc = state_parse(j, path, ret, err);
    json_decref(j);
    free(text);
    return rc;
}

// ---- the folder -------------------------------------------------------------------------------------------------------------

static void split_path(const char *dir, char parent[RUNCONFIG_PATH], const char **ret_name)
{
    const char *slash = strrchr(dir, '/');
    snprintf(parent, RUNCONFIG_PATH, "%.*s", slash ? (int)(slash - dir) : 1, slash ? dir : ".");
    *ret_name = slash ? slash + 1 : dir;
}

// tmp → dir; an existing dir is swapped out in one step, then removed.
static enum status put_in_place(const char *tmp, const char *dir, const char *parent, struct error *err)
{
    if (file_exists(dir)) {
        if (renameat2(AT_FDCWD, tmp, AT_FDCWD, dir, RENAME_EXCHANGE) != 0)
            return error_errno(err, errno, "exchanging %s and %s", tmp, dir);
        enum status rc = sync_folder(parent, err);
        return rc ? rc : file_remove_tree(tmp, err);
    }
    if (rename(tmp, dir) != 0)
        return error_errno(err, errno, "renaming %s to %s", tmp, dir);
    return sync_folder(parent, err);
}

enum status checkpoint_write(const struct trainer *t, const char *dir, const char *run,
                             char ret_hash[HASH_HEX], struct error *err)
{
    char parent[RUNCONFIG_PATH], tmp[RUNCONFIG_PATH], folder_hash[HASH_HEX], model_hash[HASH_HEX],
        optimizer_hash[HASH_HEX], hash[HASH_HEX];
    const char *name;
    split_path(dir, parent, &name);
    if (snprintf(tmp, sizeof tmp, "%.900s/" TMP_PREFIX "%.80s", parent, name) >= (int)sizeof tmp)
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…", dir);
    enum status rc = file_mkdirs(parent, 0700, err);
    if (!rc)
        rc = file_remove_tree(tmp, err);
    if (rc)
        return rc;
    rc = model_folder_write(tmp, &t->model, &t->layout, t->master, DT_F32,
                            *t->tokenizer_dir ? t->tokenizer_dir : NULL, folder_hash, err);
    if (!rc)
        rc = hash_file(tmp, "model.safetensors", model_hash, err);
    if (!rc)
        rc = optimizer_write(t, tmp, optimizer_hash, err);
    if (!rc)
        rc = state_write(t, tmp, run, model_hash, optimizer_hash, hash, err);
    if (!rc)
        rc = sync_folder(tmp, err);
    if (!rc)
        rc = put_in_place(tmp, dir, parent, err);
    if (rc) {
        struct error ignored;
        enum status cleanup = file_remove_tree(tmp, &ignored);
        (void)cleanup; // checkpoint_clean tries again at the next start
        return error_prefix(err, "checkpoint %s", dir);
    }
    memcpy(ret_hash, hash, HASH_HEX);
    return STATUS_OK;
}

static enum status check_file(const char *dir, const char *name, const char *expect, struct error *err)
{
    char hash[HASH_HEX];
    enum status rc = hash_file(dir, name, hash, err);
    if (!rc && strcmp(hash, expect) != 0)
        rc = error_set(err, STATUS_CORRUPT, "%s/%s is damaged: its hash is %s, state.json says %s", dir, name,
                       hash, expect);
    return rc;
}

enum status checkpoint_read(struct trainer *t, const char *dir, const char *expect_hash, struct error *err)
{
    struct state s = {0};
    struct file_map map = {0};
    const float *moments = NULL;
    float *master = NULL;
    size_t bytes = (size_t)t->layout.total * sizeof(float);
    enum status rc = state_read(dir, expect_hash, &s, err);
    bool strict = t->config->check.numerics == RUN_NUMERICS_STRICT;
    if (!rc && strict && strcmp(s.numerics_id, t->device->numerics_id) != 0)
        rc = error_set(
            err, STATUS_REFUSED,
            "checkpoint %s was computed by \"%s\", this trainer computes by \"%s\": resuming would not "
            "reproduce the recorded steps (set trainer.isa, or use the build that wrote it)",
            dir, s.numerics_id, t->device->numerics_id);
    if (!rc)
        rc = check_file(dir, "model.safetensors", s.model_hash, err);
    if (!rc)
        rc = check_file(dir, "optimizer.safetensors", s.optimizer_hash, err);
    if (!rc)
        rc = optimizer_map(t, dir, &map, &moments, err);
    if (!rc)
        rc = model_folder_read(dir, &t->model, &t->layout, &master, err);
    if (!rc) {
        mem_free(t->master);
        t->master = master;
        memcpy(t->optimizer.m, moments, bytes);
        memcpy(t->optimizer.v, (const char *)moments + bytes, bytes);
        t->optimizer.updates = s.updates;
        t->step = s.step;
        t->stage = (int32_t)s.stage;
        t->reset_pending = s.reset_pending;
        trainer_sync_weights(t);
    }
    file_map_close(&map);
    return rc;
}

enum status checkpoint_verify_model(const char *dir, struct error *err)
{
    char path[RUNCONFIG_PATH];
    struct state s = {0};
    enum status rc = file_join(path, sizeof path, dir, "state.json", err);
    if (rc || !file_exists(path))
        return rc;
    rc = state_read(dir, NULL, &s, err);
    return rc ? rc : check_file(dir, "model.safetensors", s.model_hash, err);
}

// ---- pruning ----------------------------------------------------------------------------------------------------------------

enum status checkpoint_remove(const char *run_dir, const char *path, struct error *err)
{
    char folder[RUNCONFIG_PATH], want[RUNCONFIG_PATH], parent[RUNCONFIG_PATH], real[4096], mine[4096];
    const char *name;
    char digits[32];
    split_path(path, parent, &name);
    snprintf(digits, sizeof digits, "%s", strncmp(name, "step-", 5) == 0 ? name + 5 : "");
    if (!*digits || strspn(digits, "0123456789") != strlen(name + 5))
        return error_set(err, STATUS_REFUSED, "%s is not a checkpoint of this run: not removed", path);
    enum status rc = file_join(folder, sizeof folder, run_dir, "checkpoints", err);
    if (!rc)
        rc = file_join(want, sizeof want, folder, name, err);
    if (rc)
        return rc;
    if (!file_exists(path))
        return STATUS_OK;
    if (!realpath(parent, real) || !realpath(folder, mine) || strcmp(real, mine) != 0)
        return error_set(err, STATUS_REFUSED, "%s is not a checkpoint of this run: not removed", path);
    // the name goes first, in one step: a half-removed tree is never found under a checkpoint's name
    char tmp[RUNCONFIG_PATH];
    if (snprintf(tmp, sizeof tmp, "%.900s/" TMP_PREFIX "old-%.80s", folder, name) >= (int)sizeof tmp)
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…", path);
    rc = file_remove_tree(tmp, err);
    if (!rc && rename(want, tmp) != 0)
        rc = error_errno(err, errno, "renaming %s", want);
    return rc ? rc : file_remove_tree(tmp, err);
}

enum status checkpoint_clean(const char *run_dir, struct error *err)
{
    char folder[RUNCONFIG_PATH], path[RUNCONFIG_PATH];
    enum status rc = file_join(folder, sizeof folder, run_dir, "checkpoints", err);
    if (rc)
        return rc;
    DIR *d = opendir(folder);
    if (!d)
        return errno == ENOENT ? STATUS_OK : error_errno(err, errno, "reading %s", folder);
    for (struct dirent *e; !rc && (e = readdir(d));) {
        if (strncmp(e->d_name, TMP_PREFIX, strlen(TMP_PREFIX)) != 0)
            continue;
        rc = file_join(path, sizeof path, folder, e->d_name, err);
        if (!rc)
            rc = file_remove_tree(path, err);
    }
    closedir(d);
    return rc;
}
