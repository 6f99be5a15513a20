// Sessions by id, with an LRU list: see sessions.h. Runs on the compute thread.
//
// Invariants
//   1. Entry i is used iff entry[i].session != 0; used entries are in exactly one bucket and in the LRU list.
//   2. A remembered (page, serial) may be stale: it is checked against pages_serial when asked for.
#include "rollout/sessions.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"

struct held {
    uint64_t serial;
    int32_t page;
};

struct entry {
    uint64_t session; // 0 = unused
    struct held *held;
    int32_t n, cap;
    int32_t chain, older, newer;
};

struct sessions {
    int32_t capacity, n_used, n_buckets;
    struct entry *entry;
    int32_t *buckets;
    int32_t oldest, newest;
};

struct sessions *sessions_open(int32_t capacity)
{
    struct sessions *s = mem_must(1, sizeof *s);
    s->capacity = capacity;
    for (s->n_buckets = 64; s->n_buckets < 2 * capacity; s->n_buckets *= 2)
        ;
    s->entry = mem_must((size_t)capacity, sizeof *s->entry);
    s->buckets = mem_must((size_t)s->n_buckets, sizeof *s->buckets);
    sessions_forget(s);
    return s;
}

void sessions_close(struct sessions *s)
{
    if (!s)
        return;
    for (int32_t i = 0; i < s->capacity; i++)
        free(s->entry[i].held);
    free(s->entry);
    free(s->buckets);
    free(s);
}

void sessions_forget(struct sessions *s)
{
    for (int32_t i = 0; i < s->n_buckets; i++)
        s->buckets[i] = -1;
    for (int32_t i = 0; i < s->capacity; i++)
        s->entry[i].session = 0;
    s->n_used = 0;
    s->oldest = s->newest = -1;
}

static int32_t *bucket_of(struct sessions *s, uint64_t session)
{
    return &s->buckets[hash64(&session, sizeof session) & (uint64_t)(s->n_buckets - 1)];
}

static int32_t find(struct sessions *s, uint64_t session)
{
    int32_t i = *bucket_of(s, session);
    while (i >= 0 && s->entry[i].session != session)
        i = s->entry[i].chain;
    return i;
}

static void list_remove(struct sessions *s, int32_t i)
{
    struct entry *e = &s->entry[i];
    *(e->older >= 0 ? &s->entry[e->older].newer : &s->oldest) = e->newer;
    *(e->newer >= 0 ? &s->entry[e->newer].older : &s->newest) = e->older;
}

static void list_append(struct sessions *s, int32_t i)
{
    struct entry *e = &s->entry[i];
    e->older = s->newest;
    e->newer = -1;
    *(s->newest >= 0 ? &s->entry[s->newest].newer : &s->oldest) = i;
    s->newest = i;
}

static int32_t take(struct sessions *s, uint64_t session)
{
    int32_t i;
    if (s->n_used < s->capacity) {
        i = s->n_used++;
    } else {
        i = s->oldest;
        list_remove(s, i);
        int32_t *at = bucket_of(s, s->entry[i].session);
        while (*at != i)
            at = &s->entry[*at].chain;
        *at = s->entry[i].chain;
    }
    int32_t *bucket = bucket_of(s, session);
    s->entry[i].session = session;
    s->entry[i].chain = *bucket;
    *bucket = i;
    list_append(s, i);
    return i;
}

void sessions_put(struct sessions *s, uint64_t session, const struct pages *p, const int32_t *page, int32_t n)
{
    int32_t i = find(s, session);
    if (i < 0) {
        i = take(s, session);
    } else {
        list_remove(s, i);
        list_append(s, i);
    }
    struct entry *e = &s->entry[i];
    if (n > e->cap) {
        e->held = mem_grow(e->held, (size_t)n, sizeof *e->held);
        e->cap = n;
    }
    for (e->n = 0; e->n < n && pages_serial(p, page[e->n]); e->n++)
        e->held[e->n] = (struct held){pages_serial(p, page[e->n]), page[e->n]};
}

int32_t sessions_match(struct sessions *s, uint64_t session, const struct pages *p, int32_t page_tokens,
                       const int32_t *ids, int32_t n, int32_t *ret_pages)
{
    int32_t i = find(s, session), found = 0;
    if (i < 0)
        return 0;
    const struct entry *e = &s->entry[i];
    for (; found < e->n && n >= page_tokens; found++, n -= page_tokens, ids += page_tokens) {
        const struct held *h = &e->held[found];
        if (pages_serial(p, h->page) != h->serial ||
            memcmp(pages_ids(p, h->page), ids, (size_t)page_tokens * sizeof *ids) != 0)
            break;
        ret_pages[found] = h->page;
    }
    return found;
}
