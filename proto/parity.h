// Between the files of proto: the messages of the parity check, CHECK and TRACE and their answers: tables and bounds.
#ifndef PROTO_PARITY_H
#define PROTO_PARITY_H

#include "proto/msg_check.h"

// Tables into the envelope's message (Ooze__V1__Check, Ooze__V1__TraceDone: headers do not name what is generated); false when the
// arena is out of memory.
bool parity_put_check(const struct msg_check *m, struct arena *arena, void *ret_check);
bool parity_put_trace(const struct msg_trace_done *m, struct arena *arena, void *ret_trace_done);
// And back, into the arena.
enum status parity_get_check(const void *check, struct arena *arena, struct msg_check *ret,
                             struct error *err) OOZE_MUST_USE;
enum status parity_get_trace(const void *trace_done, struct arena *arena, struct msg_trace_done *ret,
                             struct error *err) OOZE_MUST_USE;

// m is one of the four; anything else passes.
void parity_check_head(struct check *c, const struct msg *m);
void parity_check_arrays(struct check *c, const struct msg *m);

#endif
