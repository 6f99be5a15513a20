// proto/codec.h fed with frames from nowhere. Input: a frame's length (u32, little-endian), its bytes, and so on.
// What decodes must encode, and decode again to the same frames. The corpus holds one message of each type, written by
// OOZE_WRITE_CORPUS=tests/fuzz/corpus/codec unit_proto_codec.
#include <stdlib.h>
#include <string.h>

#include "proto/codec.h"
#include "tests/fuzz/fuzz.h"

static int split_frames(const uint8_t *data, size_t n, struct codec_frame frames[CODEC_FRAMES])
{
    int k = 0;
    while (n >= 4 && k < CODEC_FRAMES) {
        uint32_t length;
        memcpy(&length, data, 4);
        data += 4;
        n -= 4;
        if (length > n)
            length = (uint32_t)n;
        frames[k++] = (struct codec_frame){data, length};
        data += length;
        n -= length;
    }
    return k;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct codec_frame frames[CODEC_FRAMES], first[CODEC_FRAMES], again[CODEC_FRAMES];
    struct arena arena;
    struct msg m, back;
    struct error err;
    int n_first = 0, n_again = 0;
    arena_init(&arena, (size_t)64 << 20);
    int k = split_frames(data, n, frames);
    if (codec_decode(frames, k, &arena, &m, &err) == STATUS_OK) {
        if (codec_encode(&m, &arena, first, &n_first, &err) != STATUS_OK ||
            codec_decode(first, n_first, &arena, &back, &err) != STATUS_OK ||
            codec_encode(&back, &arena, again, &n_again, &err) != STATUS_OK || n_first != n_again)
            abort();
        for (int i = 0; i < n_first; i++)
            if (first[i].n != again[i].n || memcmp(first[i].data, again[i].data, first[i].n) != 0)
                abort();
    }
    arena_done(&arena);
    return 0;
}
