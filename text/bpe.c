// bpe: merges the lowest-ranked adjacent pair, leftmost first, until no pair of a word has a rank.
//
// Short words (the rule) scan an array for the smallest rank; long ones keep a linked list and a heap, so
// that a megabyte without a space costs O(n log n). Both give the same ids: the order of merges is fixed by
// (rank, position). Runs on the caller's thread; struct bpe is immutable after building, all state of a call
// is in its scratch.
#include "text/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"

#define BPE_NO_PAIR UINT64_MAX
#define BPE_NO_RANK UINT32_MAX
#define BPE_SHORT   48

void bpe_init(struct bpe *b)
{
    *b = (struct bpe){.unknown = -1};
    for (int i = 0; i < 256; i++)
        b->byte_id[i] = -1;
}

void bpe_done(struct bpe *b)
{
    buf_done(&b->blob);
    free(b->pieces);
    free(b->by_text);
    free(b->merges);
    bpe_init(b);
}

bool bpe_put_piece(struct bpe *b, int32_t id, const char *bytes, size_t n, uint8_t flags)
{
    assert(id >= 0 && id < BPE_MAX_IDS);
    if (id >= b->n_ids) {
        if (id >= b->cap_ids) {
            b->cap_ids = id + 1 > 2 * b->cap_ids ? id + 1 : 2 * b->cap_ids;
            b->pieces = mem_grow(b->pieces, (size_t)b->cap_ids, sizeof *b->pieces);
        }
        memset(b->pieces + b->n_ids, 0, (size_t)(id + 1 - b->n_ids) * sizeof *b->pieces);
        b->n_ids = id + 1;
    }
    struct bpe_piece *p = &b->pieces[id];
    if (p->flags & PIECE_PRESENT)
        return false;
    *p = (struct bpe_piece){(uint32_t)b->blob.len, (uint32_t)n, (uint8_t)(flags | PIECE_PRESENT)};
    buf_append(&b->blob, bytes, n);
    return true;
}

static uint32_t table_size(size_t n)
{
    uint32_t size = 16;
    while (size < n * 2)
        size *= 2;
    return size;
}

void bpe_index_pieces(struct bpe *b)
{
    uint32_t size = table_size((size_t)b->n_ids);
    free(b->by_text);
    b->by_text = mem_must(size, sizeof *b->by_text);
    memset(b->by_text, 0xFF, size * sizeof *b->by_text);
    b->text_mask = size - 1;
    for (int i = 0; i < 256; i++)
        b->byte_id[i] = -1;
    for (int32_t id = 0; id < b->n_ids; id++) {
        const struct bpe_piece *p = &b->pieces[id];
        if (!(p->flags & PIECE_PRESENT))
            continue;
        uint32_t slot = (uint32_t)hash64(b->blob.data + p->at, p->n) & b->text_mask;
        while (b->by_text[slot] >= 0)
            slot = (slot + 1) & b->text_mask;
        b->by_text[slot] = id;
        if (p->n == 1 && (p->flags & PIECE_WORD))
            b->byte_id[(uint8_t)b->blob.data[p->at]] = id;
    }
}

int32_t bpe_find(const struct bpe *b, const char *bytes, size_t n, uint8_t flags)
{
    uint32_t slot = (uint32_t)hash64(bytes, n) & b->text_mask;
    for (; b->by_text[slot] >= 0; slot = (slot + 1) & b->text_mask) {
        const struct bpe_piece *p = &b->pieces[b->by_text[slot]];
        if (p->n == n && (p->flags & flags) == flags &&
            (n == 0 || memcmp(b->blob.data + p->at, bytes, n) == 0))
            return b->by_text[slot];
    }
    return -1;
}

static uint32_t pair_slot(const struct bpe *b, uint64_t pair)
{
    return (uint32_t)((pair * 0x9E3779B97F4A7C15u) >> 32) & b->merge_mask;
}

void bpe_reserve_merges(struct bpe *b, size_t n)
{
    uint32_t size = table_size(n);
    free(b->merges);
    b->merges = mem_must(size, sizeof *b->merges);
    for (uint32_t i = 0; i < size; i++)
        b->merges[i].pair = BPE_NO_PAIR;
    b->merge_mask = size - 1;
}

void bpe_put_merge(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t slot = pair_slot(b, pair);
    for (; b->merges[slot].pair != BPE_NO_PAIR; slot = (slot + 1) & b->merge_mask)
        if (b->merges[slot].pair == pair)
            return;
    b->merges[slot] = (struct bpe_merge){pair, rank, id};
}

static const struct bpe_merge *find_merge(const struct bpe *b, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t slot = pair_slot(b, pair);
    for (; b->merges[slot].pair != BPE_NO_PAIR; slot = (slot + 1) & b->merge_mask)
        if (b->merges[slot].pair == pair)
            return &b->merges[slot];
    return NULL;
}

static uint32_t find_rank(const struct bpe *b, int32_t left, int32_t right)
{
    const struct bpe_merge *m = find_merge(b, left, right);
    return m ? m->rank : BPE_NO_RANK;
}

// The ids of the single bytes; bytes without a token become the unknown token or nothing. ids holds n.
static size_t start_symbols(const struct bpe *b, const char *word, size_t n, int32_t *ids)
{
    size_t k = 0;
    bool after_unknown = false;
    for (size_t i = 0; i < n; i++) {
        int32_t id = b->byte_id[(uint8_t)word[i]];
        bool unknown = id < 0;
        if (unknown) {
            id = b->unknown;
            if (id < 0 || (after_unknown && b->fuse_unknown))
                continue;
        }
        after_unknown = unknown;
        ids[k++] = id;
    }
    return k;
}

