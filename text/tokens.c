// tokens: the growable array that every encoder writes to. See tokens.h.
#include "text/tokens.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static void tokens_reserve(struct tokens *t, size_t more)
{
    if (t->n + more <= t->cap)
        return;
    size_t cap = t->cap ? t->cap : 64;
    while (cap < t->n + more)
        cap *= 2;
    t->ids = mem_grow(t->ids, cap, sizeof *t->ids);
    t->mask = mem_grow(t->mask, cap, sizeof *t->mask);
    t->cap = cap;
}

void tokens_push(struct tokens *t, int32_t id, uint8_t mask)
{
    if (t->n == t->cap)
        tokens_reserve(t, 1);
    t->ids[t->n] = id;
    t->mask[t->n++] = mask;
}

void tokens_append(struct tokens *t, const int32_t *ids, size_t n, uint8_t mask)
{
    if (n == 0)
        return;
    tokens_reserve(t, n);
    memcpy(t->ids + t->n, ids, n * sizeof *ids);
    memset(t->mask + t->n, mask, n);
    t->n += n;
}

void tokens_clear(struct tokens *t)
{
    t->n = 0;
}

void tokens_done(struct tokens *t)
{
    free(t->ids);
    free(t->mask);
    *t = (struct tokens){0};
}
