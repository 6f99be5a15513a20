// The ledger as JSON for people: evaluations, one trajectory token by token, step metrics, rewards.
// Read-only.
#include <math.h>
#include <string.h>

#include "ledger/db.h"
#include "ledger/reader.h"

static json_t *column_json(sqlite3_stmt *st, int i)
{
    switch (sqlite3_column_type(st, i)) {
    case SQLITE_INTEGER:
        return json_integer(sqlite3_column_int64(st, i));
    case SQLITE_FLOAT:
        return json_real(sqlite3_column_double(st, i));
    case SQLITE_TEXT:
        return json_string((const char *)sqlite3_column_text(st, i));
    default:
        return json_null();
    }
}

static json_t *row_object(sqlite3_stmt *st)
{
    json_t *o = json_object();
    for (int i = 0; i < sqlite3_column_count(st); i++)
        json_object_set_new(o, sqlite3_column_name(st, i), column_json(st, i));
    return o;
}

// Text columns that hold JSON become JSON.
static void unpack_member(json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    json_t *v = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
    if (v)
        json_object_set_new(o, key, v);
}

enum status ledger_eval_summary(struct ledger *l, json_t **ret, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    // pass@k with k = all samples of a prompt: solved by at least one; success: share of single answers that
    // solve it.
    enum status rc = db_prepare(
        l,
        "SELECT label, stage, MIN(v0), MAX(v1), COALESCE(t.name, 'task-' || x.task), AVG(mean), AVG(any_ok), "
        "SUM(ok), SUM(n), MAX(n), AVG(len)"
        " FROM (SELECT label, stage, task, prompt_index, MIN(version) v0, MAX(version) v1, AVG(reward) mean, "
        "MAX(success) any_ok,"
        "  SUM(success) ok, COUNT(*) n, AVG(n_tokens) len FROM eval GROUP BY label, task, prompt_index) x"
        " LEFT JOIN task t ON t.id = x.task GROUP BY label, x.task ORDER BY MIN(v0), stage, label, x.task",
        &st, err);
    if (rc)
        return rc;
    json_t *out = json_array(), *entry = NULL;
    const char *last = "";
    while (!(rc = db_step(l, st, &row, err)) && row) {
        const char *label = (const char *)sqlite3_column_text(st, 0);
        if (!entry || strcmp(label, last) != 0) {
            entry = json_pack("{s:s, s:I, s:I, s:I, s:{}}", "label", label, "stage",
                              (json_int_t)sqlite3_column_int64(st, 1), "version",
                              (json_int_t)sqlite3_column_int64(st, 2), "version_max",
                              (json_int_t)sqlite3_column_int64(st, 3), "tasks");
            json_array_append_new(out, entry);
            last = json_string_value(json_object_get(entry, "label"));
        }
        double n = sqlite3_column_double(st, 8);
        json_object_set_new(json_object_get(entry, "tasks"), (const char *)sqlite3_column_text(st, 4),
                            json_pack("{s:f, s:f, s:I, s:I, s:f, s:f}", "success",
                                      sqlite3_column_double(st, 7) / n, "mean", sqlite3_column_double(st, 5),
                                      "n", (json_int_t)n, "samples", (json_int_t)sqlite3_column_int64(st, 9),
                                      "pass_at_samples", sqlite3_column_double(st, 6), "tokens",
                                      sqlite3_column_double(st, 10)));
    }
    if (rc)
        json_decref(out);
    else
        *ret = out;
    return rc;
}

static enum status show_piece(void *ctx, const struct ledger_piece *p, struct error *err)
{
    (void)err;
    json_t *segments = ctx;
    static const char *const kinds[] = {"given", "sampled", "target"};
    while (json_array_size(segments) <= (size_t)p->segment)
        json_array_append_new(segments, json_pack("{s:[]}", "tokens"));
    json_t *tokens = json_object_get(json_array_get(segments, (size_t)p->segment), "tokens");
    int32_t span = 0;
    for (int32_t i = 0; i < p->n; i++) {
        json_t *t = json_pack("{s:i, s:i, s:i, s:s, s:i}", "pos", p->offset + i, "id", p->ids[i], "turn",
                              p->turn, "kind", kinds[p->kind], "mask", p->kind != PIECE_GIVEN);
        if (p->kind == PIECE_SAMPLED) {
            while (span + 1 < p->n_spans && p->spans[span].end <= i)
                span++;
            json_object_set_new(t, "logprob", json_real((double)p->logprobs[i]));
            json_object_set_new(t, "version", json_integer(p->spans[span].version));
            json_object_set_new(t, "temperature", json_real((double)p->temperature));
        }
        json_array_append_new(tokens, t);
    }
    return STATUS_OK;
}

