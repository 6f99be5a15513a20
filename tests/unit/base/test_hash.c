// base/hash.h: published digests, and the weights hash against its definition.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

#include <xxhash.h>

#include "base/hash.h"
#include "base/hash_wide.h"

static void test_known(void **state)
{
    (void)state;
    char hex[HASH_HEX];
    hash_sha256_hex("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    hash_sha256_hex("", 0, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_true(hash64("", 0) == 0x2d06800538d394c2u);
    assert_true(hash64("a", 1) != hash64("b", 1));
    assert_true(hash64_seed("a", 1, 1) != hash64_seed("a", 1, 2));
}

// The definition, done the slow way: digests of whole chunks in memory, then one SHA-256.
static void weights_hash_slow(const unsigned char *p, size_t n, char hex[HASH_HEX])
{
    XXH128_canonical_t digests[8];
    size_t n_chunks = 0;
    for (size_t at = 0; at < n; at += HASH_CHUNK_BYTES, n_chunks++) {
        size_t len = n - at < HASH_CHUNK_BYTES ? n - at : HASH_CHUNK_BYTES;
        XXH128_canonicalFromHash(&digests[n_chunks], XXH3_128bits(p + at, len));
    }
    hash_sha256_hex(digests, n_chunks * sizeof(digests[0]), hex);
}

static void test_weights(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,
                                   1,
                                   1000,
                                   HASH_CHUNK_BYTES - 1,
                                   HASH_CHUNK_BYTES,
                                   HASH_CHUNK_BYTES + 1,
                                   3 * HASH_CHUNK_BYTES + 12345};
    static const size_t steps[] = {1 << 30, HASH_CHUNK_BYTES, 65536, 4099};
    unsigned char *p = malloc(4 * HASH_CHUNK_BYTES);
    for (size_t i = 0; i < 4 * HASH_CHUNK_BYTES; i++) {
        p[i] = (unsigned char)(i * 2654435761u >> 13);
    }
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        char want[HASH_HEX], got[HASH_HEX];
        weights_hash_slow(p, sizes[s], want);
        uint8_t digests[8][HASH_DIGEST];
        size_t n = 0;
        for (size_t at = 0; at < sizes[s]; at += HASH_CHUNK_BYTES, n++)
            weights_hash_chunk(p + at, sizes[s] - at < HASH_CHUNK_BYTES ? sizes[s] - at : HASH_CHUNK_BYTES,
                               digests[n]);
        weights_hash_digests((const uint8_t(*)[HASH_DIGEST])digests, n, got);
        assert_string_equal(got, want);
        for (size_t k = 0; k < 4; k++) { // chunks whose bytes come some at a time
            n = 0;
            for (size_t at = 0; at < sizes[s]; at += HASH_CHUNK_BYTES, n++) {
                size_t end = sizes[s] - at < HASH_CHUNK_BYTES ? sizes[s] : at + HASH_CHUNK_BYTES;
                struct weights_hash_part part;
                weights_hash_part_begin(&part);
                for (size_t i = at; i < end; i += steps[k])
                    weights_hash_part_add(&part, p + i, end - i < steps[k] ? end - i : steps[k]);
                weights_hash_part_end(&part, digests[n]);
            }
            weights_hash_digests((const uint8_t(*)[HASH_DIGEST])digests, n, got);
            assert_string_equal(got, want);
        }
        for (size_t k = 0; k < 4; k++) {
            struct weights_hash h;
            weights_hash_init(&h);
            for (size_t at = 0; at < sizes[s]; at += steps[k]) {
                weights_hash_update(&h, p + at, sizes[s] - at < steps[k] ? sizes[s] - at : steps[k]);
            }
            weights_hash_final(&h, got);
            weights_hash_done(&h);
            assert_string_equal(got, want);
        }
    }
    struct weights_hash h;
    weights_hash_init(&h);
    weights_hash_update(&h, p, 10);
    weights_hash_done(&h); // given up half-way
    free(p);
}

// Whichever table a machine takes: the digests are the library's, at once and in parts.
static void test_tables(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 240, 241, 1000, 65537};
    const struct hash_wide *tables[2] = {&hash_base};
    int n = 1;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        tables[n++] = &hash_avx2;
#endif
    unsigned char p[65537];
    for (size_t i = 0; i < sizeof p; i++)
        p[i] = (unsigned char)(i * 2654435761u >> 11);
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        XXH128_canonical_t want;
        XXH128_canonicalFromHash(&want, XXH3_128bits(p, sizes[s]));
        for (int t = 0; t < n; t++) {
            uint8_t whole[HASH_DIGEST], parts[HASH_DIGEST];
            struct weights_hash_part h;
            tables[t]->chunk(p, sizes[s], whole);
            tables[t]->begin(&h);
            for (size_t at = 0; at < sizes[s]; at += 777)
                tables[t]->add(&h, p + at, sizes[s] - at < 777 ? sizes[s] - at : 777);
            tables[t]->end(&h, parts);
            assert_memory_equal(whole, want.digest, HASH_DIGEST);
            assert_memory_equal(parts, want.digest, HASH_DIGEST);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known), cmocka_unit_test(test_weights),
                                       cmocka_unit_test(test_tables)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
