// The audit: every promise of contract 1 and 2 checked against what is stored, without trusting the code that
// stored it. Each rule has a name; a violation says which row breaks it. Read-only.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "ledger/db.h"
#include "ledger/reader.h"

#define LISTED 1000

struct audit {
    struct ledger *l;
    json_t *violations;
    int64_t n_violations;
    const int64_t *max_lag;
    int32_t n_stages;
    int64_t max_lag_seen;
    int64_t weights_checked;
};

static void violation(struct audit *a, const char *rule, int64_t trajectory, int64_t attempt, int64_t step,
                      const char *text)
{
    if (a->n_violations++ >= LISTED)
        return;
    json_t *v = json_pack("{s:s, s:s}", "rule", rule, "text", text);
    if (trajectory >= 0) {
        json_object_set_new(v, "trajectory", json_integer(trajectory));
        json_object_set_new(v, "attempt", json_integer(attempt));
    }
    if (step >= 0)
        json_object_set_new(v, "step", json_integer(step));
    json_array_append_new(a->violations, v);
}

// A rule as a query that returns one row (trajectory, attempt, step, text) per violation.
static const struct rule {
    const char *name;
    const char *sql;
} rules[] = {
    {"state", "SELECT trajectory, attempt, step, 'state ' || state || ' with reason ' || reason FROM unit "
              "WHERE state NOT BETWEEN 0 AND 6"
              " OR (state = 6) <> (reason > 0) OR reason NOT BETWEEN 0 AND 14"},
    {"scored", "SELECT trajectory, attempt, step, 'a rollout is ' || state || ' without a reward' FROM unit "
               "WHERE source = 0 AND state"
               " BETWEEN 2 AND 5 AND reward IS NULL"},
    {"advantage", "SELECT trajectory, attempt, step, 'in a step without an advantage' FROM unit WHERE state "
                  "BETWEEN 3 AND 5"
                  " AND advantage IS NULL"},
    {"leased-step", "SELECT trajectory, attempt, step, 'leased, but its step is not open' FROM unit u WHERE "
                    "state = 4 AND NOT EXISTS"
                    " (SELECT 1 FROM step s WHERE s.step = u.step AND s.outcome IS NULL)"},
    {"trained-step", "SELECT trajectory, attempt, step, 'trained, but its step was not applied' FROM unit u "
                     "WHERE state = 5 AND NOT EXISTS"
                     " (SELECT 1 FROM step s WHERE s.step = u.step AND s.outcome = 1)"},
    {"trained-member",
     "SELECT trajectory, attempt, step, 'trained or leased, but not a member of its step' FROM unit u WHERE "
     "state IN (4, 5)"
     " AND NOT EXISTS (SELECT 1 FROM step_batch b WHERE b.step = u.step AND b.trajectory = u.trajectory"
     " AND b.attempt = u.attempt)"},
    {"member-state",
     "SELECT b.trajectory, b.attempt, b.step, 'member of a step, but its unit is in state ' || u.state FROM "
     "step_batch b"
     " LEFT JOIN unit u ON u.trajectory = b.trajectory AND u.attempt = b.attempt WHERE u.state IS NULL"
     " OR (u.state NOT IN (4, 5) AND NOT (u.state = 6 AND u.reason = 11)) OR u.step <> b.step"},
    {"one-step",
     "SELECT trajectory, attempt, MIN(step), 'a segment is in ' || COUNT(*) || ' steps' FROM step_batch"
     " GROUP BY trajectory, attempt, segment HAVING COUNT(*) > 1"},
    {"one-step",
     "SELECT trajectory, attempt, MIN(step), 'its segments are in different steps' FROM step_batch"
     " GROUP BY trajectory, attempt HAVING MIN(step) <> MAX(step)"},
    {"all-segments",
     "SELECT b.trajectory, b.attempt, b.step, 'trained with ' || b.n || ' of ' || p.n || ' segments' FROM"
     " (SELECT trajectory, attempt, step, COUNT(*) n FROM step_batch GROUP BY 1, 2) b JOIN (SELECT "
     "trajectory, attempt,"
     " COUNT(DISTINCT segment) n FROM piece WHERE kind > 0 GROUP BY 1, 2) p USING (trajectory, attempt) "
     "WHERE b.n < p.n"},
    {"member-order",
     "SELECT -1, 0, step, 'its members are not numbered 0 … n-1' FROM step_batch GROUP BY step"
     " HAVING MIN(ord) <> 0 OR MAX(ord) <> COUNT(*) - 1"},
    {"one-attempt", "SELECT trajectory, MAX(attempt), MIN(step), 'trained in more than one attempt' FROM "
                    "unit WHERE state IN (4, 5)"
                    " AND source = 0 GROUP BY trajectory HAVING COUNT(*) > 1"},
    {"step-chain",
     "SELECT -1, 0, step, 'step without its predecessor' FROM step s WHERE step > 0 AND NOT EXISTS"
     " (SELECT 1 FROM step p WHERE p.step = s.step - 1 AND p.outcome IS NOT NULL)"},
    {"step-hash",
     "SELECT -1, 0, step, 'committed without a weights hash' FROM step WHERE outcome IS NOT NULL AND"
     " (hash IS NULL OR LENGTH(hash) <> 64)"},
    {"weights", "SELECT -1, 0, s.step, 'its weights version has another hash' FROM step s LEFT JOIN weights "
                "w ON w.version = s.step + 1"
                " WHERE s.outcome IS NOT NULL AND (w.hash IS NULL OR w.hash <> s.hash)"},
    {"checkpoint", "SELECT -1, 0, step, 'checkpoint of a step that is not committed' FROM checkpoint c WHERE "
                   "step > 0 AND NOT EXISTS"
                   " (SELECT 1 FROM step s WHERE s.step = c.step - 1 AND s.outcome IS NOT NULL)"},
    {"piece-unit",
     "SELECT DISTINCT p.trajectory, p.attempt, -1, 'tokens without a unit' FROM piece p LEFT JOIN unit u"
     " ON u.trajectory = p.trajectory AND u.attempt = p.attempt WHERE u.state IS NULL"},
    {"turn-unit",
     "SELECT DISTINCT t.trajectory, t.attempt, -1, 'a task reply without a unit' FROM turn t LEFT JOIN unit u"
     " ON u.trajectory = t.trajectory AND u.attempt = t.attempt WHERE u.state IS NULL"},
    {"token-count", "SELECT u.trajectory, u.attempt, u.step, 'counts ' || u.n_tokens || ' tokens, stores ' "
                    "|| COALESCE(p.n, 0) FROM unit u"
                    " LEFT JOIN (SELECT trajectory, attempt, SUM(n) n FROM piece GROUP BY 1, 2) p USING "
                    "(trajectory, attempt)"
                    " WHERE u.n_tokens <> COALESCE(p.n, 0)"},
    {"trained-tokens", "SELECT trajectory, attempt, step, 'trained without a sampled token' FROM unit WHERE "
                       "state = 5 AND source = 0"
                       " AND n_sampled = 0"},
    {"parity",
     "SELECT COALESCE(trajectory, -1), attempt, step, CASE WHEN kind = 2 THEN 'probe of ' || peer || "
     "': ' ELSE 'scored again: ' END || detail"
     " FROM parity_check WHERE ok = 0"},
    {"parity-step",
     "SELECT -1, 0, step, 'a parity check of a step that is not committed' FROM parity_check p "
     "WHERE kind <> 2 AND NOT EXISTS"
     " (SELECT 1 FROM step s WHERE s.step = p.step AND s.outcome IS NOT NULL)"},
    {"group-size", "SELECT -1, 0, -1, 'group ' || g.id || ' has ' || COUNT(DISTINCT u.member) || ' members "
                   "of ' || g.size FROM grp g"
                   " JOIN unit u ON u.grp = g.id GROUP BY g.id HAVING COUNT(DISTINCT u.member) > g.size"},
};

