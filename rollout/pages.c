// Reference counts, prefix tree and LRU list of the KV pages: see pages.h. Runs on the compute thread.
#include "rollout/pages.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"

struct page {
    uint64_t serial; // of the registered contents, 0 = private
    uint64_t before; // serial of the page before it, 0 = first of its sequence
    int64_t version; // that made it, when pure; else -1
    int32_t refs;
    int32_t older, newer; // LRU list while cached; `newer` links the free list
    int32_t chain;        // next in its hash bucket
};

struct pages {
    int32_t n, page_tokens, n_buckets; // n_buckets: a power of two
    struct page *page;
    int32_t *ids;      // [n, page_tokens]
    int32_t *versions; // [n, page_tokens]
    int32_t *buckets;  // first page of each, -1 = none
    int32_t free_head, n_free;
    int32_t oldest, newest, n_cached;
    uint64_t next_serial;
};

enum status pages_open(int32_t n_pages, int32_t page_tokens, struct pages **ret, struct error *err)
{
    if (n_pages < 1 || page_tokens < 1)
        return error_set(err, STATUS_RANGE, "a KV cache needs at least one page, not %d pages of %d tokens",
                         n_pages, page_tokens);
    struct pages *p = mem_must(1, sizeof *p);
    p->n = n_pages;
    p->page_tokens = page_tokens;
    for (p->n_buckets = 64; p->n_buckets < 2 * n_pages; p->n_buckets *= 2)
        ;
    size_t rows = (size_t)n_pages * (size_t)page_tokens;
    p->page = mem_must((size_t)n_pages, sizeof *p->page);
    p->buckets = mem_must((size_t)p->n_buckets, sizeof *p->buckets);
    p->ids = mem_alloc(rows * sizeof *p->ids);
    p->versions = mem_alloc(rows * sizeof *p->versions);
    if (!p->ids || !p->versions) {
        pages_close(p);
        return error_set(err, STATUS_NOMEM, "no memory for the index of %d KV pages", n_pages);
    }
    for (int32_t i = 0; i < p->n_buckets; i++)
        p->buckets[i] = -1;
    p->free_head = p->oldest = p->newest = -1;
    for (int32_t i = n_pages - 1; i >= 0; i--) {
        p->page[i] = (struct page){.version = -1, .newer = p->free_head, .chain = -1};
        p->free_head = i;
    }
    p->n_free = n_pages;
    p->next_serial = 1;
    *ret = p;
    return STATUS_OK;
}

void pages_close(struct pages *p)
{
    if (!p)
        return;
    free(p->page);
    free(p->buckets);
    mem_free(p->ids);
    mem_free(p->versions);
    free(p);
}

int32_t pages_total(const struct pages *p)
{
    return p->n;
}

int32_t pages_available(const struct pages *p)
{
    return p->n_free + p->n_cached;
}

static uint64_t key_of(const struct pages *p, uint64_t before, int64_t version, const int32_t *ids)
{
    uint64_t key = hash64_seed(ids, (size_t)p->page_tokens * sizeof *ids,
                               before * 0x9E3779B97F4A7C15u ^ (uint64_t)version);
    return key ? key : 1;
}

static int32_t *bucket_of(struct pages *p, uint64_t key)
{
    return &p->buckets[key & (uint64_t)(p->n_buckets - 1)];
}

static int32_t find_pure(struct pages *p, uint64_t key, uint64_t before, int64_t version, const int32_t *ids)
{
    for (int32_t i = *bucket_of(p, key); i >= 0; i = p->page[i].chain) {
        const struct page *g = &p->page[i];
        if (g->before == before && g->version == version &&
            memcmp(pages_ids(p, i), ids, (size_t)p->page_tokens * sizeof *ids) == 0)
            return i;
    }
    return -1;
}

static void list_remove(struct pages *p, int32_t i)
{
    struct page *g = &p->page[i];
    *(g->older >= 0 ? &p->page[g->older].newer : &p->oldest) = g->newer;
    *(g->newer >= 0 ? &p->page[g->newer].older : &p->newest) = g->older;
    p->n_cached--;
}

// The contents are no longer known under any name.
static void forget(struct pages *p, int32_t i)
{
    struct page *g = &p->page[i];
    if (g->version >= 0) {
        int32_t *at = bucket_of(p, key_of(p, g->before, g->version, pages_ids(p, i)));
        while (*at != i)
            at = &p->page[*at].chain;
        *at = g->chain;
    }
    g->serial = g->before = 0;
    g->version = -1;
    g->chain = -1;
}

