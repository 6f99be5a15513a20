// Message ↔ frames. Pure functions, any thread.
#ifndef PROTO_CODEC_H
#define PROTO_CODEC_H

#include "proto/msg.h"

#define CODEC_FRAMES 16

struct codec_frame {
    const void *data;
    size_t n;
};

// Encodes m into frames[0..*ret_n): frame 0 (the envelope) is allocated in `arena`, array frames point at the
// message's own arrays. STATUS_INVALID when m breaks a limit of msg.h (a bug of the sender, caught before it
// leaves).
enum status codec_encode(const struct msg *m, struct arena *arena, struct codec_frame frames[CODEC_FRAMES],
                         int *ret_n, struct error *err) OOZE_MUST_USE;

// Checks and decodes. Never crashes on any input; STATUS_PROTOCOL / CORRUPT / LIMIT with the reason. Strings
// and small tables are allocated in `arena`; big arrays point into the frames when those are aligned, else
// they are copied into `arena`.
enum status codec_decode(const struct codec_frame *frames, int n, struct arena *arena, struct msg *ret,
                         struct error *err) OOZE_MUST_USE;

#endif