static enum status check_rule(struct audit *a, const struct rule *r, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(a->l, r->sql, &st, err);
    if (rc)
        return error_prefix(err, "rule %s", r->name);
    while (!(rc = db_step(a->l, st, &row, err)) && row)
        violation(a, r->name, db_col_int(st, 0, -1), db_col_int(st, 1, 0), db_col_int(st, 2, -1),
                  (const char *)sqlite3_column_text(st, 3));
    return rc;
}

// TITO invariants and the lag bound of every stored unit, piece by piece.
struct tito {
    int64_t trajectory, attempt;
    int32_t segment, end, turn;
    int64_t version; // of the last sampled token of this response
    int64_t step;    // of the unit, -1 = none
    int32_t stage, source, state;
};

static void tito_piece(struct audit *a, struct tito *t, sqlite3_stmt *st)
{
    char text[256];
    int64_t trajectory = sqlite3_column_int64(st, 0), attempt = sqlite3_column_int64(st, 1);
    int32_t segment = sqlite3_column_int(st, 2), pos = sqlite3_column_int(st, 3),
            turn = sqlite3_column_int(st, 4);
    int kind = sqlite3_column_int(st, 5), n = sqlite3_column_int(st, 6);
    bool fresh = trajectory != t->trajectory || attempt != t->attempt;
    if (fresh || segment != t->segment) {
        if (segment != (fresh ? 0 : t->segment + 1))
            violation(a, "tito-segments", trajectory, attempt, -1, "segments are not numbered 0, 1, 2, …");
        *t = (struct tito){trajectory,
                           attempt,
                           segment,
                           0,
                           turn,
                           -1,
                           db_col_int(st, 12, -1),
                           sqlite3_column_int(st, 13),
                           sqlite3_column_int(st, 14),
                           sqlite3_column_int(st, 15)};
    }
    if (pos != t->end) {
        snprintf(text, sizeof text, "segment %d: a piece starts at %d, the one before ends at %d", segment,
                 pos, t->end);
        violation(a, "tito-contiguous", trajectory, attempt, -1, text);
    }
    t->end = pos + n;
    bool sampled = kind == PIECE_SAMPLED;
    if (sqlite3_column_bytes(st, 7) != n * 4 || sqlite3_column_bytes(st, 8) != (sampled ? n * 4 : 0)) {
        snprintf(text, sizeof text,
                 "segment %d: %d tokens at %d with %d bytes of ids and %d bytes of logprobs", segment, n, pos,
                 sqlite3_column_bytes(st, 7), sqlite3_column_bytes(st, 8));
        violation(a, "tito-logprobs", trajectory, attempt, -1, text);
        return;
    }
    if ((kind == PIECE_TARGET) != (t->source == SOURCE_SFT) && kind != PIECE_GIVEN)
        violation(a, "tito-source", trajectory, attempt, -1,
                  "sampled tokens in SFT data or targets in a rollout");
    const int32_t *ids = sqlite3_column_blob(st, 7);
    const float *lp = sqlite3_column_blob(st, 8);
    for (int i = 0; i < n; i++) {
        if (ids[i] < 0 || (sampled && (!isfinite(lp[i]) || lp[i] > 1e-3f))) {
            snprintf(text, sizeof text, "segment %d: token at %d has id %d, logprob %g", segment, pos + i,
                     ids[i], sampled ? (double)lp[i] : 0.0);
            violation(a, "tito-values", trajectory, attempt, -1, text);
            return;
        }
    }
    if (!sampled)
        return;
    if (turn != t->turn)
        t->version = -1; // versions are non-decreasing within one response
    t->turn = turn;
    const struct ledger_span *spans = sqlite3_column_blob(st, 9);
    int n_spans = sqlite3_column_bytes(st, 9) / (int)sizeof *spans, at = 0;
    for (int i = 0; i < n_spans; i++) {
        if (spans[i].start != at || spans[i].end <= at || spans[i].version < t->version) {
            violation(a, "tito-versions", trajectory, attempt, -1, "version spans have gaps or go back");
            return;
        }
        at = spans[i].end;
        t->version = spans[i].version;
        if (t->step < 0 || (t->state != UNIT_TRAINED && t->state != UNIT_LEASED))
            continue;
        int64_t lag = t->step - spans[i].version;
        if (lag > a->max_lag_seen)
            a->max_lag_seen = lag;
        if (lag < 0 || (t->stage < a->n_stages && lag > a->max_lag[t->stage])) {
            snprintf(text, sizeof text,
                     "tokens of version %lld trained at version %lld: lag %lld, bound %lld",
                     (long long)spans[i].version, (long long)t->step, (long long)lag,
                     t->stage < a->n_stages ? (long long)a->max_lag[t->stage] : -1);
            violation(a, "lag", trajectory, attempt, t->step, text);
        }
    }
    if (at != n)
        violation(a, "tito-versions", trajectory, attempt, -1,
                  "version spans do not cover the sampled tokens");
}

