// Filters: see filter.h. Pure functions, any thread.
#include "rl/filter.h"

#include <assert.h>
#include <stddef.h>

#include "base/hash.h"
#include "base/rng.h"

static bool filter_never(const double *rewards, int n)
{
    (void)rewards;
    (void)n;
    return false;
}

static bool filter_zero_variance(const double *rewards, int n)
{
    for (int i = 1; i < n; i++)
        if (rewards[i] != rewards[0])
            return false;
    return true;
}

static bool (*const table[])(const double *, int) = {
#define FILTER(id, fn) [RUN_ZV_##id] = filter_##fn,
#include "rl/filter.def"
#undef FILTER
};

bool filter_drops(enum run_zero_variance f, const double *rewards, int n)
{
    assert((size_t)f < sizeof table / sizeof *table && table[f]);
    return table[f](rewards, n);
}

bool filter_pad(int n_valid, int size, int32_t *multiplicity)
{
    if (n_valid <= 0 || 2 * n_valid <= size)
        return false;
    for (int i = 0; i < n_valid; i++) {
        int m = size / n_valid + (i < size % n_valid);
        multiplicity[i] = m < 1 ? 1 : m;
    }
    return true;
}

void filter_permute_rewards(uint64_t seed, int64_t group, double *rewards, int n)
{
    struct rng r;
    rng_init(&r, seed, hash64_seed(&group, sizeof group, 0x7065726d757465));
    for (int i = n - 1; i > 0; i--) {
        int j = (int)rng_below(&r, (uint64_t)i + 1);
        double t = rewards[i];
        rewards[i] = rewards[j];
        rewards[j] = t;
    }
}
