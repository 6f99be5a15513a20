// What each session last held in the KV cache, so that its next turn can read those pages although newer weights have
// come since (contract 2: older pages are read by their own session only). Bounded: the session unused for longest is
// forgotten. Owner: the compute thread.
#ifndef ROLLOUT_SESSIONS_H
#define ROLLOUT_SESSIONS_H

#include <stdint.h>

#include "rollout/pages.h"

struct sessions;

struct sessions *sessions_open(int32_t capacity); // capacity >= 1
void sessions_close(struct sessions *s);
// The session's sequence held page[0 .. n) (those registered are remembered, up to the first that is not).
void sessions_put(struct sessions *s, uint64_t session, const struct pages *p, const int32_t *page,
                  int32_t n);
// The longest start of the session's pages that is still there and spells ids[0, n): numbers into ret_pages, returns the count.
int32_t sessions_match(struct sessions *s, uint64_t session, const struct pages *p, int32_t page_tokens,
                       const int32_t *ids, int32_t n, int32_t *ret_pages);
void sessions_forget(struct sessions *s);

#endif
