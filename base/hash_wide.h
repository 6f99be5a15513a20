// Inside base: the functions of XXH3-128 that hash.c takes for chunks. The library as packaged is compiled for the baseline of x86-64;
// with AVX2 the same digests take a quarter of the time, and a weights file is hashed twice while somebody waits for it.
#ifndef BASE_HASH_WIDE_H
#define BASE_HASH_WIDE_H

#include "base/hash.h"

struct hash_wide {
    void (*chunk)(const void *p, size_t n, uint8_t ret[HASH_DIGEST]);
    // the layout of the state is the header's own: what began here goes on here
    void (*begin)(struct weights_hash_part *h);
    void (*add)(struct weights_hash_part *h, const void *p, size_t n);
    void (*end)(const struct weights_hash_part *h, uint8_t ret[HASH_DIGEST]);
};
extern const struct hash_wide hash_base;
extern const struct hash_wide hash_avx2; // x86-64 only

#endif
