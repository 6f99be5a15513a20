// Steps: PREPARE and COMMIT of contract 1, weights, checkpoints, evaluations.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ledger/db.h"

// Steps are prepared in order, one at a time: only the newest can be open. (No scan: rows carry their metrics.)
static enum status next_step(struct ledger *l, int64_t *ret, bool *ret_open, struct error *err)
{
    int64_t open, n;
    enum status rc = db_int(l, err, 0, &n, "SELECT MAX(step) + 1 FROM step", "");
    if (rc)
        return rc;
    rc = db_int(l, err, 0, &open, "SELECT COUNT(*) FROM step WHERE step=?1 AND outcome IS NULL", "i", n - 1);
    *ret = n;
    *ret_open = open > 0;
    return rc;
}

enum status ledger_step_prepare(struct ledger *l, const struct ledger_step *s, struct error *err)
{
    int64_t next;
    bool open;
    enum status rc = db_writable(l, "step prepare", err);
    if (rc || (rc = next_step(l, &next, &open, err)))
        return rc;
    if (open)
        return error_set(err, STATUS_INTERNAL, "step %lld: step %lld is prepared and not committed",
                         (long long)s->step, (long long)next - 1);
    if (s->step != next)
        return error_set(err, STATUS_INTERNAL, "step %lld is not the next one, %lld", (long long)s->step,
                         (long long)next);
    if (s->n_members <= 0 || !isfinite(s->lr))
        return error_set(err, STATUS_INTERNAL, "step %lld has no members or no learning rate",
                         (long long)s->step);
    if ((rc = db_exec(l, err,
                      "INSERT INTO "
                      "step(step,stage,stage_step,stage_first,publish,checkpoint,optimizer_reset,lr,packing_"
                      "seed,updates,"
                      "prepared_ms) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
                      "iiiiiiidiii", s->step, (int64_t)s->stage, s->stage_step, (int64_t)s->stage_first,
                      (int64_t)s->publish, (int64_t)s->checkpoint, (int64_t)s->optimizer_reset, s->lr,
                      (int64_t)s->packing_seed, (int64_t)s->updates, clock_wall_ms(l->clock))))
        return rc;
    for (int32_t i = 0; i < s->n_members; i++) {
        const struct ledger_member *m = &s->members[i];
        if (m->multiplicity < 1 || !isfinite(m->advantage))
            return error_set(err, STATUS_INTERNAL,
                             "step %lld: member %d has multiplicity %d or no finite advantage",
                             (long long)s->step, i, m->multiplicity);
        if ((rc = db_exec(l, err, "INSERT INTO step_batch VALUES(?1,?2,?3,?4,?5,?6,?7)", "iiiiiid", s->step,
                          (int64_t)i, m->trajectory, (int64_t)m->attempt, (int64_t)m->segment,
                          (int64_t)m->multiplicity, m->advantage)))
            return rc;
        if ((rc = db_exec(l, err,
                          "UPDATE unit SET state=4, step=?3 WHERE trajectory=?1 AND attempt=?2"
                          " AND (state=3 OR (state=4 AND step=?3))",
                          "iii", m->trajectory, (int64_t)m->attempt, s->step)))
            return rc;
        if (db_changes(l) != 1) {
            ledger_rollback(l);
            return error_set(err, STATUS_INTERNAL, "step %lld: trajectory %lld attempt %d is not ready",
                             (long long)s->step, (long long)m->trajectory, m->attempt);
        }
    }
    return STATUS_OK;
}

static enum status known_hash(struct ledger *l, const char *sql, int64_t key, const char *hash,
                              const char *what, bool *ret_known, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(l, sql, &st, err);
    if (rc)
        return rc;
    db_bind(st, "i", key);
    if ((rc = db_step(l, st, &row, err)))
        return rc;
    *ret_known = row;
    if (row && strcmp((const char *)sqlite3_column_text(st, 0), hash) != 0)
        rc = error_set(
            err, STATUS_CORRUPT,
            "%s %lld: recorded weights hash %s, now %s: the trainer did not compute the same bits twice",
            what, (long long)key, (const char *)sqlite3_column_text(st, 0), hash);
    sqlite3_reset(st);
    return rc;
}

enum status ledger_weights_set(struct ledger *l, const struct ledger_weights *w, struct error *err)
{
    bool known;
    enum status rc = db_writable(l, "weights", err);
    if (rc || (rc = known_hash(l, "SELECT hash FROM weights WHERE version=?1", w->version, w->hash, "version",
                               &known, err)))
        return rc;
    return db_exec(l, err,
                   "INSERT INTO weights VALUES(?1,?2,?3,?4,?5) ON CONFLICT(version) DO UPDATE SET"
                   " path=CASE WHEN ?3='' THEN path ELSE ?3 END, bytes=MAX(bytes,?4)",
                   "ittii", w->version, w->hash, w->path, w->bytes, clock_wall_ms(l->clock));
}

