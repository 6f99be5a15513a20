// Byte-pair encoding of one pre-token: the vocabulary's pieces as bytes, the merges as a hash of id pairs.
// Room-internal: tokenizer.h is the door.
//
// Immutable once built; a struct bpe_scratch belongs to one call.
#ifndef TEXT_BPE_H
#define TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "text/tokens.h"

#define BPE_MAX_IDS (1 << 22)

enum {
    PIECE_PRESENT = 1, // the id is in the vocabulary
    PIECE_WORD = 2,    // made of byte-level letters and not special: what encoding may yield
    PIECE_ADDED = 4,   // an added token
    PIECE_MARKER = 8,  // see tokenizer.h, invariant 2
};

struct bpe_piece {
    uint32_t at, n; // in blob
    uint8_t flags;
};

struct bpe_merge {
    uint64_t pair; // left << 32 | right; BPE_NO_PAIR = empty slot
    uint32_t rank;
    int32_t id;
};

struct bpe {
    struct buf blob; // bytes of all pieces
    struct bpe_piece *pieces;
    int32_t n_ids; // largest id + 1
    int32_t cap_ids;
    int32_t *by_text; // open addressing over hash64 of the bytes: id or -1
    uint32_t text_mask;
    struct bpe_merge *merges;
    uint32_t merge_mask;
    int32_t byte_id[256]; // -1: no token for this byte
    bool ignore_merges;   // a whole pre-token that is in the vocabulary is taken as it is
    int32_t unknown;      // -1: bytes without a token vanish
    bool fuse_unknown;
};

void bpe_init(struct bpe *b);
void bpe_done(struct bpe *b);

// Building. put: false when the id is taken by other bytes. After all pieces: index, then the merges.
bool bpe_put_piece(struct bpe *b, int32_t id, const char *bytes, size_t n, uint8_t flags);
void bpe_index_pieces(struct bpe *b); // fills by_text and byte_id
void bpe_reserve_merges(struct bpe *b, size_t n);
// Keeps the first rank of a repeated pair.
void bpe_put_merge(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id);

// Id of the piece with these bytes and all of the flags; -1 when there is none.
int32_t bpe_find(const struct bpe *b, const char *bytes, size_t n, uint8_t flags);

struct bpe_node { // one symbol of a long word
    int32_t id;
    int32_t prev, next;
    uint32_t rank; // of merging it with next
};
struct bpe_entry { // one possible merge, in a heap ordered by (rank, at)
    uint32_t rank;
    int32_t at;
};
#define BPE_CACHE_SLOTS 4096
#define BPE_CACHE_BYTES 24
#define BPE_CACHE_IDS   6
struct bpe_cached {
    uint8_t n_bytes, n_ids; // n_bytes 0: empty
    char bytes[BPE_CACHE_BYTES];
    int32_t ids[BPE_CACHE_IDS];
};
struct bpe_scratch {
    int32_t *ids;
    struct bpe_node *nodes;
    struct bpe_entry *heap;
    size_t cap_nodes, cap_heap, n_heap;
    struct bpe_cached *cache; // direct-mapped words already seen in this call; NULL until enabled
};
void bpe_scratch_done(struct bpe_scratch *s);
void bpe_scratch_enable_cache(struct bpe_scratch *s);

// Appends the ids of one pre-token, n < 2^30 bytes. O(n log n).
void bpe_encode_word(const struct bpe *b, const char *word, size_t n, struct bpe_scratch *s, uint8_t mask,
                     struct tokens *out);

#endif
