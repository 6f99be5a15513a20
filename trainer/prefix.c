// prefix: see prefix.h. Pure; any thread. A member is its chain: the hash of its first block of tokens, of its first two, and so on.
// Chains are compared in the place of tokens, so that a step of 2^27 tokens is read once; before rows are shared the
// tokens themselves are compared.
#include "trainer/prefix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "model/model.h"

#define BLOCK ((int32_t)ATTN_BLOCK)
#define LOOK  64 // members behind one that are asked whether it should begin a tree

struct line {
    const uint64_t *chain; // [depth]
    int32_t depth;         // whole blocks of its rows
    int32_t may_share;     // blocks before the token ahead of the first trained one
    int32_t common;        // blocks in common with the line before it
    int32_t member;
};

// The tree under way.
struct growth {
    struct train_tree tree;
    int32_t root, last; // members, -1 = none
    int32_t common;     // blocks that the root and the line under way have in common
};

static int32_t common_blocks(const struct line *a, const struct line *b)
{
    int32_t n = a->depth < b->depth ? a->depth : b->depth, i = 0;
    while (i < n && a->chain[i] == b->chain[i])
        i++;
    return i;
}

// By chain; what is the beginning of another one comes first, and of equals whoever trains earlier: the better roots.
static int compare_lines(const void *pa, const void *pb)
{
    const struct line *a = pa, *b = pb;
    int32_t i = common_blocks(a, b);
    if (i < a->depth && i < b->depth)
        return a->chain[i] < b->chain[i] ? -1 : 1;
    if (a->depth != b->depth)
        return a->depth < b->depth ? -1 : 1;
    if (a->may_share != b->may_share)
        return a->may_share < b->may_share ? -1 : 1;
    return (a->member > b->member) - (a->member < b->member);
}

// Lines of the members with rows, sorted; *ret_chains backs their chains.
static int32_t lines_make(const struct prepared *p, int32_t n, const int32_t *members, struct line *lines,
                          uint64_t **ret_chains)
{
    size_t blocks = 0;
    int32_t n_lines = 0;
    for (int32_t k = 0; k < n; k++)
        blocks += (size_t)(p->members[members[k]].rows / BLOCK);
    uint64_t *chain = *ret_chains = mem_must(blocks + 1, sizeof *chain);
    for (int32_t k = 0; k < n; k++) {
        const struct prepared_member *m = &p->members[members[k]];
        const int32_t *ids = p->msg->ids + m->first;
        if (!m->rows)
            continue;
        struct line *l = &lines[n_lines++];
        *l = (struct line){.chain = chain,
                           .depth = m->rows / BLOCK,
                           .may_share = (m->first_trained - 1) / BLOCK,
                           .member = members[k]};
        for (int32_t b = 0; b < l->depth; b++)
            chain[b] = hash64_seed(ids + b * BLOCK, (size_t)BLOCK * sizeof *ids, b ? chain[b - 1] : 0);
        chain += l->depth;
    }
    qsort(lines, (size_t)n_lines, sizeof *lines, compare_lines);
    for (int32_t i = 1; i < n_lines; i++)
        lines[i].common = common_blocks(&lines[i - 1], &lines[i]);
    return n_lines;
}

static int32_t min_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

// Whether lines[0] saves more as the root of those behind it (there are n lines) than they all do in the present tree, where it has
// `blocks` in common with the root.
static bool begins_tree(const struct line *lines, int32_t n, int32_t blocks)
{
    int32_t common = lines[0].depth;
    int64_t here = blocks, there = 0;
    for (int32_t i = 1; i < n && i <= LOOK; i++) {
        common = min_i32(common, lines[i].common);
        if (common <= blocks)
            break;
        there += min_i32(common, lines[i].may_share);
        here += min_i32(blocks, lines[i].may_share);
    }
    return there > here;
}

// Gives the line to the tree under way, if it has something in common with the root, is better off there and finds room.
static bool tree_take(struct prefix *x, struct growth *g, const struct prepared *p, const struct line *lines,
                      int32_t n, int32_t budget)
{
    int32_t i = lines->member, blocks = min_i32(g->common, lines->may_share), pos0 = blocks * BLOCK;
    struct train_tree grown = g->tree;
    if (g->root < 0 || blocks == 0 || begins_tree(lines, n, blocks))
        return false;
    train_tree_add(&grown, p->members[i].rows - pos0, pos0);
    if (grown.rows > budget || !train_tree_fits(&grown))
        return false;
    const int32_t *ids = p->msg->ids;
    if (memcmp(ids + p->members[g->root].first, ids + p->members[i].first, (size_t)pos0 * sizeof *ids) != 0)
        return false; // equal hashes of different tokens
    g->tree = grown;
    x->shared[i] = pos0;
    x->rows[g->root] = (int32_t)grown.rows;
    x->next[g->last] = i;
    g->last = i;
    return true;
}

static void trees_grow(struct prefix *x, const struct prepared *p, int32_t n, const int32_t *members,
                       int32_t budget)
{
    struct line *lines = mem_must((size_t)n + 1, sizeof *lines);
    uint64_t *chains;
    int32_t n_lines = lines_make(p, n, members, lines, &chains);
    struct growth g = {.root = -1};
    for (int32_t k = 0; k < n_lines; k++) {
        g.common = min_i32(g.common, lines[k].common);
        if (tree_take(x, &g, p, lines + k, n_lines - k, budget))
            continue;
        g = (struct growth){.root = lines[k].member, .last = lines[k].member, .common = lines[k].depth};
        train_tree_add(&g.tree, p->members[g.root].rows, 0);
    }
    free(chains);
    free(lines);
}

void prefix_init(struct prefix *ret, const struct prepared *p, int32_t n, const int32_t *members,
                 int32_t budget, bool share)
{
    size_t all = (size_t)p->msg->n_members;
    *ret = (struct prefix){.shared = mem_must(all, sizeof *ret->shared),
                           .rows = mem_must(all, sizeof *ret->rows),
                           .next = mem_must(all, sizeof *ret->next)};
    for (size_t i = 0; i < all; i++)
        ret->next[i] = -1;
    for (int32_t k = 0; k < n; k++)
        ret->rows[members[k]] = p->members[members[k]].rows;
    if (share)
        trees_grow(ret, p, n, members, budget);
    for (int32_t k = 0; k < n; k++)
        if (ret->shared[members[k]])
            ret->rows[members[k]] = 0;
}

void prefix_done(struct prefix *x)
{
    free(x->shared);
    free(x->rows);
    free(x->next);
    *x = (struct prefix){0};
}

enum status prefix_pack(const struct prefix *x, int32_t n, const int32_t *members, int32_t budget,
                        uint64_t seed, struct packing *ret, struct error *err)
{
    struct packing p;
    enum status rc = packing_init(&p, n, members, x->rows, budget, seed, err);
    if (rc)
        return rc;
    int32_t *unfolded = mem_must((size_t)n + 1, sizeof *unfolded), at = 0;
    for (int32_t b = 0, k = 0; b < p.n_bins; b++) {
        int32_t first = at;
        for (; k < p.start[b + 1]; k++)
            for (int32_t i = p.members[k]; i >= 0; i = x->next[i])
                unfolded[at++] = i;
        p.start[b] = first;
    }
    p.start[p.n_bins] = at;
    assert(at <= n);
    free(p.members);
    p.members = unfolded;
    *ret = p;
    return STATUS_OK;
}
