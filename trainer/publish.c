// publish: see publish.h. Compute thread. Stateless but for its paths: what is published is what lies in the two folders, so a
// restarted trainer tidies up after the one before it.
#include "trainer/publish.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"

#define SHM_SPARE ((int64_t)16 << 20) // left free for others

struct file {
    char path[RUNCONFIG_PATH];
    int64_t version;
};

struct listing {
    struct file *files;
    int n;
};

// "<digits><suffix>" → version, else -1
static int64_t parse_version(const char *s, const char *suffix)
{
    size_t n = strspn(s, "0123456789");
    return n > 0 && n < 19 && strcmp(s + n, suffix) == 0 ? strtoll(s, NULL, 10) : -1;
}

// Adds folder's files "<prefix><version><suffix>"; what starts like one but ends otherwise is a temporary and is removed when
// `clean` is set.
static void list_folder(struct listing *l, const char *folder, const char *prefix, const char *suffix,
                        bool clean)
{
    DIR *d = *folder ? opendir(folder) : NULL;
    if (!d)
        return;
    for (struct dirent *e; (e = readdir(d));) {
        struct file f;
        size_t n = strlen(prefix);
        if (strncmp(e->d_name, prefix, n) != 0 || e->d_name[n] < '0' || e->d_name[n] > '9' ||
            snprintf(f.path, sizeof f.path, "%s/%s", folder, e->d_name) >= (int)sizeof f.path)
            continue;
        f.version = parse_version(e->d_name + n, suffix);
        if (f.version < 0) {
            if (clean)
                unlink(f.path);
            continue;
        }
        l->files = mem_grow(l->files, (size_t)l->n + 1, sizeof *l->files);
        l->files[l->n++] = f;
    }
    closedir(d);
}

static void shm_prefix(const struct publish *p, char *ret, size_t n)
{
    snprintf(ret, n, "ooze-%s-", p->run);
}

static void list_all(const struct publish *p, struct listing *l, bool clean)
{
    char prefix[RUNCONFIG_NAME + 16], folder[RUNCONFIG_PATH + 16];
    shm_prefix(p, prefix, sizeof prefix);
    snprintf(folder, sizeof folder, "%s/weights", p->run_dir);
    list_folder(l, folder, "", ".safetensors", clean);
    list_folder(l, p->shm, prefix, "", clean);
}

// The pages for the next version.
static void spare_path(const struct publish *p, char *ret, size_t n)
{
    snprintf(ret, n, "%s/ooze-%s-spare", p->shm, p->run);
}

static void spare_remove(const struct publish *p)
{
    char path[RUNCONFIG_PATH + RUNCONFIG_NAME + 16];
    spare_path(p, path, sizeof path);
    if (*p->shm)
        unlink(path);
}

enum status publish_init(struct publish *p, const char *run_dir, const char *run, const char *shm,
                         struct error *err)
{
    struct listing l = {0};
    char weights[RUNCONFIG_PATH];
    *p = (struct publish){0};
    // the id becomes part of a file name in a folder that all users share
    if (!*run || strlen(run) >= sizeof p->run || strspn(run, "0123456789abcdef") != strlen(run))
        return error_set(err, STATUS_INVALID, "run id \"%.80s\" is not hexadecimal", run);
    snprintf(p->run_dir, sizeof p->run_dir, "%s", run_dir);
    snprintf(p->run, sizeof p->run, "%s", run);
    snprintf(p->shm, sizeof p->shm, "%s", shm);
    enum status rc = file_join(weights, sizeof weights, run_dir, "weights", err);
    if (!rc)
        rc = file_mkdirs(weights, 0700, err);
    if (rc)
        return rc;
    list_all(p, &l, true);
    free(l.files);
    spare_remove(p);
    return STATUS_OK;
}

// Upper bound of a weights file: every element, scales and header.
static int64_t file_bytes(const struct trainer *t)
{
    int64_t element = (int64_t)dtype_bytes(rollout_dtype(t->config));
    int64_t bytes = 0;
    for (int32_t i = 0; i < t->layout.n; i++) {
        const struct param *p = &t->layout.params[i];
        bytes += p->rows * p->cols * (p->fp8 || element > 1 ? element : 2) + 512;
        bytes += ((p->rows + 127) / 128) * ((p->cols + 127) / 128) * 4;
    }
    return bytes;
}

