// Between the files of proto: the messages of the parity check, CHECK and TRACE and their answers: tables and bounds.
#ifndef PROTO_PARITY_H
#define PROTO_PARITY_H

#include "proto/msg_check.h"
#include "proto/ooze.pb-c.h"

// Tables into the envelope's message; false when the arena is out of memory.
bool parity_put_check(const struct msg_check *m, struct arena *arena, Ooze__V1__Check *out);
bool parity_put_trace(const struct msg_trace_done *m, struct arena *arena, Ooze__V1__TraceDone *out);
// And back, into the arena.
enum status parity_get_check(const Ooze__V1__Check *in, struct arena *arena, struct msg_check *ret,
                             struct error *err) OOZE_MUST_USE;
enum status parity_get_trace(const Ooze__V1__TraceDone *in, struct arena *arena, struct msg_trace_done *ret,
                             struct error *err) OOZE_MUST_USE;

// m is one of the four; anything else passes.
void parity_check_head(struct check *c, const struct msg *m);
void parity_check_arrays(struct check *c, const struct msg *m);

#endif
