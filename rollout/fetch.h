// Weights from another host: CHUNK_REQUEST / CHUNK_DATA with a window of credit, into a private file, resumed where it
// stopped. The hash is verified when the file is loaded. Owner: the I/O thread.
#ifndef ROLLOUT_FETCH_H
#define ROLLOUT_FETCH_H

#include "net/loop.h"
#include "proto/msg.h"

struct fetch;

struct fetch_config {
    struct loop *loop;
    const char *dir; // where the file is put
    // Sends a request; a message that could not be sent is asked for again later.
    void (*send)(void *ctx, const struct msg *m);
    // The file is whole (error NULL; the callee removes it when done with it), or the fetch failed.
    void (*done)(void *ctx, const struct msg_version *v, const char *path, const char *error);
    void *ctx;
};

struct fetch *fetch_open(const struct fetch_config *c);
void fetch_close(struct fetch *f);
// Starts fetching v, or keeps it for when the fetch under way is over.
void fetch_start(struct fetch *f, const struct msg_version *v);
void fetch_chunk(struct fetch *f, const struct msg_chunk_data *d);

#endif
