// Between the files of proto: the invariants of msg.h as code, the same for what leaves and for what arrives.
#ifndef PROTO_MSG_CHECK_H
#define PROTO_MSG_CHECK_H

#include <stddef.h>

#include "proto/msg.h"

// One array that travels as a frame of its own. `at` is the address of the pointer in struct msg.
struct msg_array {
    int kind;    // ARRAY_… of ooze.proto
    int element; // ELEMENT_…
    uint64_t count;
    void *at;
};
#define MSG_ARRAYS 8

// The arrays that m has by its counts, in the order of their frames; those of length 0 are left out. Returns how many.
int msg_arrays(struct msg *m, struct msg_array ret[MSG_ARRAYS]);
size_t msg_element_bytes(int element);

// Counts, ranges, strings, small tables: everything but the arrays. Fails with `s`, naming message and field.
enum status msg_check_head(const struct msg *m, enum status s, struct error *err) OOZE_MUST_USE;
// The arrays' contents; after msg_check_head, with every array pointer set.
enum status msg_check_arrays(const struct msg *m, enum status s, struct error *err) OOZE_MUST_USE;

#endif
