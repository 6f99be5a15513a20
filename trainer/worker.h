// The compute thread: owns a session, takes messages from a bounded inbox in order, offers one outgoing message at a time. The I/O
// thread posts, sends and keeps the connection alive meanwhile.
#ifndef TRAINER_WORKER_H
#define TRAINER_WORKER_H

#include "trainer/session.h"

struct worker;

struct worker_load {
    int64_t version;     // of the weights held, -1 = none
    char hash[HASH_HEX]; // "" = not known
    int64_t step;        // under way, -1 = idle
    int64_t busy_ns;     // spent in the session since the start
    int64_t tokens;      // rows computed since the start
};

// Starts the thread; the session belongs to it until worker_close. wake_fd is an eventfd, written whenever worker_outgoing or
// worker_ended may have something new.
enum status worker_open(struct session *s, int wake_fd, struct worker **ret, struct error *err) OOZE_MUST_USE;
// Asks the step under way to stop at the next micro-batch, drops what waits, joins. NULL is fine. The session stays open.
void worker_close(struct worker *w);

// Copies m (WELCOME, PREPARE, COMMIT_ACK, CHECKPOINT, CHECK or TRACE) into the inbox; a repeat of a PREPARE or CHECK that still waits
// or is under way, and of a WELCOME already taken, is dropped. STATUS_LIMIT when the inbox is full.
enum status worker_post(struct worker *w, const struct msg *m, struct error *err) OOZE_MUST_USE;
// The message to send, or NULL. It stays valid, and the thread waits, until worker_sent.
const struct msg *worker_outgoing(struct worker *w);
void worker_sent(struct worker *w);
// True once the thread has ended on a failure; ret_err says which.
bool worker_ended(struct worker *w, struct error *ret_err);
void worker_load(struct worker *w, struct worker_load *ret);

#endif
