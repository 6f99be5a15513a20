// A hash table from 64-bit keys to pointers: jobs by id, episodes by serial. Open addressing; one thread owns it. Key 0 is not used.
#ifndef ORCHESTRATOR_TABLE_H
#define ORCHESTRATOR_TABLE_H

#include <stddef.h>
#include <stdint.h>

struct table_slot {
    uint64_t key; // 0 = empty
    void *value;
};

struct table { // all zero = empty and usable
    struct table_slot *slots;
    size_t cap, n;
};

void table_set(struct table *t, uint64_t key, void *value);
void *table_get(const struct table *t, uint64_t key); // NULL when absent
void table_remove(struct table *t, uint64_t key);
void table_done(struct table *t);

#endif
