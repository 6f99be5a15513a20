// Weights files for engines of other hosts, piece by piece: CHUNK_REQUEST → CHUNK_DATA.
//
// Invariants
//   1. A file that was offered stays readable until nobody has asked for it for CHUNKS_IDLE_MS, although the trainer may have
//      removed its name: who is in the middle of it gets the rest.
//   2. At most CHUNKS_FILES files are open; the one asked for longest ago gives way.
#ifndef ORCHESTRATOR_CHUNKS_H
#define ORCHESTRATOR_CHUNKS_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"

#define CHUNKS_FILES   8
#define CHUNKS_IDLE_MS 15000

struct chunks { // all zero = empty
    struct chunk_file {
        bool open;
        int fd;
        int64_t version, total, used_ms;
    } files[CHUNKS_FILES];
    uint8_t *buffer; // [MSG_CHUNK], of the last answer
};

// Makes version fetchable from the file at path; one that is already open stays as it is. A file that cannot be opened is not
// offered: requests for it are answered as unknown.
void chunks_offer(struct chunks *c, int64_t version, const char *path, int64_t now_ms);

// The answer to q; its data live until the next call. An unknown version is answered with total 0, an offset beyond the end
// with n 0 at the end: both say that there is nothing to be had.
void chunks_answer(struct chunks *c, const struct msg_chunk_request *q, int64_t now_ms,
                   struct msg_chunk_data *ret);

// Closes what nobody has asked for lately.
void chunks_tick(struct chunks *c, int64_t now_ms);
void chunks_close(struct chunks *c);

#endif
