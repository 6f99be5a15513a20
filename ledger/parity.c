// Parity checks: what they compared and what they found. One row a check, written by the orchestrator's thread with the check's answer.
#include <math.h>
#include <string.h>

#include "ledger/db.h"

const char *parity_kind_name(enum parity_kind k)
{
    static const char *const names[] = {"step", "resume", "probe"};
    return (unsigned)k < sizeof names / sizeof *names ? names[k] : "unknown";
}

enum status ledger_parity_add(struct ledger *l, const struct ledger_parity *p, struct error *err)
{
    enum status rc = db_writable(l, "parity check", err);
    if (rc)
        return rc;
    if (p->ok && !isnan(p->max_abs_diff) && !(p->max_abs_diff <= p->gate))
        return error_set(err, STATUS_INTERNAL, "parity check of step %lld passes with %g outside its gate %g",
                         (long long)p->step, p->max_abs_diff, p->gate);
    bool at = p->trajectory >= 0;
    return db_exec(
        l, err,
        "INSERT INTO parity_check(kind,step,version,peer,segments,skipped,crossing,tokens,ops,max_abs_diff,"
        "gate,ok,trajectory,attempt,segment,position,recorded,rescored,detail,checked_ms)"
        " VALUES(?1,?2,NULLIF(?3,-1),?4,?5,?6,?7,?8,?9,?10,?11,?12,NULLIF(?13,-1),NULLIF(?14,-1),"
        "NULLIF(?15,-1),NULLIF(?16,-1),?17,?18,?19,?20)",
        "iiitiiiiiddiiiiiddti", (int64_t)p->kind, p->step, p->version, p->peer, p->segments, p->skipped,
        p->crossing, p->tokens, p->ops, p->max_abs_diff, p->gate, (int64_t)p->ok, at ? p->trajectory : -1,
        (int64_t)(at ? p->attempt : -1), (int64_t)(at ? p->segment : -1), (int64_t)(at ? p->position : -1),
        at ? p->recorded : NAN, at ? p->rescored : NAN, p->detail, clock_wall_ms(l->clock));
}

static enum status has_table(struct ledger *l, bool *ret, struct error *err)
{
    int64_t n;
    enum status rc = db_int(
        l, err, 0, &n, "SELECT COUNT(*) FROM sqlite_master WHERE type='table' AND name='parity_check'", "");
    *ret = !rc && n > 0;
    return rc;
}

enum status ledger_parity_totals_read(struct ledger *l, struct ledger_parity_totals *ret, struct error *err)
{
    struct ledger_parity_totals t = {0};
    sqlite3_stmt *st;
    bool row, have;
    enum status rc = db_int(l, err, 0, &t.tokens_trained,
                            "SELECT SUM(n_sampled) FROM unit WHERE state=5 AND source=0", "");
    if (rc || (rc = has_table(l, &have, err)))
        return rc;
    if (have) { // a ledger that an older build wrote is read all the same
        if ((rc = db_prepare(
                 l, "SELECT SUM(kind<>2), SUM(kind=2), SUM(ok=0), MAX(max_abs_diff) FROM parity_check", &st,
                 err)) ||
            (rc = db_step(l, st, &row, err)))
            return rc;
        t.checks = db_col_int(st, 0, 0);
        t.probes = db_col_int(st, 1, 0);
        t.failed = db_col_int(st, 2, 0);
        t.max_abs_diff = sqlite3_column_double(st, 3);
        sqlite3_reset(st);
        if ((rc = db_prepare(
                 l,
                 "SELECT SUM(a), SUM(b), SUM(c), SUM(d) FROM (SELECT MAX(segments) a, MIN(skipped) b,"
                 " MAX(crossing) c, MAX(tokens) d FROM parity_check WHERE kind<>2 GROUP BY step)",
                 &st, err)) ||
            (rc = db_step(l, st, &row, err)))
            return rc;
        t.segments = db_col_int(st, 0, 0);
        t.skipped = db_col_int(st, 1, 0);
        t.crossing = db_col_int(st, 2, 0);
        t.tokens = db_col_int(st, 3, 0);
        sqlite3_reset(st);
    }
    *ret = t;
    return STATUS_OK;
}

enum status ledger_step_tokens(struct ledger *l, int64_t step, int64_t *ret, struct error *err)
{
    return db_int(l, err, 0, ret, "SELECT SUM(n_tokens) FROM unit WHERE step=?1", "i", step);
}

enum status ledger_step_trained_tokens(struct ledger *l, int64_t step, int64_t *ret, struct error *err)
{
    return db_int(l, err, 0, ret, "SELECT SUM(n_sampled) FROM unit WHERE step=?1 AND state=5 AND source=0",
                  "i", step);
}

enum status ledger_step_units(struct ledger *l, int64_t step, struct arena *arena,
                              struct ledger_unit_key **ret, int32_t *ret_n, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    int64_t most, n = 0;
    enum status rc = db_int(l, err, 0, &most, "SELECT COUNT(*) FROM step_batch WHERE step=?1", "i", step);
    if (rc)
        return rc;
    if (most == 0)
        return error_set(err, STATUS_NOTFOUND, "the ledger has no step %lld", (long long)step);
    struct ledger_unit_key *units = arena_alloc(arena, (size_t)most * sizeof *units);
    if (!units)
        return error_set(err, STATUS_NOMEM, "no memory for the members of step %lld", (long long)step);
    if ((rc = db_prepare(
             l,
             "SELECT trajectory, attempt FROM step_batch WHERE step=?1 GROUP BY trajectory, attempt"
             " ORDER BY MIN(ord)",
             &st, err)))
        return rc;
    db_bind(st, "i", step);
    while (!(rc = db_step(l, st, &row, err)) && row && n < most)
        units[n++] = (struct ledger_unit_key){sqlite3_column_int64(st, 0), sqlite3_column_int(st, 1)};
    sqlite3_reset(st);
    *ret = units;
    *ret_n = (int32_t)n;
    return rc;
}
