// A random permutation of [0, n) as a function: no memory, any position at once, so that the order of prompts and of SFT rows is
// known from (seed, stream, epoch) and a counter alone. Pure.
#ifndef RL_SHUFFLE_H
#define RL_SHUFFLE_H

#include <stdint.h>

// The image of i under permutation (seed, stream) of [0, n); 0 <= i < n. A 6-round Feistel network over the next even
// number of bits whose rounds are Philox, walked until it falls below n (Black & Rogaway 2002, "cycle-walking"): expected
// fewer than 4 rounds of walking.
uint64_t shuffle_at(uint64_t seed, uint64_t stream, uint64_t n, uint64_t i);

#endif
