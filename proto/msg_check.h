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

// ---- words of the checks --------------------------------------------------------------------------------

struct check {
    const char *message; // name
    enum status on_fail;
    struct error *err;
    bool failed;
};

// The first failure is kept.
void check_expect(struct check *c, bool ok, const char *what);
void check_text(struct check *c, const char *s, size_t most, const char *what);
// One kv event: its own bounds.
void check_kv(struct check *c, const struct msg_kv *k);
// n tokens of one sequence: what is sampled has a logprob, a temperature and versions that do not fall within a response and are
// at most `newest`; what is not has none.
void check_sampled(struct check *c, int64_t n, const uint8_t *mask, const float *logprobs,
                   const int32_t *versions, const float *temperatures, int64_t newest);
bool check_ids_ok(const int32_t *ids, int64_t n);
bool check_logprobs_ok(const float *lp, int64_t n);

// not evaluated after a failure: later checks compute with what earlier ones have bounded
#define EXPECT(ok) check_expect(c, c->failed || (ok), "breaks " #ok)
#define TEXT(s)    check_text(c, s, MSG_STRING, #s " is no UTF-8 text within its limit")
#define JSON(s)    check_text(c, s, MSG_JSON, #s " is no UTF-8 text within its limit")

#endif
