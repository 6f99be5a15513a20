// XXH3-128 with AVX2: see hash_wide.h. Any thread; no state.
#if defined(__x86_64__)
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define XXH_VECTOR 2 // XXH_AVX2: the name comes with the header
#define HASH_WIDE  hash_avx2
#include "base/hash_wide.c"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int hash_avx2_none; // no such class here
#endif
