// Weights in pieces; see chunks.h. Runs on the loop's thread: a piece is read from the page cache, where the trainer has just
// put it.
#include "orchestrator/chunks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"

static struct chunk_file *find(struct chunks *c, int64_t version)
{
    for (int i = 0; i < CHUNKS_FILES; i++)
        if (c->files[i].open && c->files[i].version == version)
            return &c->files[i];
    return NULL;
}

static void close_file(struct chunk_file *f)
{
    if (f->open)
        close(f->fd);
    f->open = false;
}

void chunks_offer(struct chunks *c, int64_t version, const char *path, int64_t now_ms)
{
    if (find(c, version))
        return;
    struct stat st;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        log_event(LOG_WARN, "weights_unreadable", "version=%lld path=%s cause=\"%s\"", (long long)version,
                  path, fd < 0 ? strerror(errno) : "no regular file");
        if (fd >= 0)
            close(fd);
        return;
    }
    struct error err;
    if (file_share(fd, path, &err)) { // until it is closed nobody writes into it
        log_event(LOG_WARN, "weights_unreadable", "version=%lld path=%s cause=\"%s\"", (long long)version,
                  path, err.text);
        close(fd);
        return;
    }
    struct chunk_file *to = &c->files[0];
    for (int i = 1; i < CHUNKS_FILES && to->open; i++)
        if (!c->files[i].open || c->files[i].used_ms < to->used_ms)
            to = &c->files[i];
    close_file(to);
    *to = (struct chunk_file){
        .open = true, .fd = fd, .version = version, .total = st.st_size, .used_ms = now_ms};
}

void chunks_answer(struct chunks *c, const struct msg_chunk_request *q, int64_t now_ms,
                   struct msg_chunk_data *ret)
{
    struct chunk_file *f = find(c, q->version);
    *ret = (struct msg_chunk_data){.version = q->version};
    if (!f)
        return;
    f->used_ms = now_ms;
    ret->total = f->total;
    ret->offset = q->offset < f->total ? q->offset : f->total;
    int64_t want = f->total - ret->offset < q->bytes ? f->total - ret->offset : q->bytes;
    if (want > (int64_t)MSG_CHUNK)
        want = MSG_CHUNK;
    if (!c->buffer)
        c->buffer = mem_must(MSG_CHUNK, 1);
    ret->data = c->buffer;
    while (ret->n < want) {
        ssize_t got = pread(f->fd, c->buffer + ret->n, (size_t)(want - ret->n), ret->offset + ret->n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) { // cut short under our hands: what there is must not pass for the whole
            log_event(LOG_WARN, "weights_unreadable", "version=%lld offset=%lld cause=\"%s\"",
                      (long long)q->version, (long long)ret->offset, got < 0 ? strerror(errno) : "truncated");
            close_file(f);
            *ret = (struct msg_chunk_data){.version = q->version};
            return;
        }
        ret->n += got;
    }
}

void chunks_tick(struct chunks *c, int64_t now_ms)
{
    for (int i = 0; i < CHUNKS_FILES; i++)
        if (c->files[i].open && now_ms - c->files[i].used_ms > CHUNKS_IDLE_MS)
            close_file(&c->files[i]);
}

void chunks_close(struct chunks *c)
{
    for (int i = 0; i < CHUNKS_FILES; i++)
        close_file(&c->files[i]);
    free(c->buffer);
    c->buffer = NULL;
}
