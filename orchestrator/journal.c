// Group commit of the ledger; see journal.h for the invariants. Runs on the loop's thread.
#include "orchestrator/journal.h"

#include <stdlib.h>

#include "base/mem.h"
#include "orchestrator/orch.h"

static void journal_on_timer(void *ctx)
{
    journal_flush(ctx, false);
}

void journal_open(struct orch *o)
{
    o->journal.timer = loop_timer_open(o->loop, journal_on_timer, o);
}

void journal_close(struct orch *o)
{
    loop_timer_close(o->journal.timer);
    free(o->journal.notes);
    o->journal = (struct journal){0};
}

static void journal_arm(struct orch *o)
{
    if (o->journal.armed)
        return;
    o->journal.armed = true;
    loop_timer_set(o->journal.timer, o->cfg->orchestrator.group_commit_ms, 0);
}

enum status journal_begin(struct orch *o, struct error *err)
{
    if (ledger_in_transaction(o->ledger))
        return STATUS_OK;
    enum status rc = ledger_begin(o->ledger, err);
    if (!rc)
        journal_arm(o);
    return rc;
}

void journal_after(struct orch *o, journal_fn *fn, uint64_t a, uint64_t b)
{
    struct journal *j = &o->journal;
    if (j->n == j->cap) {
        j->cap = j->cap ? j->cap * 2 : 256;
        j->notes = mem_grow(j->notes, j->cap, sizeof *j->notes);
    }
    j->notes[j->n++] = (struct journal_note){fn, a, b};
    journal_arm(o);
}

bool journal_flush(struct orch *o, bool full)
{
    struct journal *j = &o->journal;
    struct error err;
    j->armed = false;
    loop_timer_stop(j->timer);
    if (o->failed)
        return false;
    if (ledger_in_transaction(o->ledger) && ledger_commit(o->ledger, full, &err)) {
        orch_fail(o, &err);
        return false;
    }
    // Notes may write and register more: those belong to the next commit.
    struct journal_note *notes = j->notes;
    size_t n = j->n;
    j->notes = NULL;
    j->n = j->cap = 0;
    for (size_t i = 0; i < n && !o->failed; i++)
        notes[i].fn(o, notes[i].a, notes[i].b);
    free(notes);
    return !o->failed;
}
