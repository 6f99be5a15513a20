// The table of table.h: linear probing, at most two thirds full, removal by shifting back, so that no tombstones pile up.
#include "orchestrator/table.h"

#include <assert.h>
#include <stdlib.h>

#include "base/mem.h"

static size_t slot_home(const struct table *t, uint64_t key)
{
    key ^= key >> 31;
    key *= 0x9E3779B97F4A7C15u;
    return (size_t)(key >> 20) & (t->cap - 1);
}

static size_t slot_find(const struct table *t, uint64_t key)
{
    size_t i = slot_home(t, key);
    while (t->slots[i].key && t->slots[i].key != key)
        i = (i + 1) & (t->cap - 1);
    return i;
}

static void table_grow(struct table *t)
{
    struct table old = *t;
    t->cap = old.cap ? old.cap * 2 : 64;
    t->slots = mem_must(t->cap, sizeof *t->slots);
    for (size_t i = 0; i < old.cap; i++)
        if (old.slots[i].key)
            t->slots[slot_find(t, old.slots[i].key)] = old.slots[i];
    free(old.slots);
}

void table_set(struct table *t, uint64_t key, void *value)
{
    assert(key != 0);
    if (3 * (t->n + 1) > 2 * t->cap)
        table_grow(t);
    size_t i = slot_find(t, key);
    t->n += t->slots[i].key == 0;
    t->slots[i] = (struct table_slot){key, value};
}

void *table_get(const struct table *t, uint64_t key)
{
    if (!t->cap || !key)
        return NULL;
    size_t i = slot_find(t, key);
    return t->slots[i].key ? t->slots[i].value : NULL;
}

void table_remove(struct table *t, uint64_t key)
{
    if (!t->cap || !key)
        return;
    size_t i = slot_find(t, key), mask = t->cap - 1;
    if (!t->slots[i].key)
        return;
    t->n--;
    for (size_t j = (i + 1) & mask; t->slots[j].key; j = (j + 1) & mask) {
        size_t home = slot_home(t, t->slots[j].key);
        if (((j - home) & mask) >= ((j - i) & mask)) { // its home is not between the hole and it
            t->slots[i] = t->slots[j];
            i = j;
        }
    }
    t->slots[i] = (struct table_slot){0};
}

void table_done(struct table *t)
{
    free(t->slots);
    *t = (struct table){0};
}
