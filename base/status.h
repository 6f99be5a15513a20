// Errors: one negative-on-error enum from one X-macro table, and a caller-owned text that grows context
// on its way up.
//
// Invariants
//   1. A function that can fail returns enum status and is OOZE_MUST_USE; outputs named ret_* are written
//      only on STATUS_OK.
//   2. The one who first sees the failure fills struct error (what, where, what to do); callers may prefix
//      it; only a process room logs it, once.
//   3. The text is valid UTF-8 whatever was put into it and wherever it was cut: it goes into JSON and messages.
#ifndef BASE_STATUS_H
#define BASE_STATUS_H

#include <stdarg.h>

#define OOZE_MUST_USE     __attribute__((warn_unused_result))
#define OOZE_PRINTF(a, b) __attribute__((format(printf, a, b)))

// name, value, text for people
#define STATUS_TABLE(X)                                                                                      \
    X(OK, 0, "ok")                                                                                           \
    X(NOMEM, -1, "out of memory")                                                                            \
    X(INVALID, -2, "invalid input")                                                                          \
    X(RANGE, -3, "value out of range")                                                                       \
    X(TYPE, -4, "wrong type")                                                                                \
    X(NOTFOUND, -5, "not found")                                                                             \
    X(EXISTS, -6, "already exists")                                                                          \
    X(IO, -7, "input/output error")                                                                          \
    X(CORRUPT, -8, "corrupt data")                                                                           \
    X(PROTOCOL, -9, "protocol violation")                                                                    \
    X(UNSUPPORTED, -10, "not supported")                                                                     \
    X(TIMEOUT, -11, "deadline passed")                                                                       \
    X(AGAIN, -12, "try again")                                                                               \
    X(BUSY, -13, "busy")                                                                                     \
    X(LIMIT, -14, "limit reached")                                                                           \
    X(PEER, -15, "peer failed")                                                                              \
    X(REFUSED, -16, "refused")                                                                               \
    X(FENCED, -17, "fenced by a newer epoch")                                                                \
    X(CANCELED, -18, "canceled")                                                                             \
    X(NUMERIC, -19, "non-finite number")                                                                     \
    X(INTERNAL, -20, "internal error")

enum status {
#define X(name, value, text) STATUS_##name = value,
    STATUS_TABLE(X)
#undef X
};

struct error {
    enum status status;
    char text[1024];
};

// "NOMEM", "INVALID", …; never NULL.
const char *status_name(enum status s);
const char *status_text(enum status s);

// Fills e (NULL allowed) and returns s, so that `return error_set(err, STATUS_X, "…")` reads as one thought.
enum status error_set(struct error *e, enum status s, const char *fmt, ...) OOZE_PRINTF(3, 4);
// Same, with ": strerror(errnum)" appended; s is chosen from errnum (ENOENT → NOTFOUND, ENOMEM → NOMEM, else
// IO).
enum status error_errno(struct error *e, int errnum, const char *fmt, ...) OOZE_PRINTF(3, 4);
// Puts "context: " before the text and returns e->status.
enum status error_prefix(struct error *e, const char *fmt, ...) OOZE_PRINTF(2, 3);

#endif
