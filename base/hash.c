// Hashes: see hash.h.
#include "base/hash.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/hash_wide.h"
#include "base/mem.h"

uint64_t hash64(const void *p, size_t n)
{
    return XXH3_64bits(p, n);
}

uint64_t hash64_seed(const void *p, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(p, n, seed);
}

static void hex(const unsigned char *d, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", d[i]);
}

void weights_hash_init(struct weights_hash *h)
{
    *h = (struct weights_hash){.xxh = XXH3_createState(), .sha = EVP_MD_CTX_new()};
    if (!h->xxh || !h->sha || XXH3_128bits_reset(h->xxh) != XXH_OK ||
        EVP_DigestInit_ex(h->sha, EVP_sha256(), NULL) != 1)
        abort(); // only possible when out of memory
}

static void end_chunk(struct weights_hash *h)
{
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, XXH3_128bits_digest(h->xxh));
    EVP_DigestUpdate(h->sha, c.digest, sizeof c.digest);
    XXH3_128bits_reset(h->xxh);
    h->in_chunk = 0;
}

void weights_hash_update(struct weights_hash *h, const void *p, size_t n)
{
    const char *s = p;
    while (n) {
        size_t take = HASH_CHUNK_BYTES - h->in_chunk;
        if (take > n)
            take = n;
        XXH3_128bits_update(h->xxh, s, take);
        h->in_chunk += take;
        s += take;
        n -= take;
        if (h->in_chunk == HASH_CHUNK_BYTES)
            end_chunk(h);
    }
}

void weights_hash_final(struct weights_hash *h, char ret_hex[HASH_HEX])
{
    unsigned char d[32];
    if (h->in_chunk)
        end_chunk(h);
    EVP_DigestFinal_ex(h->sha, d, NULL);
    hex(d, sizeof d, ret_hex);
    weights_hash_done(h);
}

void weights_hash_done(struct weights_hash *h)
{
    XXH3_freeState(h->xxh);
    EVP_MD_CTX_free(h->sha);
    *h = (struct weights_hash){0};
}

static const struct hash_wide *wide(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return &hash_avx2;
#endif
    return &hash_base;
}

void weights_hash_chunk(const void *p, size_t n, uint8_t ret[HASH_DIGEST])
{
    wide()->chunk(p, n, ret);
}

void weights_hash_part_begin(struct weights_hash_part *h)
{
    wide()->begin(h);
}

void weights_hash_part_add(struct weights_hash_part *h, const void *p, size_t n)
{
    wide()->add(h, p, n);
}

void weights_hash_part_end(const struct weights_hash_part *h, uint8_t ret[HASH_DIGEST])
{
    wide()->end(h, ret);
}

void weights_hash_digests(const uint8_t (*digests)[HASH_DIGEST], size_t n, char ret_hex[HASH_HEX])
{
    hash_sha256_hex(digests, n * HASH_DIGEST, ret_hex);
}

void hash_sha256_hex(const void *p, size_t n, char ret_hex[HASH_HEX])
{
    unsigned char d[32];
    unsigned int len = 0;
    if (EVP_Digest(p, n, d, &len, EVP_sha256(), NULL) != 1)
        abort();
    hex(d, len, ret_hex);
}
