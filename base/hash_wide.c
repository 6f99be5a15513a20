// XXH3-128 out of the library's own header: see hash_wide.h. Any thread; no state. As it stands it is the compiler's baseline; hash_avx2.c
// includes it once more.
#ifndef HASH_WIDE
#define HASH_WIDE hash_base
#endif
#define XXH_INLINE_ALL // states of the header's size are for the header's functions only
#include <assert.h>
#include <string.h>
#include <xxhash.h>

#include "base/hash_wide.h"

static_assert(sizeof(XXH3_state_t) <= sizeof(struct weights_hash_part), "room for the state");

static void canonical(XXH128_hash_t x, uint8_t ret[HASH_DIGEST])
{
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, x);
    memcpy(ret, c.digest, HASH_DIGEST);
}

static void chunk(const void *p, size_t n, uint8_t ret[HASH_DIGEST])
{
    canonical(XXH3_128bits(p, n), ret);
}

static void begin(struct weights_hash_part *h)
{
    XXH3_128bits_reset((XXH3_state_t *)(void *)h->state);
}

static void add(struct weights_hash_part *h, const void *p, size_t n)
{
    XXH3_128bits_update((XXH3_state_t *)(void *)h->state, p, n);
}

static void end(const struct weights_hash_part *h, uint8_t ret[HASH_DIGEST])
{
    canonical(XXH3_128bits_digest((const XXH3_state_t *)(const void *)h->state), ret);
}

const struct hash_wide HASH_WIDE = {chunk, begin, add, end};
