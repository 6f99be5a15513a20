// Permutations as functions: see shuffle.h. Pure, any thread.
#include "rl/shuffle.h"

#include <assert.h>

#include "base/hash.h"
#include "base/rng.h"

#define ROUNDS 6

static uint64_t feistel(const uint32_t key[2], int half, uint64_t x)
{
    uint64_t mask = ((uint64_t)1 << half) - 1;
    uint64_t left = x >> half, right = x & mask;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t ctr[4] = {(uint32_t)right, (uint32_t)(right >> 32), round, 0x73687566}, out[4];
        rng_philox(key, ctr, out);
        uint64_t next = left ^ (((uint64_t)out[1] << 32 | out[0]) & mask);
        left = right;
        right = next;
    }
    return left << half | right;
}

uint64_t shuffle_at(uint64_t seed, uint64_t stream, uint64_t n, uint64_t i)
{
    assert(i < n && n <= (uint64_t)1 << 62);
    int half = 1;
    while (((uint64_t)1 << 2 * half) < n)
        half++;
    uint64_t h = hash64_seed(&stream, sizeof stream, seed);
    uint32_t key[2] = {(uint32_t)h, (uint32_t)(h >> 32)};
    do
        i = feistel(key, half, i);
    while (i >= n);
    return i;
}
