// What the kernels share among themselves: the packed layout, the division of work among threads, per-thread
// scratch memory and the tables of the classes. Private to kernels/.
#ifndef KERNELS_INTERNAL_H
#define KERNELS_INTERNAL_H

#include "kernels/kernels.h"

// Packed weights of the classes ref, avx2 and avx512: panels of PANEL outputs, [ceil(n / PANEL)][k][PANEL]
// elements of the dtype; outputs past n are zero.
#define PANEL 32

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}
static inline int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t max_i64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

// Calls fn over [0, n) in ranges whose bounds are multiples of align (the last one ends at n). Ranges are
// made so long that each takes about SPLIT_MIN_NS or more: waking a thread for less costs more than it
// brings. ns_per_item is the caller's guess of one item's cost on one thread; it moves no bits, only the
// split.
#define SPLIT_MIN_NS 5000.0
typedef void split_fn(void *ctx, int64_t begin, int64_t end, int thread);
void split_run(struct device *d, int64_t n, int64_t align, double ns_per_item, split_fn *fn, void *ctx);

// The trees of an attention gradient (kernels.h), asserting that they are well formed: ret_first [n_seqs + 1] gets the first sequence
// of each, its root, and n_seqs at the end. Returns their number.
int attn_trees(int n_seqs, const struct attn_seq *seqs, int32_t *ret_first);
// (query, key) pairs of a sequence with the halves that blocks waste, for guesses of cost.
static inline double attn_pairs(const struct attn_seq *s)
{
    return (double)s->n_rows * (0.5 * (s->n_rows + 32.0) + s->pos0);
}

// At least `bytes` bytes, 64-byte aligned, contents undefined, that `thread` may use until the op ends. A
// second call of the same op on the same thread invalidates the first. Aborts when the machine has no memory
// left.
void *scratch_get(struct device *d, int thread, size_t bytes);
// The same for the whole op, shared by its threads; called before the split. Whoever calls an op keeps nothing in either: the op may
// want them for itself.
void *scratch_shared(struct device *d, size_t bytes);

// Each fills in the fields it has and leaves the others: ref first, then up the chain.
void ref_table(struct kernels *k);
void avx2_table(struct kernels *k);
void avx512_table(struct kernels *k);
void avx512bf16_table(struct kernels *k);
void amx_table(struct kernels *k);

#endif
