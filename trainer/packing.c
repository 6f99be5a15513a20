// packing: see packing.h. Pure; any thread. "The first micro-batch with room" is found in a tree of maxima over the room left
// in each one, so that a step of a hundred thousand sequences packs in n log n.
#include "trainer/packing.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"

struct item {
    int32_t member, rows, bin;
    uint64_t tie;
};

static int compare_items(const void *pa, const void *pb)
{
    const struct item *a = pa, *b = pb;
    if (a->rows != b->rows)
        return a->rows > b->rows ? -1 : 1;
    if (a->tie != b->tie)
        return a->tie < b->tie ? -1 : 1;
    return (a->member > b->member) - (a->member < b->member);
}

// tree[1] is the root; leaf of bin b is tree[leaves + b]. Returns the leftmost bin with at least `rows` of room.
static int32_t first_fit(const int32_t *tree, int32_t leaves, int32_t rows)
{
    int32_t i = 1;
    assert(tree[1] >= rows);
    while (i < leaves)
        i = tree[2 * i] >= rows ? 2 * i : 2 * i + 1;
    return i - leaves;
}

static void take_room(int32_t *tree, int32_t leaves, int32_t bin, int32_t rows)
{
    int32_t i = leaves + bin;
    tree[i] -= rows;
    for (i /= 2; i >= 1; i /= 2)
        tree[i] = tree[2 * i] > tree[2 * i + 1] ? tree[2 * i] : tree[2 * i + 1];
}

// Fills item.bin; returns the number of bins.
static int32_t place_items(struct item *items, int32_t n, int32_t budget)
{
    int32_t leaves = 1, n_bins = 0;
    while (leaves < n)
        leaves *= 2;
    int32_t *tree = mem_must(2 * (size_t)leaves, sizeof *tree);
    for (int32_t i = 0; i < 2 * leaves; i++)
        tree[i] = budget;
    for (int32_t i = 0; i < n; i++) {
        // an oversized sequence takes the first untouched bin and all of its room
        int32_t need = items[i].rows < budget ? items[i].rows : budget;
        items[i].bin = first_fit(tree, leaves, need);
        take_room(tree, leaves, items[i].bin, need);
        n_bins = items[i].bin + 1 > n_bins ? items[i].bin + 1 : n_bins;
    }
    free(tree);
    return n_bins;
}

enum status packing_init(struct packing *ret, int32_t n, const int32_t *members, const int32_t *rows,
                         int32_t budget, uint64_t seed, struct error *err)
{
    struct packing p = {0};
    int32_t n_items = 0;
    if (budget <= 0)
        return error_set(err, STATUS_RANGE, "packing: a budget of %d rows", budget);
    struct item *items = mem_must((size_t)n + 1, sizeof *items);
    for (int32_t i = 0; i < n; i++) {
        int32_t member = members[i];
        if (rows[member] > 0)
            items[n_items++] =
                (struct item){member, rows[member], 0, hash64_seed(&member, sizeof member, seed)};
    }
    qsort(items, (size_t)n_items, sizeof *items, compare_items);
    p.n_bins = place_items(items, n_items, budget);
    p.start = mem_must((size_t)p.n_bins + 2, sizeof *p.start);
    p.members = mem_must((size_t)n_items + 1, sizeof *p.members);
    int32_t *fill = mem_must((size_t)p.n_bins + 1, sizeof *fill);
    for (int32_t i = 0; i < n_items; i++)
        p.start[items[i].bin + 1]++;
    for (int32_t b = 0; b < p.n_bins; b++) {
        p.start[b + 1] += p.start[b];
        fill[b] = p.start[b];
    }
    for (int32_t i = 0; i < n_items; i++)
        p.members[fill[items[i].bin]++] = items[i].member;
    for (int32_t b = 0; b < p.n_bins; b++) {
        int32_t sum = 0;
        for (int32_t i = p.start[b]; i < p.start[b + 1]; i++)
            sum += rows[p.members[i]];
        p.max_rows = sum > p.max_rows ? sum : p.max_rows;
    }
    free(fill);
    free(items);
    *ret = p;
    return STATUS_OK;
}

void packing_done(struct packing *p)
{
    if (!p)
        return;
    free(p->start);
    free(p->members);
    *p = (struct packing){0};
}
