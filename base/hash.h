// Hashes: XXH3 for tables and chunks, SHA-256 for identities that people compare.
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash64(const void *p, size_t n);
uint64_t hash64_seed(const void *p, size_t n, uint64_t seed);

#define HASH_CHUNK_BYTES ((size_t)1 << 20)
#define HASH_HEX         65 // 64 hex digits and NUL

// Hash of a weights file (contract 2): SHA-256 over the ordered XXH3-128 digests of its HASH_CHUNK_BYTES
// chunks, computed while the bytes are produced. The split of the bytes into update calls does not matter.
struct weights_hash {
    void *xxh; // state of the chunk under way
    void *sha;
    size_t in_chunk;
};
void weights_hash_init(struct weights_hash *h);
void weights_hash_update(struct weights_hash *h, const void *p, size_t n);
// Writes the hex digest and releases the state. Safe after init only, once.
void weights_hash_final(struct weights_hash *h, char ret_hex[HASH_HEX]);
void weights_hash_done(struct weights_hash *h); // releases without a digest; fine after final

// The same in parts, for whoever has the chunks at hand in another order or on several threads: the digest of one chunk
// (HASH_CHUNK_BYTES, the last one shorter), at once or while its bytes are at hand for another purpose, some at a time; and the hash
// out of all digests in order.
#define HASH_DIGEST 16
struct weights_hash_part {
    _Alignas(64) unsigned char state[640];
};
void weights_hash_chunk(const void *p, size_t n, uint8_t ret[HASH_DIGEST]);
void weights_hash_part_begin(struct weights_hash_part *h);
void weights_hash_part_add(struct weights_hash_part *h, const void *p, size_t n);
void weights_hash_part_end(const struct weights_hash_part *h, uint8_t ret[HASH_DIGEST]);
void weights_hash_digests(const uint8_t (*digests)[HASH_DIGEST], size_t n, char ret_hex[HASH_HEX]);

// Plain SHA-256 as hex.
void hash_sha256_hex(const void *p, size_t n, char ret_hex[HASH_HEX]);

#endif