int32_t pages_take(struct pages *p)
{
    int32_t i = p->free_head;
    if (i >= 0) {
        p->free_head = p->page[i].newer;
        p->n_free--;
    } else {
        i = p->oldest;
        if (i < 0)
            return -1;
        list_remove(p, i);
        forget(p, i);
    }
    p->page[i].refs = 1;
    return i;
}

void pages_ref(struct pages *p, int32_t page)
{
    struct page *g = &p->page[page];
    if (g->refs++ == 0)
        list_remove(p, page); // free pages are never referenced: only pages_take hands those out
}

void pages_release(struct pages *p, int32_t page)
{
    struct page *g = &p->page[page];
    assert(g->refs > 0);
    if (--g->refs > 0)
        return;
    if (g->serial) {
        g->older = p->newest;
        g->newer = -1;
        *(p->newest >= 0 ? &p->page[p->newest].newer : &p->oldest) = page;
        p->newest = page;
        p->n_cached++;
    } else {
        g->newer = p->free_head;
        p->free_head = page;
        p->n_free++;
    }
}

bool pages_held(const struct pages *p, int32_t page)
{
    return p->page[page].refs > 0;
}

// The version that made the page and all before it, or -1.
static int64_t purity(const struct pages *p, int32_t before, const int32_t *versions)
{
    int64_t v = versions[0];
    for (int32_t i = 1; i < p->page_tokens; i++)
        if (versions[i] != v)
            return -1;
    return before < 0 || p->page[before].version == v ? v : -1;
}

int32_t pages_register(struct pages *p, int32_t page, int32_t before, const int32_t *ids,
                       const int32_t *versions, bool own)
{
    struct page *g = &p->page[page];
    assert(g->refs == 1 && g->serial == 0);
    int64_t version = purity(p, before, versions);
    if (version < 0 && !own)
        return page;
    uint64_t parent = before >= 0 ? p->page[before].serial : 0;
    uint64_t key = 0;
    if (version >= 0) {
        key = key_of(p, parent, version, ids);
        int32_t same = find_pure(p, key, parent, version, ids);
        if (same >= 0) {
            pages_ref(p, same);
            pages_release(p, page);
            return same;
        }
    }
    size_t bytes = (size_t)p->page_tokens * sizeof *ids;
    memcpy(p->ids + (int64_t)page * p->page_tokens, ids, bytes);
    memcpy(p->versions + (int64_t)page * p->page_tokens, versions, bytes);
    g->serial = p->next_serial++;
    g->before = parent;
    g->version = version;
    if (version >= 0) {
        int32_t *bucket = bucket_of(p, key);
        g->chain = *bucket;
        *bucket = page;
    }
    return page;
}

int32_t pages_match(struct pages *p, int64_t version, const int32_t *ids, int32_t n, int32_t *ret_pages,
                    uint64_t *ret_next)
{
    uint64_t before = 0;
    int32_t found = 0;
    if (ret_next)
        *ret_next = 0;
    for (; n >= p->page_tokens; n -= p->page_tokens, ids += p->page_tokens) {
        uint64_t key = key_of(p, before, version, ids);
        int32_t i = find_pure(p, key, before, version, ids);
        if (i < 0) {
            if (ret_next)
                *ret_next = key;
            break;
        }
        ret_pages[found++] = i;
        before = p->page[i].serial;
    }
    return found;
}

uint64_t pages_serial(const struct pages *p, int32_t page)
{
    return p->page[page].serial;
}

const int32_t *pages_ids(const struct pages *p, int32_t page)
{
    return p->ids + (int64_t)page * p->page_tokens;
}

const int32_t *pages_versions(const struct pages *p, int32_t page)
{
    return p->versions + (int64_t)page * p->page_tokens;
}

void pages_forget(struct pages *p)
{
    while (p->oldest >= 0) {
        int32_t i = p->oldest;
        list_remove(p, i);
        forget(p, i);
        p->page[i].newer = p->free_head;
        p->free_head = i;
        p->n_free++;
    }
    for (int32_t i = 0; i < p->n; i++)
        if (p->page[i].serial)
            forget(p, i);
}
