// Which groups carry no signal, and how a group that lost members is made whole ("Advantages and filters" of algorithms.md). Pure functions.
#ifndef RL_FILTER_H
#define RL_FILTER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/runconfig.h"

// True when the group is to be dropped (zero_variance): rewards [n] of its members with a policy outcome are all equal.
bool filter_drops(enum run_zero_variance f, const double *rewards, int n);

// Padding: n_valid members stand for a group of `size`. When they are more than half of it they are repeated
// round-robin, in order: multiplicity[i] = size / n_valid + (i < size % n_valid), which sums to size. Else false: the group is
// dropped as group_incomplete (GLM-5 report, §4.1.2).
// multiplicity [n_valid] int32 out
bool filter_pad(int n_valid, int size, int32_t *multiplicity);

// Control experiment: the rewards of a group in a random order that depends on (seed, group) only.
void filter_permute_rewards(uint64_t seed, int64_t group, double *rewards, int n);

#endif