static enum status check_tito(struct audit *a, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    struct tito t = {.trajectory = -1};
    enum status rc = db_prepare(
        a->l,
        "SELECT "
        "p.trajectory,p.attempt,p.segment,p.pos,p.turn,p.kind,p.n,p.ids,p.logprobs,p.spans,p.temperature,"
        "p.kv,u.step,u.stage,u.source,u.state FROM piece p JOIN unit u ON u.trajectory=p.trajectory AND"
        " u.attempt=p.attempt ORDER BY p.trajectory, p.attempt, p.segment, p.pos",
        &st, err);
    if (rc)
        return rc;
    while (!(rc = db_step(a->l, st, &row, err)) && row)
        tito_piece(a, &t, st);
    return rc;
}

// Hashes of the weights files that are still there.
static enum status check_weights(struct audit *a, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(
        a->l, "SELECT version, hash, path FROM weights WHERE path <> '' ORDER BY version", &st, err);
    if (rc)
        return rc;
    while (!(rc = db_step(a->l, st, &row, err)) && row) {
        struct file_map m;
        struct error none;
        struct weights_hash h;
        char hex[HASH_HEX], text[256];
        if (file_map_open((const char *)sqlite3_column_text(st, 2), true, &m, &none))
            continue; // pruned, or gone with /dev/shm
        weights_hash_init(&h);
        weights_hash_update(&h, m.data, m.len);
        weights_hash_final(&h, hex);
        file_map_close(&m);
        a->weights_checked++;
        if (strcmp(hex, (const char *)sqlite3_column_text(st, 1)) != 0) {
            snprintf(text, sizeof text, "weights file of version %lld hashes to %.16s…, recorded %.16s…",
                     (long long)sqlite3_column_int64(st, 0), hex, (const char *)sqlite3_column_text(st, 1));
            violation(a, "weights-file", -1, 0, sqlite3_column_int64(st, 0) - 1, text);
        }
    }
    return rc;
}