static enum status show_turn(void *ctx, const struct ledger_turn *t, struct error *err)
{
    (void)err;
    json_t *o = json_pack("{s:i, s:s?, s:s, s:b}", "turn", t->turn, "message", t->message, "reply", t->reply,
                          "done", t->done);
    unpack_member(o, "message");
    unpack_member(o, "reply");
    json_array_append_new(ctx, o);
    return STATUS_OK;
}

enum status ledger_show_unit(struct ledger *l, int64_t trajectory, int32_t attempt, json_t **ret,
                             struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(
        l,
        "SELECT u.trajectory, u.attempt, u.state, u.reason, u.detail, u.grp AS \"group\", u.member, u.stage,"
        " t.name AS task, g.prompt_index, g.prompt_epoch, u.source, u.reward, u.components, u.truncated,"
        " u.advantage, u.step, b.multiplicity, u.n_turns, u.n_tokens, u.n_sampled, u.version_min, "
        "u.version_max,"
        " u.issued_ms, u.scored_ms, u.ended_ms FROM unit u LEFT JOIN grp g ON g.id = u.grp LEFT JOIN task t"
        " ON t.id = u.task LEFT JOIN step_batch b ON b.step = u.step AND b.trajectory = u.trajectory"
        " AND b.attempt = u.attempt WHERE u.trajectory=?1 AND u.attempt=?2 LIMIT 1",
        &st, err);
    if (rc)
        return rc;
    db_bind(st, "ii", trajectory, (int64_t)attempt);
    if ((rc = db_step(l, st, &row, err)))
        return rc;
    if (!row)
        return error_set(err, STATUS_NOTFOUND, "the ledger has no trajectory %lld with attempt %d",
                         (long long)trajectory, attempt);
    json_t *o = row_object(st);
    json_object_set_new(o, "state", json_string(unit_state_name((enum unit_state)sqlite3_column_int(st, 2))));
    json_object_set_new(o, "reason",
                        json_string(drop_reason_name((enum drop_reason)sqlite3_column_int(st, 3))));
    json_object_set_new(o, "source",
                        json_string(sqlite3_column_int(st, 11) == SOURCE_SFT ? "sft" : "rollout"));
    sqlite3_reset(st);
    unpack_member(o, "components");
    json_t *segments = json_array(), *turns = json_array();
    json_object_set_new(o, "segments", segments);
    json_object_set_new(o, "turns", turns);
    if ((rc = ledger_pieces(l, trajectory, attempt, show_piece, segments, err)) ||
        (rc = ledger_turns(l, trajectory, attempt, show_turn, turns, err))) {
        json_decref(o);
        return rc;
    }
    *ret = o;
    return STATUS_OK;
}

// Rows newest first in SQL, newest last in the answer.
static enum status collect_reversed(struct ledger *l, sqlite3_stmt *st, void (*polish)(json_t *),
                                    json_t **ret, struct error *err)
{
    bool row;
    enum status rc;
    json_t *out = json_array();
    while (!(rc = db_step(l, st, &row, err)) && row) {
        json_t *o = row_object(st);
        if (polish)
            polish(o);
        json_array_insert_new(out, 0, o);
    }
    if (rc)
        json_decref(out);
    else
        *ret = out;
    return rc;
}

static void polish_step(json_t *o)
{
    unpack_member(o, "metrics");
    json_object_set_new(o, "applied", json_boolean(json_integer_value(json_object_get(o, "outcome")) == 1));
    json_object_del(o, "outcome");
}

enum status ledger_step_metrics(struct ledger *l, int32_t limit, json_t **ret, struct error *err)
{
    sqlite3_stmt *st;
    enum status rc = db_prepare(l,
                                "SELECT step, stage, stage_step, lr, outcome, reason, hash, metrics, "
                                "prepared_ms, committed_ms FROM step"
                                " WHERE outcome IS NOT NULL ORDER BY step DESC LIMIT ?1",
                                &st, err);
    if (rc)
        return rc;
    db_bind(st, "i", (int64_t)limit);
    return collect_reversed(l, st, polish_step, ret, err);
}

