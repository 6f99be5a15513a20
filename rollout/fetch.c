// Fetching a weights file in chunks: see fetch.h. Runs on the I/O thread.
//
// Invariants
//   1. [0, received) is in the file; requests are out for [received, requested), at most WINDOW of them.
//   2. Chunks come in order (one ZeroMQ connection); one that is not the next is ignored. RETRY_MS without progress: what is
//      outstanding is asked for again, RETRIES times, ever more patiently: over a slow line what was asked for is on its way.
//   3. A fetch under way is finished before a newer version's starts, or versions that come faster than they can be fetched
//      would leave this engine without any. Of those that wait only the newest counts.
#include "rollout/fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/mem.h"

#define PIECE    ((int64_t)1 << 20) // of one request, at most MSG_CHUNK
#define WINDOW   8
#define RETRY_MS 3000
#define RETRIES  6 // 3 + 6 + 12 + 24 + 24 + 24 s

struct fetch {
    struct fetch_config config;
    char dir[2048], path[4096], hash[HASH_HEX];
    struct loop_timer *retry;
    int fd; // -1 = nothing under way
    struct msg_version version;
    int64_t total, received, requested;
    int retries;
    struct msg_version waiting; // newer than `version`; version -1 = none
    char waiting_hash[HASH_HEX];
};

static void stop(struct fetch *f, bool keep_file)
{
    if (f->fd < 0)
        return;
    close(f->fd);
    f->fd = -1;
    loop_timer_stop(f->retry);
    if (!keep_file)
        unlink(f->path);
}

static void start(struct fetch *f, const struct msg_version *v);

// The fetch is over; the one that waited begins.
static void finish(struct fetch *f, const char *error)
{
    stop(f, !error);
    f->config.done(f->config.ctx, &f->version, error ? NULL : f->path, error);
    if (f->fd < 0 && f->waiting.version >= 0) {
        const struct msg_version v = f->waiting;
        f->waiting.version = -1;
        start(f, &v);
    }
}

// The total is unknown until the first chunk when VERSION did not tell: then one request goes ahead alone.
static void request_more(struct fetch *f)
{
    while (f->fd >= 0 && f->requested - f->received < WINDOW * PIECE) {
        if (f->total > 0 ? f->requested >= f->total : f->requested > 0)
            return;
        int64_t n = f->total > 0 && f->total - f->requested < PIECE ? f->total - f->requested : PIECE;
        struct msg m = {.type = MSG_CHUNK_REQUEST};
        m.chunk_request =
            (struct msg_chunk_request){.version = f->version.version, .offset = f->requested, .bytes = n};
        f->requested += n;
        f->config.send(f->config.ctx, &m);
    }
}

static void on_retry(void *ctx)
{
    struct fetch *f = ctx;
    if (f->fd < 0)
        return;
    if (++f->retries > RETRIES) {
        finish(f, "no weights came for more than a minute");
        return;
    }
    loop_timer_set(f->retry, RETRY_MS << (f->retries < 3 ? f->retries : 3), 0);
    f->requested = f->received;
    request_more(f);
}

struct fetch *fetch_open(const struct fetch_config *c)
{
    struct fetch *f = mem_must(1, sizeof *f);
    f->config = *c;
    f->fd = -1;
    f->waiting.version = -1;
    snprintf(f->dir, sizeof f->dir, "%s", c->dir && *c->dir ? c->dir : "/tmp");
    f->retry = loop_timer_open(c->loop, on_retry, f);
    return f;
}

void fetch_close(struct fetch *f)
{
    if (!f)
        return;
    stop(f, false);
    loop_timer_close(f->retry);
    free(f);
}

static void start(struct fetch *f, const struct msg_version *v)
{
    f->version = *v;
    f->version.path = "";
    snprintf(f->hash, sizeof f->hash, "%s", v->hash);
    f->version.hash = f->hash;
    f->total = v->bytes;
    f->received = f->requested = 0;
    f->retries = 0;
    snprintf(f->path, sizeof f->path, "%s/ooze-fetch-%ld-%lld.safetensors", f->dir, (long)getpid(),
             (long long)v->version);
    unlink(f->path); // of a process of the same number that was killed
    f->fd = open(f->path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (f->fd < 0) {
        char why[4200];
        snprintf(why, sizeof why, "creating %s: %s", f->path, strerror(errno));
        f->config.done(f->config.ctx, &f->version, NULL, why);
        return;
    }
    loop_timer_set(f->retry, RETRY_MS, 0);
    request_more(f);
}

void fetch_start(struct fetch *f, const struct msg_version *v)
{
    if (f->fd < 0) {
        start(f, v);
    } else if (v->version > f->version.version && v->version > f->waiting.version) {
        f->waiting = *v;
        f->waiting.path = "";
        snprintf(f->waiting_hash, sizeof f->waiting_hash, "%s", v->hash);
        f->waiting.hash = f->waiting_hash;
    }
}

static bool write_all(int fd, const uint8_t *p, int64_t n, int64_t at)
{
    while (n > 0) {
        ssize_t did = pwrite(fd, p, (size_t)n, at);
        if (did < 0 && errno == EINTR)
            continue;
        if (did <= 0)
            return false;
        p += did;
        n -= did;
        at += did;
    }
    return true;
}

void fetch_chunk(struct fetch *f, const struct msg_chunk_data *d)
{
    if (f->fd < 0 || d->version != f->version.version)
        return;
    if (d->total == 0) {
        finish(f, "the orchestrator does not have these weights any more");
        return;
    }
    if (d->offset != f->received || d->n <= 0)
        return;
    if (f->total <= 0)
        f->total = f->version.bytes = d->total;
    if (d->total != f->total || d->n > f->total - f->received) {
        finish(f, "the chunks do not agree about the size of the weights");
        return;
    }
    if (!write_all(f->fd, d->data, d->n, d->offset)) {
        char why[4200];
        snprintf(why, sizeof why, "writing %s: %s", f->path, strerror(errno));
        finish(f, why);
        return;
    }
    int64_t asked = f->total - f->received < PIECE ? f->total - f->received : PIECE;
    f->received += d->n;
    if (f->requested < f->received || d->n < asked)
        f->requested = f->received; // a short chunk: what it left out was not asked for yet
    f->retries = 0;
    loop_timer_set(f->retry, RETRY_MS, 0);
    if (f->received < f->total) {
        request_more(f);
        return;
    }
    finish(f, NULL);
}
