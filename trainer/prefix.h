// Shared prefixes: the answers of one group, and the segments of one trajectory, begin with the same tokens. Their rows are computed
// once, in a tree (model.h, train_forward): one sequence, the root, is whole, and its branches leave out the rows that the root's
// serve.
//
// A member shares its first L rows with a root when the first L tokens are equal, L is a multiple of ATTN_BLOCK, the root has the rows
// and the member trains none of them (its first trained token comes behind token L); the root may. A tree has at most `budget` rows,
// unless it is one sequence. Who shares with whom is a function of the tokens and masks alone, never of threads, time or addresses.
//
// Members are sorted by their blocks of tokens, so that equal beginnings lie together, and go one by one into the tree of the one
// before, or begin a tree where those behind them have more in common with them than the tree has.
#ifndef TRAINER_PREFIX_H
#define TRAINER_PREFIX_H

#include "trainer/packing.h"
#include "trainer/prepared.h"

struct prefix {
    // all [p->msg->n_members], indexed by member
    int32_t *shared; // rows that the root serves; 0 for roots
    int32_t *rows;   // at roots: of the whole tree; 0 at branches and members without a trained token
    int32_t *next;   // next branch of the tree, -1 after the last one
};

// members [n]: which ones; share false: each is a root by itself.
void prefix_init(struct prefix *ret, const struct prepared *p, int32_t n, const int32_t *members,
                 int32_t budget, bool share);
void prefix_done(struct prefix *x);
// Packs the trees into micro-batches of at most `budget` rows (packing.h): members of a bin in the order of their rows, each root
// followed by its branches.
enum status prefix_pack(const struct prefix *x, int32_t n, const int32_t *members, int32_t budget,
                        uint64_t seed, struct packing *ret, struct error *err) OOZE_MUST_USE;

#endif