static bool shm_has_room(const struct publish *p, int64_t bytes)
{
    struct statvfs s;
    struct stat spare;
    char path[RUNCONFIG_PATH + RUNCONFIG_NAME + 16];
    spare_path(p, path, sizeof path);
    if (*p->shm && stat(path, &spare) == 0)
        bytes -= spare.st_size;
    if (!*p->shm || statvfs(p->shm, &s) != 0)
        return false;
    return (int64_t)(s.f_bavail * s.f_frsize) >= bytes + SHM_SPARE;
}

enum status publish_update(struct publish *p, const struct trainer *t, int64_t version,
                           struct weights_before *before, bool write, char ret_path[RUNCONFIG_PATH],
                           char ret_hash[HASH_HEX], int64_t *ret_bytes, struct error *err)
{
    char prefix[RUNCONFIG_NAME + 16], path[2 * RUNCONFIG_PATH];
    enum dtype dtype = rollout_dtype(t->config);
    struct weights_output out = {.kept = &p->kept, .before = before};
    if (!write) {
        enum status rc = weights_file_rewrite(&out, false, t->device, &t->layout, t->master, dtype, version,
                                              ret_hash, ret_bytes, err);
        if (!rc) {
            *ret_path = 0;
            *ret_bytes = 0;
        }
        return rc;
    }
    enum status rc = STATUS_IO;
    out.path = path;
    shm_prefix(p, prefix, sizeof prefix);
    if (shm_has_room(p, file_bytes(t))) {
        struct error full; // someone else may take the room in between: then the run directory it is
        char spare[RUNCONFIG_PATH + RUNCONFIG_NAME + 16];
        spare_path(p, spare, sizeof spare);
        out.old = spare;
        snprintf(path, sizeof path, "%s/%s%lld", p->shm, prefix, (long long)version);
        rc = weights_file_rewrite(&out, false, t->device, &t->layout, t->master, dtype, version, ret_hash,
                                  ret_bytes, &full);
        if (rc && before && before->done)
            out.before = NULL; // once is enough
    }
    if (rc) {
        snprintf(path, sizeof path, "%s/weights/%lld.safetensors", p->run_dir, (long long)version);
        rc = weights_file_rewrite(&out, true, t->device, &t->layout, t->master, dtype, version, ret_hash,
                                  ret_bytes, err);
    }
    if (!rc && strlen(path) >= RUNCONFIG_PATH)
        rc = error_set(err, STATUS_LIMIT, "path too long: %.200s…", path);
    if (!rc)
        memcpy(ret_path, path, strlen(path) + 1);
    return rc;
}

enum status publish_weights(struct publish *p, const struct trainer *t, bool write,
                            char ret_path[RUNCONFIG_PATH], char ret_hash[HASH_HEX], int64_t *ret_bytes,
                            struct error *err)
{
    return publish_update(p, t, t->step, NULL, write, ret_path, ret_hash, ret_bytes, err);
}

static bool spare_make(const struct publish *p, const char *path)
{
    char spare[RUNCONFIG_PATH + RUNCONFIG_NAME + 16];
    size_t n = strlen(p->shm);
    spare_path(p, spare, sizeof spare);
    return n && strncmp(path, p->shm, n) == 0 && path[n] == '/' && rename(path, spare) == 0;
}

static int newest_first(const void *a, const void *b)
{
    const struct file *x = a, *y = b;
    return (x->version < y->version) - (x->version > y->version);
}

void publish_prune(const struct publish *p, int64_t keep)
{
    struct listing l = {0};
    int64_t versions = 0, last = -1;
    list_all(p, &l, false);
    if (l.n > 1)
        qsort(l.files, (size_t)l.n, sizeof *l.files, newest_first);
    for (int i = 0; i < l.n; i++) {
        versions += l.files[i].version != last; // one version may lie in both folders
        last = l.files[i].version;
        if (versions > keep && !(versions == keep + 1 && spare_make(p, l.files[i].path)))
            unlink(l.files[i].path);
    }
    free(l.files);
}

void publish_leave(struct publish *p)
{
    struct listing l = {0};
    char prefix[RUNCONFIG_NAME + 16];
    shm_prefix(p, prefix, sizeof prefix);
    list_folder(&l, p->shm, prefix, "", true);
    for (int i = 0; i < l.n; i++)
        unlink(l.files[i].path);
    free(l.files);
    spare_remove(p);
    publish_done(p);
}

void publish_done(struct publish *p)
{
    kept_done(&p->kept);
}
