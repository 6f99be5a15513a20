// The pages of the KV cache: who holds which, and which full pages may be read again by whom (contract 2 and 3).
//
// A page is page_tokens consecutive rows of one sequence. While a sequence writes it, it is private. Once full it may be
// registered: its contents are then known by (the page before it, its token ids, the weights version), a prefix tree
// whose nodes are found by hash and compared exactly. A page is *pure* when one version made all its rows and all pages
// before it; only pure pages of the version now held are found by pages_match, that is, by strangers. Mixed and older
// pages can be reached again by their own session (sessions.h), which remembers them by serial number.
//
// Invariants
//   1. A page is free, held (refs > 0) or cached (refs = 0, registered, in the LRU list).
//   2. A holder of a page holds all pages before it. Holders release the last page first, so the LRU list always offers
//      a page before the one it continues.
//   3. serial is unique for ever; a page whose contents are dropped loses its serial, so a remembered (page, serial) is
//      either still those contents or detectably gone.
// Owner: the compute thread.
#ifndef ROLLOUT_PAGES_H
#define ROLLOUT_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct pages;

// n_pages >= 1, page_tokens >= 1.
enum status pages_open(int32_t n_pages, int32_t page_tokens, struct pages **ret,
                       struct error *err) OOZE_MUST_USE;
void pages_close(struct pages *p);

int32_t pages_total(const struct pages *p);
// Pages that pages_take can give: free and cached ones.
int32_t pages_available(const struct pages *p);

// A private page with one reference, or -1 when all are held. Forgets the least recently used cached page if it must.
int32_t pages_take(struct pages *p);
void pages_ref(struct pages *p, int32_t page);
// Gives one reference back. The last one leaves a registered page cached, any other free.
void pages_release(struct pages *p, int32_t page);
bool pages_held(const struct pages *p, int32_t page);

// The page is full: its rows hold ids[page_tokens], made by versions[page_tokens] (one a row), and continue `before`
// (-1 = the page starts its sequence). When a pure page with the same contents is known already, the caller's reference
// moves to that one, which is returned (the same bits, contract 3); else the page itself. A page that is not pure is
// remembered only when `own` is set: then some session will ask for it by serial.
int32_t pages_register(struct pages *p, int32_t page, int32_t before, const int32_t *ids,
                       const int32_t *versions, bool own);

// The longest chain of pure pages of `version` that spells ids[0, n): writes their numbers and returns how many. Takes no
// references: valid until the next call that changes p. With ret_next, the hash of the first page not found (its tokens
// after the chain), 0 when fewer than page_tokens ids are left.
int32_t pages_match(struct pages *p, int64_t version, const int32_t *ids, int32_t n, int32_t *ret_pages,
                    uint64_t *ret_next);

// Contents of a registered page: 0 when it is not registered.
uint64_t pages_serial(const struct pages *p, int32_t page);
const int32_t *pages_ids(const struct pages *p, int32_t page);
const int32_t *pages_versions(const struct pages *p, int32_t page);

// Forgets every cached page, and that held ones could be shared.
void pages_forget(struct pages *p);

#endif
