// Filling weights from a weights file in pieces that any number of threads may take: a loader thread beside a working engine, and the
// engine's own pool for the rest when it has a moment (contract 2: refit in flight). weights_load (model.h) is the same in one call.
//
// A piece is a chunk of the hash, 1 MiB of the file, with the parts (parts.h) that begin in it. Its bytes come from memory once: one
// part after the other is packed (and, an embedding's, copied), past the caches where the class can, then hashed out of the cache while the next part's
// bytes are on their way.
//
// Invariants
//   1. Each piece is taken once; pieces write to places of their own. What the weights hold is defined only after loading_finish
//      said STATUS_OK: until then, and after a failure, nobody may compute with them.
//   2. Every byte of the file is part of the hash that loading_finish compares.
#ifndef MODEL_LOADING_H
#define MODEL_LOADING_H

#include "base/clock.h"
#include "model/kept.h"
#include "model/model.h"

struct loading;

// Maps the file and checks that it is what weights_file_write lays out for w. expect_hash NULL: no hash is computed. w must not be
// opened for training. kept: where the map stays for the next time its pages come round; NULL = it goes with the loading.
enum status loading_open(struct weights *w, const char *path, const char *expect_hash, struct kept *kept,
                         struct loading **ret, struct error *err) OOZE_MUST_USE;
// Takes pieces until none is left or the clock has passed deadline_ns (INT64_MAX: never), on all threads of d's pool. d is the
// caller's own device, of the class of the weights. Several threads may be inside at once.
void loading_work(struct loading *l, struct device *d, const struct clock *clock, int64_t deadline_ns);
// CPU nanoseconds that the pieces nobody has taken yet will need, going by those that are done; -1 while none is.
int64_t loading_left_ns(const struct loading *l);
// Once every loading_work has returned: STATUS_OK when all pieces are done and the hash is the expected one. NULL is fine and an
// error. The file stays mapped and locked until loading_free: taking a map away costs about as much as filling it, and nobody waits
// for that.
enum status loading_finish(const struct loading *l, struct error *err) OOZE_MUST_USE;
void loading_free(struct loading *l); // NULL is fine; kept maps: on the thread of loading_open
// Both.
enum status loading_close(struct loading *l, struct error *err) OOZE_MUST_USE;

#endif
