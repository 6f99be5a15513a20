// Philox4x32-10: see rng.h. Pure except for struct rng, which one thread owns.
#include "base/rng.h"

#include <math.h>

void rng_philox(const uint32_t key[2], const uint32_t ctr[4], uint32_t out[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static uint64_t mix64(uint64_t z)
{
    z += 0x9E3779B97F4A7C15u; // splitmix64: spreads neighbouring keys over the whole space
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

float rng_token_uniform(const struct rng_token_key *k, uint32_t index)
{
    uint64_t seed = mix64(k->run_seed);
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t ctr[4] = {index, k->segment ^ (k->attempt << 16 | k->attempt >> 16),
                             (uint32_t)k->trajectory, (uint32_t)(k->trajectory >> 32)};
    uint32_t out[4];
    rng_philox(key, ctr, out);
    return ((float)(out[0] >> 9) + 0.5f) * 0x1p-23f;
}

void rng_init(struct rng *r, uint64_t seed, uint64_t stream)
{
    uint64_t k = mix64(seed ^ mix64(stream));
    *r = (struct rng){.key = {(uint32_t)k, (uint32_t)(k >> 32)}};
}

uint32_t rng_u32(struct rng *r)
{
    if (r->n_have == 0) {
        const uint32_t ctr[4] = {(uint32_t)r->counter, (uint32_t)(r->counter >> 32), 0, 0x6f6f7a65u};
        rng_philox(r->key, ctr, r->have);
        r->counter++;
        r->n_have = 4;
    }
    return r->have[4 - r->n_have--];
}

uint64_t rng_u64(struct rng *r)
{
    uint64_t hi = rng_u32(r);
    return hi << 32 | rng_u32(r);
}

uint64_t rng_below(struct rng *r, uint64_t n)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, v;
    do {
        v = rng_u64(r);
    } while (v >= limit);
    return v % n;
}

double rng_uniform(struct rng *r)
{
    return (double)(rng_u64(r) >> 11) * 0x1p-53;
}

float rng_normal(struct rng *r)
{
    double u = 1.0 - rng_uniform(r);
    double v = rng_uniform(r);
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

void rng_shuffle_u32(struct rng *r, uint32_t *v, uint32_t n)
{
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = (uint32_t)rng_below(r, i);
        uint32_t t = v[i - 1];
        v[i - 1] = v[j];
        v[j] = t;
    }
}