static json_t *parity_result(const struct ledger_parity_totals *t)
{
    double coverage = t->tokens_trained > 0 ? (double)t->tokens / (double)t->tokens_trained : 0;
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "checks", (json_int_t)t->checks,
                     "probes", (json_int_t)t->probes, "failed", (json_int_t)t->failed, "segments",
                     (json_int_t)t->segments, "skipped", (json_int_t)t->skipped, "refit_crossings",
                     (json_int_t)t->crossing, "tokens", (json_int_t)t->tokens, "coverage", coverage,
                     "max_abs_diff", t->max_abs_diff);
}

static json_t *audit_result(struct audit *a, const struct ledger_counts *c,
                            const struct ledger_parity_totals *parity, int64_t steps)
{
    int64_t issued = 0, in_flight = 0;
    json_t *dropped = json_object();
    for (int s = 0; s < UNIT_STATE_COUNT; s++) {
        issued += c->units[s];
        if (s != UNIT_TRAINED && s != UNIT_DROPPED)
            in_flight += c->units[s];
    }
    for (int r = 1; r < DROP_REASON_COUNT; r++)
        if (c->dropped[r])
            json_object_set_new(dropped, drop_reason_name((enum drop_reason)r), json_integer(c->dropped[r]));
    return json_pack("{s:b, s:O, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:o}", "ok", a->n_violations == 0,
                     "violations", a->violations, "issued", (json_int_t)issued, "trained",
                     (json_int_t)c->units[UNIT_TRAINED], "dropped", dropped, "in_flight",
                     (json_int_t)in_flight, "max_lag_seen", (json_int_t)a->max_lag_seen, "steps",
                     (json_int_t)steps, "weights_checked", (json_int_t)a->weights_checked, "n_violations",
                     (json_int_t)a->n_violations, "parity", parity_result(parity));
}

enum status ledger_audit(struct ledger *l, const int64_t *max_lag, int32_t n_stages, bool check_files,
                         json_t **ret, struct error *err)
{
    struct audit a = {.l = l, .max_lag = max_lag, .n_stages = n_stages, .violations = json_array()};
    struct ledger_counts c;
    struct ledger_parity_totals parity;
    int64_t steps, units, tables;
    enum status rc = db_exec(l, err, "BEGIN", ""); // one snapshot for all rules
    if (rc)
        goto out;
    rc = db_int(l, err, 0, &tables, "SELECT COUNT(*) FROM sqlite_master WHERE name='parity_check'", "");
    for (size_t i = 0; i < sizeof rules / sizeof rules[0] && !rc; i++)
        if (tables || strncmp(rules[i].name, "parity", 6) != 0) // an older build's ledger has no such table
            rc = check_rule(&a, &rules[i], err);
    if (rc || (rc = check_tito(&a, err)) || (rc = ledger_counts_read(l, &c, err)) ||
        (rc = ledger_parity_totals_read(l, &parity, err)) ||
        (rc = db_int(l, err, 0, &steps, "SELECT COUNT(*) FROM step WHERE outcome IS NOT NULL", "")) ||
        (rc = db_int(l, err, 0, &units, "SELECT COUNT(*) FROM unit", "")) ||
        (check_files && (rc = check_weights(&a, err))))
        goto out;
    int64_t sum = 0;
    for (int s = 0; s < UNIT_STATE_COUNT; s++)
        sum += c.units[s];
    if (sum != units)
        violation(&a, "sum", -1, 0, -1, "issued is not trained + dropped + in flight");
    *ret = audit_result(&a, &c, &parity, steps);
out:
    sqlite3_exec(l->db, "ROLLBACK", NULL, NULL, NULL); // ends the snapshot; nothing was written
    json_decref(a.violations);
    return rc;
}
