// Files: see file.h. Any thread; no state.
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

enum status file_read(const char *path, size_t max_bytes, char **ret_data, size_t *ret_len, struct error *err)
{
    enum status rc = STATUS_OK;
    char *data = NULL;
    size_t len = 0, cap = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, errno, "opening %s", path);
    for (;;) {
        if (len == cap) {
            cap = cap ? cap * 2 : 16384;
            data = mem_grow(data, cap + 1, 1);
        }
        ssize_t n = read(fd, data + len, cap - len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = error_errno(err, errno, "reading %s", path);
            goto out;
        }
        if (n == 0)
            break;
        len += (size_t)n;
        if (len > max_bytes) {
            rc = error_set(err, STATUS_LIMIT, "%s is larger than the limit of %zu bytes", path, max_bytes);
            goto out;
        }
    }
    data[len] = 0;
    *ret_data = data;
    if (ret_len)
        *ret_len = len;
    data = NULL;
out:
    free(data);
    close(fd);
    return rc;
}

static void folder_of(const char *path, char *dir, size_t n)
{
    snprintf(dir, n, "%s", path);
    char *slash = strrchr(dir, '/');
    if (!slash)
        snprintf(dir, n, ".");
    else if (slash == dir)
        slash[1] = 0;
    else
        *slash = 0;
}

enum status file_atomic_open(struct file_atomic *f, const char *path, unsigned mode, struct error *err)
{
    *f = (struct file_atomic){.fd = -1};
    if (snprintf(f->path, sizeof f->path, "%s", path) >= (int)sizeof f->path ||
        snprintf(f->tmp, sizeof f->tmp, "%s.tmp.%d", path, (int)getpid()) >= (int)sizeof f->tmp)
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…", path);
    unlink(f->tmp); // left over by an earlier process with our pid
    f->fd = open(f->tmp, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode); // to be mapped, too
    if (f->fd < 0)
        return error_errno(err, errno, "creating %s", f->tmp);
    return STATUS_OK;
}

enum status file_atomic_write(struct file_atomic *f, const void *p, size_t n, struct error *err)
{
    const char *s = p;
    while (n) {
        ssize_t w = write(f->fd, s, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return error_errno(err, errno, "writing %s", f->tmp);
        s += w;
        n -= (size_t)w;
    }
    return STATUS_OK;
}

enum status file_atomic_commit(struct file_atomic *f, struct error *err)
{
    char dir[sizeof f->path];
    if (fsync(f->fd) < 0) {
        enum status rc = error_errno(err, errno, "syncing %s", f->tmp);
        file_atomic_abandon(f);
        return rc;
    }
    close(f->fd);
    f->fd = -1;
    if (rename(f->tmp, f->path) < 0) {
        enum status rc = error_errno(err, errno, "renaming %s to %s", f->tmp, f->path);
        unlink(f->tmp);
        return rc;
    }
    folder_of(f->path, dir, sizeof dir);
    int d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d < 0 || fsync(d) < 0) {
        enum status rc = error_errno(err, errno, "syncing folder %s", dir);
        if (d >= 0)
            close(d);
        return rc;
    }
    close(d);
    return STATUS_OK;
}

void file_atomic_abandon(struct file_atomic *f)
{
    if (f->fd < 0)
        return;
    close(f->fd);
    f->fd = -1;
    unlink(f->tmp);
}

enum status file_write_atomic(const char *path, const void *data, size_t n, unsigned mode, struct error *err)
{
    struct file_atomic f;
    enum status rc = file_atomic_open(&f, path, mode, err);
    if (rc)
        return rc;
    rc = file_atomic_write(&f, data, n, err);
    if (rc) {
        file_atomic_abandon(&f);
        return rc;
    }
    return file_atomic_commit(&f, err);
}

enum status file_mkdirs(const char *path, unsigned mode, struct error *err)
{
    char dir[4096];
    if (snprintf(dir, sizeof dir, "%s", path) >= (int)sizeof dir)
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…", path);
    for (char *p = dir + 1;; p++) {
        if (*p != '/' && *p != 0)
            continue;
        char c = *p;
        *p = 0;
        if (mkdir(dir, mode) < 0 && errno != EEXIST)
            return error_errno(err, errno, "creating folder %s", dir);
        if (!c)
            break;
        *p = c;
    }
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return error_set(err, STATUS_EXISTS, "%s exists and is not a folder", path);
    return STATUS_OK;
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

enum status file_remove_tree(const char *path, struct error *err)
{
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) < 0 && errno != ENOENT)
        return error_errno(err, errno, "removing %s", path);
    return STATUS_OK;
}

enum status file_join(char *ret, size_t n, const char *dir, const char *name, struct error *err)
{
    int len = snprintf(ret, n, "%s/%s", dir, name);
    if (len < 0 || (size_t)len >= n)
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…/%.100s", dir, name);
    return STATUS_OK;
}

enum status file_share(int fd, const char *path, struct error *err)
{
    struct stat held, named;
    if (flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return error_set(err, STATUS_AGAIN, "%s is being written again", path);
    if (fstat(fd, &held) != 0 || stat(path, &named) != 0)
        return error_errno(err, errno, "looking at %s", path);
    if (held.st_dev != named.st_dev || held.st_ino != named.st_ino)
        return error_set(err, STATUS_AGAIN, "%s became another file", path);
    return STATUS_OK;
}

enum status file_map_open(const char *path, bool nofollow, struct file_map *ret_map, struct error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | (nofollow ? O_NOFOLLOW : 0));
    if (fd < 0)
        return error_errno(err, errno, "opening %s", path);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return error_set(err, STATUS_IO, "%s is not a regular file", path);
    }
    enum status shared = file_share(fd, path, err);
    if (shared) {
        close(fd);
        return shared;
    }
    void *p = NULL;
    if (st.st_size > 0) {
        p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED) {
            enum status rc = error_errno(err, errno, "mapping %s", path);
            close(fd);
            return rc;
        }
    }
    close(fd); // the map holds the lock
    *ret_map = (struct file_map){p, (size_t)st.st_size};
    return STATUS_OK;
}

void file_map_close(struct file_map *m)
{
    if (!m || !m->data)
        return;
    munmap((void *)m->data, m->len);
    *m = (struct file_map){0};
}