static void encode_short(const struct bpe *b, const char *word, size_t n_bytes, uint8_t mask,
                         struct tokens *out)
{
    int32_t ids[BPE_SHORT];
    uint32_t rank[BPE_SHORT];
    size_t n = start_symbols(b, word, n_bytes, ids);
    for (size_t i = 0; i + 1 < n; i++)
        rank[i] = find_rank(b, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == BPE_NO_RANK)
            break;
        ids[best] = find_merge(b, ids[best], ids[best + 1])->id;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        if (best + 1 < n)
            memmove(rank + best + 1, rank + best + 2, (n - best - 2) * sizeof *rank);
        if (best > 0)
            rank[best - 1] = find_rank(b, ids[best - 1], ids[best]);
        if (best + 1 < n)
            rank[best] = find_rank(b, ids[best], ids[best + 1]);
    }
    tokens_append(out, ids, n, mask);
}

static bool entry_before(struct bpe_entry x, struct bpe_entry y)
{
    return x.rank != y.rank ? x.rank < y.rank : x.at < y.at;
}

static void heap_push(struct bpe_scratch *s, struct bpe_entry e)
{
    if (s->n_heap == s->cap_heap) {
        s->cap_heap = s->cap_heap ? s->cap_heap * 2 : 256;
        s->heap = mem_grow(s->heap, s->cap_heap, sizeof *s->heap);
    }
    size_t i = s->n_heap++;
    for (; i > 0 && entry_before(e, s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = e;
}

static struct bpe_entry heap_pop(struct bpe_scratch *s)
{
    struct bpe_entry top = s->heap[0], last = s->heap[--s->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < s->n_heap; i = child) {
        if (child + 1 < s->n_heap && entry_before(s->heap[child + 1], s->heap[child]))
            child++;
        if (!entry_before(s->heap[child], last))
            break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = last;
    return top;
}

// Sets the rank of node i with its successor and offers the merge.
static void offer_merge(const struct bpe *b, struct bpe_scratch *s, int32_t i)
{
    struct bpe_node *node = &s->nodes[i];
    node->rank = node->next < 0 ? BPE_NO_RANK : find_rank(b, node->id, s->nodes[node->next].id);
    if (node->rank != BPE_NO_RANK)
        heap_push(s, (struct bpe_entry){node->rank, i});
}

static void encode_long(const struct bpe *b, const char *word, size_t n_bytes, struct bpe_scratch *s,
                        uint8_t mask, struct tokens *out)
{
    if (s->cap_nodes < n_bytes) {
        s->cap_nodes = n_bytes;
        s->nodes = mem_grow(s->nodes, n_bytes, sizeof *s->nodes);
        s->ids = mem_grow(s->ids, n_bytes, sizeof *s->ids);
    }
    int32_t n = (int32_t)start_symbols(b, word, n_bytes, s->ids);
    for (int32_t i = 0; i < n; i++) {
        s->nodes[i].id = s->ids[i];
        s->nodes[i].prev = i - 1;
        s->nodes[i].next = i + 1 < n ? i + 1 : -1;
    }
    s->n_heap = 0;
    for (int32_t i = 0; i < n; i++)
        offer_merge(b, s, i);
    while (s->n_heap > 0) {
        struct bpe_entry e = heap_pop(s);
        struct bpe_node *node = &s->nodes[e.at];
        if (node->rank != e.rank) // stale: the pair changed since it was offered, or the node is gone
            continue;
        struct bpe_node *right = &s->nodes[node->next];
        node->id = find_merge(b, node->id, right->id)->id;
        node->next = right->next;
        right->rank = BPE_NO_RANK;
        if (right->next >= 0)
            s->nodes[right->next].prev = e.at;
        if (node->prev >= 0)
            offer_merge(b, s, node->prev);
        offer_merge(b, s, e.at);
    }
    for (int32_t i = n ? 0 : -1; i >= 0; i = s->nodes[i].next)
        tokens_push(out, s->nodes[i].id, mask);
}

void bpe_scratch_enable_cache(struct bpe_scratch *s)
{
    if (!s->cache)
        s->cache = mem_must(BPE_CACHE_SLOTS, sizeof *s->cache);
}

void bpe_scratch_done(struct bpe_scratch *s)
{
    free(s->ids);
    free(s->nodes);
    free(s->heap);
    free(s->cache);
    *s = (struct bpe_scratch){0};
}

void bpe_encode_word(const struct bpe *b, const char *word, size_t n, struct bpe_scratch *s, uint8_t mask,
                     struct tokens *out)
{
    if (n == 1 && b->byte_id[(uint8_t)word[0]] >= 0) {
        tokens_push(out, b->byte_id[(uint8_t)word[0]], mask);
        return;
    }
    struct bpe_cached *c = NULL;
    if (s->cache && n <= BPE_CACHE_BYTES) {
        c = &s->cache[hash64(word, n) & (BPE_CACHE_SLOTS - 1)];
        if (c->n_bytes == n && memcmp(c->bytes, word, n) == 0) {
            tokens_append(out, c->ids, c->n_ids, mask);
            return;
        }
    }
    size_t before = out->n;
    int32_t whole = b->ignore_merges ? bpe_find(b, word, n, PIECE_WORD) : -1;
    if (whole >= 0)
        tokens_push(out, whole, mask);
    else if (n <= BPE_SHORT)
        encode_short(b, word, n, mask, out);
    else
        encode_long(b, word, n, s, mask, out);
    if (c && out->n - before <= BPE_CACHE_IDS) {
        c->n_bytes = (uint8_t)n;
        c->n_ids = (uint8_t)(out->n - before);
        memcpy(c->bytes, word, n);
        if (c->n_ids)
            memcpy(c->ids, out->ids + before, c->n_ids * sizeof *c->ids);
    }
}