static void polish_unit(json_t *o)
{
    json_object_set_new(
        o, "state",
        json_string(unit_state_name((enum unit_state)json_integer_value(json_object_get(o, "state")))));
    json_object_set_new(
        o, "reason",
        json_string(drop_reason_name((enum drop_reason)json_integer_value(json_object_get(o, "reason")))));
}

enum status ledger_list_units(struct ledger *l, int32_t limit, json_t **ret, struct error *err)
{
    sqlite3_stmt *st;
    enum status rc =
        db_prepare(l,
                   "SELECT u.trajectory, u.attempt, u.state, u.reason, t.name AS task, u.grp AS \"group\", "
                   "u.member, u.stage,"
                   " u.reward, u.advantage, u.step, u.n_turns, u.n_tokens, u.n_sampled, u.version_min, "
                   "u.version_max FROM unit u"
                   " LEFT JOIN task t ON t.id = u.task ORDER BY u.trajectory DESC, u.attempt DESC LIMIT ?1",
                   &st, err);
    if (rc)
        return rc;
    db_bind(st, "i", (int64_t)limit);
    return collect_reversed(l, st, polish_unit, ret, err);
}

static void polish_parity(json_t *o)
{
    json_object_set_new(
        o, "kind",
        json_string(parity_kind_name((enum parity_kind)json_integer_value(json_object_get(o, "kind")))));
    json_object_set_new(o, "ok", json_boolean(json_integer_value(json_object_get(o, "ok"))));
}

enum status ledger_parity_list(struct ledger *l, int32_t limit, json_t **ret, struct error *err)
{
    sqlite3_stmt *st;
    int64_t tables;
    enum status rc =
        db_int(l, err, 0, &tables, "SELECT COUNT(*) FROM sqlite_master WHERE name='parity_check'", "");
    if (rc)
        return rc;
    if (!tables) { // an older build's ledger
        *ret = json_array();
        return STATUS_OK;
    }
    if ((rc = db_prepare(
             l,
             "SELECT kind, step, version, peer, segments, skipped, crossing, tokens, ops, max_abs_diff,"
             " gate, ok, trajectory, attempt, segment, position, recorded, rescored, detail, checked_ms"
             " FROM parity_check ORDER BY id DESC LIMIT ?1",
             &st, err)))
        return rc;
    db_bind(st, "i", (int64_t)limit);
    return collect_reversed(l, st, polish_parity, ret, err);
}

enum status ledger_rewards(struct ledger *l, int32_t limit, json_t **ret, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(
        l,
        "SELECT COALESCE(t.name, 'task-' || u.task), u.reward FROM (SELECT trajectory, attempt, task, reward "
        "FROM unit"
        " WHERE reward IS NOT NULL AND source = 0 ORDER BY trajectory DESC LIMIT ?1) u LEFT JOIN task t"
        " ON t.id = u.task ORDER BY u.trajectory, u.attempt",
        &st, err);
    if (rc)
        return rc;
    db_bind(st, "i", (int64_t)limit);
    json_t *out = json_object();
    while (!(rc = db_step(l, st, &row, err)) && row) {
        const char *task = (const char *)sqlite3_column_text(st, 0);
        json_t *o = json_object_get(out, task);
        if (!o) {
            o = json_pack("{s:f, s:f, s:i, s:[]}", "mean", 0.0, "last", 0.0, "n", 0, "series");
            json_object_set_new(out, task, o);
        }
        double r = sqlite3_column_double(st, 1);
        json_int_t n = json_integer_value(json_object_get(o, "n")) + 1;
        double mean = json_real_value(json_object_get(o, "mean"));
        json_object_set_new(o, "n", json_integer(n));
        json_object_set_new(o, "mean", json_real(mean + (r - mean) / (double)n));
        json_object_set_new(o, "last", json_real(r));
        json_array_append_new(json_object_get(o, "series"), json_real(r));
    }
    if (rc)
        json_decref(out);
    else
        *ret = out;
    return rc;
}
