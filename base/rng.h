// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11, "Parallel random numbers: as easy as 1,
// 2, 3"). A draw is a pure function of (key, counter), so a resumed turn samples exactly what it would have
// sampled, on any thread, in any order. Checked against the published known-answer vectors in
// tests/unit/base/test_rng.c.
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdint.h>

// out[0..3] = Philox4x32-10(key, ctr)
void rng_philox(const uint32_t key[2], const uint32_t ctr[4], uint32_t out[4]);

// Key of the draw for one token: (run seed, trajectory, attempt, segment, index of the token in its segment).
struct rng_token_key {
    uint64_t run_seed;
    uint64_t trajectory;
    uint32_t attempt;
    uint32_t segment;
};
// Uniform in (0, 1), 2^-23 grid offset by half a step; never 0 and never 1.
float rng_token_uniform(const struct rng_token_key *k, uint32_t index);

// A stream for everything that is not a token: shuffles, initial weights, jitter.
struct rng {
    uint32_t key[2];
    uint64_t counter;
    uint32_t have[4];
    int n_have;
};
// `stream` separates uses of one seed (e.g. hash of "shuffle/epoch 3").
void rng_init(struct rng *r, uint64_t seed, uint64_t stream);
uint32_t rng_u32(struct rng *r);
uint64_t rng_u64(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t n); // uniform in [0, n), unbiased; n > 0
double rng_uniform(struct rng *r);             // [0, 1), 53 bits
float rng_normal(struct rng *r);               // N(0,1), Box-Muller in double
// Fisher-Yates.
void rng_shuffle_u32(struct rng *r, uint32_t *v, uint32_t n);

#endif
