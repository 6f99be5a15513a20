// Kept maps: see kept.h. The owner's thread; the pages of a fresh file are touched by its pool.
//
// Invariants
//   1. An entry's fd keeps its inode alive, so that (dev, ino) names no other file while the entry exists.
//   2. Entries whose file has lost its last name are dropped at the next call, so that nobody's pages outlive their use for long.
//   3. The room is there before the first byte is: a full disk is found before the work, and no reader maps a hole.
#include "model/kept.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define MAP_UNIT  ((size_t)64 << 10) // a header that grows by a digit finds its map again

static void map_drop(struct kept_map *m)
{
    assert(!m->held);
    munmap(m->data, m->mapped);
    close(m->fd);
    *m = (struct kept_map){0};
}

void kept_done(struct kept *k)
{
    for (int i = 0; i < KEPT_MAPS; i++)
        if (k->maps[i].data)
            map_drop(&k->maps[i]);
}

static void drop_nameless(struct kept *k)
{
    struct stat st;
    for (int i = 0; i < KEPT_MAPS; i++) {
        struct kept_map *m = &k->maps[i];
        if (m->data && !m->held && (fstat(m->fd, &st) != 0 || st.st_nlink == 0))
            map_drop(m);
    }
}

// The map of this file if it is kept and large enough, else NULL.
static struct kept_map *map_find(struct kept *k, const struct stat *st, size_t bytes)
{
    for (int i = 0; i < KEPT_MAPS; i++) {
        struct kept_map *m = &k->maps[i];
        if (!m->data || m->dev != st->st_dev || m->ino != st->st_ino)
            continue;
        m->used = ++k->clock;
        if (m->mapped >= bytes)
            return m;
        map_drop(m);
    }
    return NULL;
}

static struct kept_map *map_room(struct kept *k)
{
    struct kept_map *oldest = NULL;
    for (int i = 0; i < KEPT_MAPS; i++) {
        struct kept_map *m = &k->maps[i];
        if (!m->data)
            return m;
        if (!m->held && (!oldest || m->used < oldest->used))
            oldest = m;
    }
    assert(oldest); // nobody holds that many
    map_drop(oldest);
    return oldest;
}

// Takes fd over on success.
static struct kept_map *map_add(struct kept *k, int fd, const struct stat *st, size_t bytes, int prot)
{
    size_t mapped = (bytes + MAP_UNIT - 1) / MAP_UNIT * MAP_UNIT;
    void *p = mmap(NULL, mapped ? mapped : MAP_UNIT, prot, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return NULL;
    struct kept_map *m = map_room(k);
    *m = (struct kept_map){.dev = st->st_dev,
                           .ino = st->st_ino,
                           .fd = fd,
                           .data = p,
                           .mapped = mapped ? mapped : MAP_UNIT,
                           .used = ++k->clock};
    return m;
}

enum status kept_read(struct kept *k, const char *path, struct kept_map **ret, size_t *ret_bytes,
                      struct error *err)
{
    struct stat st;
    drop_nameless(k);
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, errno, "opening %s", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return error_set(err, STATUS_IO, "%s is not a regular file", path);
    }
    struct kept_map *m = map_find(k, &st, (size_t)st.st_size);
    assert(!m || !m->held);
    if (m) {
        close(fd);
    } else {
        m = map_add(k, fd, &st, (size_t)st.st_size, PROT_READ);
        if (!m) {
            enum status rc = error_errno(err, errno, "mapping %s", path);
            close(fd);
            return rc;
        }
    }
    enum status rc = file_share(m->fd, path, err);
    if (rc) {
        map_drop(m);
        return rc;
    }
    m->held = true;
    *ret = m;
    *ret_bytes = (size_t)st.st_size; // the lock keeps it so
    return STATUS_OK;
}

void kept_release(struct kept_map *m)
{
    if (!m)
        return;
    assert(m->held);
    (void)flock(m->fd, LOCK_UN);
    m->held = false;
}

// ---- writing ----------------------------------------------------------------------------------------------------------------

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

// Pages for all of the file: huge ones where the system lends them, touched by all threads. Returns 0 or errno.
static int reserve(struct kept_map *m, size_t bytes, struct pool *pool)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), from = m->there / page * page;
    if (bytes <= m->there)
        return 0;
    struct reserve r = {.data = m->data + from, .bytes = bytes - from};
    (void)madvise(m->data, m->mapped, MADV_HUGEPAGE); // a wish
    pool_run(pool, (int)((r.bytes + HUGE_PAGE - 1) / HUGE_PAGE), reserve_piece, &r);
    int e = atomic_load(&r.failed);
    if (e) // this kernel cannot, or there is no room: the slow way says which
        e = posix_fallocate(m->fd, 0, (off_t)bytes);
    if (!e)
        m->there = bytes;
    return e;
}

// The file `old` under the name tmp, locked, or NULL and neither is there.
static struct kept_map *take(struct kept *k, const char *tmp, const char *old, size_t bytes)
{
    struct stat st;
    if (rename(old, tmp) != 0)
        return NULL;
    int fd = open(tmp, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        struct kept_map *m = map_find(k, &st, bytes);
        if (m)
            close(fd);
        else
            m = map_add(k, fd, &st, bytes, PROT_READ | PROT_WRITE);
        fd = m ? -1 : fd;
        if (m && flock(m->fd, LOCK_EX | LOCK_NB) == 0) {
            m->held = true;
            return m;
        }
        if (m)
            map_drop(m);
    }
    if (fd >= 0)
        close(fd);
    unlink(tmp);
    return NULL;
}

static enum status fresh(struct kept *k, const char *tmp, unsigned mode, size_t bytes, struct kept_map **ret,
                         struct error *err)
{
    struct stat st;
    int fd = open(tmp, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0)
        return error_errno(err, errno, "creating %s", tmp);
    *ret = fstat(fd, &st) == 0 ? map_add(k, fd, &st, bytes, PROT_READ | PROT_WRITE) : NULL;
    if (!*ret) {
        enum status rc = error_errno(err, errno, "mapping %s", tmp);
        close(fd);
        unlink(tmp);
        return rc;
    }
    (*ret)->held = true; // nobody knows its name
    return STATUS_OK;
}

enum status kept_write(struct kept *k, const char *tmp, const char *old, unsigned mode, size_t bytes,
                       struct pool *pool, struct kept_map **ret, struct error *err)
{
    drop_nameless(k);
    struct kept_map *m = old ? take(k, tmp, old, bytes) : NULL;
    enum status rc = m ? STATUS_OK : fresh(k, tmp, mode, bytes, &m, err);
    if (rc)
        return rc;
    m->there = m->there < bytes ? m->there : bytes; // what is cut off loses its pages
    int e = ftruncate(m->fd, (off_t)bytes) != 0 ? errno : reserve(m, bytes, pool);
    if (e) {
        kept_release(m);
        map_drop(m);
        unlink(tmp);
        return error_errno(err, e, "reserving %zu bytes for %s", bytes, tmp);
    }
    *ret = m;
    return STATUS_OK;
}
