// Group commit: many small ledger writes share one transaction, and what must wait until they are durable is run after it.
//
// Invariants
//   1. A note registered while a transaction is open runs only after the commit that makes the writes before it durable.
//   2. A transaction stays open for at most orchestrator.group_commit_ms.
//   3. A write that fails ends the run (orch_fail): the ledger is then as of the last commit, and a restart goes on from there.
#ifndef ORCHESTRATOR_JOURNAL_H
#define ORCHESTRATOR_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct orch;
typedef void journal_fn(struct orch *o, uint64_t a, uint64_t b);

struct journal_note {
    journal_fn *fn;
    uint64_t a, b;
};

struct journal {
    struct loop_timer *timer;
    bool armed;
    struct journal_note *notes;
    size_t n, cap;
};

void journal_open(struct orch *o);
void journal_close(struct orch *o);
// Opens a transaction unless one is open, and sees to it that it is committed in time.
enum status journal_begin(struct orch *o, struct error *err) OOZE_MUST_USE;
// fn(o, a, b) after the commit of what is written so far.
void journal_after(struct orch *o, journal_fn *fn, uint64_t a, uint64_t b);
// Commits now (full: fsync) and runs the notes. False when it failed; the run is then ending.
bool journal_flush(struct orch *o, bool full);

#endif