enum status ledger_weights_read(struct ledger *l, int64_t version, struct ledger_weights_file *ret,
                                struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(l, "SELECT path, hash FROM weights WHERE version=?1 AND path<>''", &st, err);
    if (rc)
        return rc;
    db_bind(st, "i", version);
    if ((rc = db_step(l, st, &row, err)))
        return rc;
    if (!row)
        return error_set(err, STATUS_NOTFOUND, "weights %lld were never published", (long long)version);
    snprintf(ret->path, sizeof ret->path, "%s", (const char *)sqlite3_column_text(st, 0));
    snprintf(ret->hash, sizeof ret->hash, "%s", (const char *)sqlite3_column_text(st, 1));
    sqlite3_reset(st);
    return STATUS_OK;
}

enum status ledger_step_commit(struct ledger *l, int64_t step, bool applied, const char *reason,
                               const struct ledger_weights *w, const char *metrics_json, struct error *err)
{
    int64_t exists;
    bool known;
    enum status rc = db_writable(l, "step commit", err);
    if (rc)
        return rc;
    if ((rc = known_hash(l, "SELECT hash FROM step WHERE step=?1 AND outcome IS NOT NULL", step, w->hash,
                         "step", &known, err)))
        return rc;
    if (known) {
        if ((rc = ledger_weights_set(l, w, err)))
            return rc;
        return error_set(err, STATUS_EXISTS, "step %lld is committed already", (long long)step);
    }
    if ((rc = db_int(l, err, 0, &exists, "SELECT COUNT(*) FROM step WHERE step=?1", "i", step)))
        return rc;
    if (!exists || w->version != step + 1)
        return error_set(err, STATUS_INTERNAL, "commit of step %lld with version %lld: never prepared so",
                         (long long)step, (long long)w->version);
    if ((rc = db_exec(
             l, err,
             "UPDATE step SET outcome=?2, reason=?3, hash=?4, metrics=?5, committed_ms=?6 WHERE step=?1",
             "iittti", step, (int64_t)(applied ? 1 : 2), reason, w->hash, metrics_json,
             clock_wall_ms(l->clock))))
        return rc;
    if ((rc = db_exec(l, err, "UPDATE unit SET state=?2, reason=?3, ended_ms=?4 WHERE step=?1 AND state=4",
                      "iiii", step, (int64_t)(applied ? UNIT_TRAINED : UNIT_DROPPED),
                      (int64_t)(applied ? DROP_NONE : DROP_STEP_REJECTED), clock_wall_ms(l->clock))))
        return rc;
    return ledger_weights_set(l, w, err);
}

enum status ledger_checkpoint_add(struct ledger *l, const struct ledger_checkpoint *c, struct error *err)
{
    enum status rc = db_writable(l, "checkpoint", err);
    if (rc)
        return rc;
    return db_exec(
        l, err,
        "INSERT INTO checkpoint VALUES(?1,?2,?3,?4,?5,?6,0) ON CONFLICT(step) DO UPDATE SET path=?2, hash=?3,"
        " stage_end=MAX(stage_end,?4), eval=COALESCE(?5,eval), pruned=0",
        "ittidi", c->step, c->path, c->hash, (int64_t)c->stage_end, c->eval, clock_wall_ms(l->clock));
}

enum status ledger_checkpoint_pruned(struct ledger *l, int64_t step, struct error *err)
{
    enum status rc = db_writable(l, "checkpoint prune", err);
    if (rc)
        return rc;
    return db_exec(l, err, "UPDATE checkpoint SET pruned=1 WHERE step=?1", "i", step);
}

enum status ledger_eval_add(struct ledger *l, const struct ledger_eval *e, struct error *err)
{
    enum status rc = db_writable(l, "eval", err);
    if (rc)
        return rc;
    if (!isfinite(e->reward))
        return error_set(err, STATUS_NUMERIC, "eval %s: reward is not finite", e->label);
    return db_exec(l, err, "INSERT OR REPLACE INTO eval VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9)", "tiiiiidii",
                   e->label, e->version, (int64_t)e->stage, e->task, e->prompt_index, (int64_t)e->sample,
                   e->reward, (int64_t)e->success, (int64_t)e->n_tokens);
}
