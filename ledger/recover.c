// Reading the ledger back: where the run stands, a stored step as PREPARE needs it, unfinished groups, and
// figures.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ledger/db.h"

static void copy_text(char *dst, size_t n, sqlite3_stmt *st, int col)
{
    const unsigned char *s = sqlite3_column_text(st, col);
    snprintf(dst, n, "%s", s ? (const char *)s : "");
}

enum status ledger_state_read(struct ledger *l, struct ledger_state *ret, struct error *err)
{
    struct ledger_state s = {.version = -1};
    sqlite3_stmt *st;
    bool row;
    int64_t n;
    enum status rc;
    if ((rc = db_int(l, err, 1, &s.next_group, "SELECT MAX(id) + 1 FROM grp", "")) ||
        (rc = db_int(l, err, 1, &s.next_trajectory, "SELECT MAX(trajectory) + 1 FROM unit", "")) ||
        (rc = db_int(l, err, 0, &s.next_step, "SELECT MAX(step) + 1 FROM step", "")) ||
        (rc = db_int(l, err, 0, &s.committed_steps, "SELECT COUNT(*) FROM step WHERE outcome IS NOT NULL",
                     "")) ||
        (rc = db_int(l, err, 0, &n, "SELECT COUNT(*) FROM step WHERE outcome IS NULL", "")))
        return rc;
    s.has_prepared = n > 0;
    if ((rc = db_prepare(l, "SELECT version, path, hash FROM weights ORDER BY version DESC LIMIT 1", &st,
                         err)) ||
        (rc = db_step(l, st, &row, err)))
        return rc;
    if (row) {
        s.version = sqlite3_column_int64(st, 0);
        copy_text(s.version_path, sizeof s.version_path, st, 1);
        copy_text(s.version_hash, sizeof s.version_hash, st, 2);
        sqlite3_reset(st);
    }
    if ((rc = db_prepare(l,
                         "SELECT step, path, hash, stage_end, eval FROM checkpoint WHERE pruned=0 ORDER BY "
                         "step DESC LIMIT 1",
                         &st, err)) ||
        (rc = db_step(l, st, &row, err)))
        return rc;
    if (row) {
        s.has_checkpoint = true;
        s.checkpoint.step = sqlite3_column_int64(st, 0);
        copy_text(s.checkpoint.path, sizeof s.checkpoint.path, st, 1);
        copy_text(s.checkpoint.hash, sizeof s.checkpoint.hash, st, 2);
        s.checkpoint.stage_end = sqlite3_column_int(st, 3);
        s.checkpoint.eval = sqlite3_column_type(st, 4) == SQLITE_NULL ? NAN : sqlite3_column_double(st, 4);
        sqlite3_reset(st);
    }
    *ret = s;
    return STATUS_OK;
}

static void piece_of_row(sqlite3_stmt *st, struct ledger_piece *p)
{
    // trajectory, attempt, segment, pos, turn, kind, n, ids, logprobs, spans, temperature, kv
    *p = (struct ledger_piece){
        .trajectory = sqlite3_column_int64(st, 0),
        .attempt = sqlite3_column_int(st, 1),
        .segment = sqlite3_column_int(st, 2),
        .offset = sqlite3_column_int(st, 3),
        .turn = sqlite3_column_int(st, 4),
        .kind = (enum piece_kind)sqlite3_column_int(st, 5),
        .n = sqlite3_column_int(st, 6),
        .ids = sqlite3_column_blob(st, 7),
        .logprobs = sqlite3_column_bytes(st, 8) ? sqlite3_column_blob(st, 8) : NULL,
        .n_spans = sqlite3_column_bytes(st, 9) / (int)sizeof(struct ledger_span),
        .spans = sqlite3_column_blob(st, 9),
        .temperature = (float)sqlite3_column_double(st, 10),
        .kv = sqlite3_column_blob(st, 11),
        .kv_bytes = sqlite3_column_bytes(st, 11),
    };
}

// Blob lengths agree with n: checked on every read, since the file may come from anywhere.
static enum status piece_sizes(sqlite3_stmt *st, struct error *err)
{
    int64_t n = sqlite3_column_int64(st, 6);
    int lp = sqlite3_column_bytes(st, 8);
    if (n <= 0 || sqlite3_column_bytes(st, 7) != n * 4 || (lp != 0 && lp != n * 4) ||
        sqlite3_column_bytes(st, 9) % (int)sizeof(struct ledger_span))
        return error_set(err, STATUS_CORRUPT,
                         "piece at %lld of trajectory %lld attempt %lld: blobs do not match its %lld tokens",
                         (long long)sqlite3_column_int64(st, 3), (long long)sqlite3_column_int64(st, 0),
                         (long long)sqlite3_column_int64(st, 1), (long long)n);
    return STATUS_OK;
}

enum status ledger_pieces(struct ledger *l, int64_t trajectory, int32_t attempt,
                          enum status (*fn)(void *ctx, const struct ledger_piece *p, struct error *err),
                          void *ctx, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(
        l,
        "SELECT trajectory,attempt,segment,pos,turn,kind,n,ids,logprobs,spans,temperature,kv FROM piece"
        " WHERE trajectory=?1 AND attempt=?2 ORDER BY segment, pos",
        &st, err);
    if (rc)
        return rc;
    db_bind(st, "ii", trajectory, (int64_t)attempt);
    while (!(rc = db_step(l, st, &row, err)) && row) {
        struct ledger_piece p;
        if ((rc = piece_sizes(st, err)))
            break;
        piece_of_row(st, &p);
        if ((rc = fn(ctx, &p, err)))
            break;
    }
    sqlite3_reset(st);
    return rc;
}

struct join {
    struct arena *arena;
    int32_t n_segments;
    struct ledger_sequence *seqs; // [n_segments]
    int32_t *filled, *kv_filled;
};

static enum status join_count(void *ctx, const struct ledger_piece *p, struct error *err)
{
    struct join *j = ctx;
    if (p->segment < 0 || p->segment > j->n_segments)
        return error_set(err, STATUS_CORRUPT, "trajectory %lld attempt %d: segment %d follows segment %d",
                         (long long)p->trajectory, p->attempt, p->segment, j->n_segments - 1);
    if (p->segment == j->n_segments)
        j->n_segments++;
    return STATUS_OK;
}

static enum status join_size(void *ctx, const struct ledger_piece *p, struct error *err)
{
    (void)err;
    struct join *j = ctx;
    j->seqs[p->segment].n += p->n;
    j->seqs[p->segment].kv_bytes += p->kv_bytes;
    return STATUS_OK;
}

static enum status join_copy(void *ctx, const struct ledger_piece *p, struct error *err)
{
    struct join *j = ctx;
    struct ledger_sequence *s = &j->seqs[p->segment];
    int32_t at = j->filled[p->segment];
    if (p->offset != at || at + p->n > s->n)
        return error_set(err, STATUS_CORRUPT,
                         "trajectory %lld attempt %d segment %d: piece at %d, expected %d",
                         (long long)p->trajectory, p->attempt, p->segment, p->offset, at);
    memcpy((int32_t *)s->ids + at, p->ids, (size_t)p->n * 4);
    for (int32_t i = 0; i < p->n; i++) {
        bool sampled = p->kind == PIECE_SAMPLED;
        ((uint8_t *)s->mask)[at + i] = p->kind != PIECE_GIVEN;
        ((float *)s->logprobs)[at + i] = sampled ? p->logprobs[i] : 0;
        ((int32_t *)s->versions)[at + i] = -1;
        ((float *)s->temperatures)[at + i] = sampled ? p->temperature : 1;
    }
    for (int32_t k = 0; k < p->n_spans; k++) {
        const struct ledger_span *span = &p->spans[k];
        if (span->start < 0 || span->end > p->n || span->start > span->end)
            return error_set(err, STATUS_CORRUPT,
                             "trajectory %lld attempt %d segment %d: version span outside its piece",
                             (long long)p->trajectory, p->attempt, p->segment);
        for (int32_t i = span->start; i < span->end; i++)
            ((int32_t *)s->versions)[at + i] = (int32_t)span->version;
    }
    if (p->kv_bytes > 0) {
        memcpy((char *)s->kv + j->kv_filled[p->segment], p->kv, (size_t)p->kv_bytes);
        j->kv_filled[p->segment] += p->kv_bytes;
    }
    j->filled[p->segment] = at + p->n;
    return STATUS_OK;
}

static enum status sequence_alloc(struct arena *a, struct ledger_sequence *s, struct error *err)
{
    size_t n = (size_t)s->n;
    s->ids = arena_alloc(a, n * 4);
    s->mask = arena_alloc(a, n);
    s->logprobs = arena_alloc(a, n * 4);
    s->versions = arena_alloc(a, n * 4);
    s->temperatures = arena_alloc(a, n * 4);
    s->kv = s->kv_bytes > 0 ? arena_alloc(a, (size_t)s->kv_bytes) : NULL;
    if (!s->ids || !s->mask || !s->logprobs || !s->versions || !s->temperatures ||
        (s->kv_bytes > 0 && !s->kv))
        return error_set(err, STATUS_NOMEM, "no memory for a sequence of %d tokens", s->n);
    return STATUS_OK;
}

enum status ledger_unit_tokens(struct ledger *l, int64_t trajectory, int32_t attempt, struct arena *arena,
                               struct ledger_sequence **ret, int32_t *ret_n, struct error *err)
{
    struct join j = {.arena = arena};
    enum status rc = ledger_pieces(l, trajectory, attempt, join_count, &j, err);
    if (rc)
        return rc;
    j.seqs = arena_zalloc(arena, (size_t)(j.n_segments ? j.n_segments : 1) * sizeof *j.seqs);
    j.filled = arena_zalloc(arena, (size_t)(j.n_segments ? j.n_segments : 1) * 2 * sizeof *j.filled);
    j.kv_filled = j.filled ? j.filled + (j.n_segments ? j.n_segments : 1) : NULL;
    if (!j.seqs || !j.filled)
        return error_set(err, STATUS_NOMEM, "no memory for %d segments", j.n_segments);
    if ((rc = ledger_pieces(l, trajectory, attempt, join_size, &j, err)))
        return rc;
    for (int32_t i = 0; i < j.n_segments; i++) {
        j.seqs[i].member = (struct ledger_member){
            .trajectory = trajectory, .attempt = attempt, .segment = i, .multiplicity = 1};
        if ((rc = sequence_alloc(arena, &j.seqs[i], err)))
            return rc;
    }
    if ((rc = ledger_pieces(l, trajectory, attempt, join_copy, &j, err)))
        return rc;
    *ret = j.seqs;
    *ret_n = j.n_segments;
    return STATUS_OK;
}

static enum status read_members(struct ledger *l, int64_t step, struct arena *arena,
                                struct ledger_step_full *f, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    int64_t n;
    enum status rc = db_int(l, err, 0, &n, "SELECT COUNT(*) FROM step_batch WHERE step=?1", "i", step);
    if (rc)
        return rc;
    f->step.n_members = (int32_t)n;
    f->sequences = arena_zalloc(arena, (size_t)n * sizeof *f->sequences);
    struct ledger_member *members = arena_zalloc(arena, (size_t)n * sizeof *members);
    if (!f->sequences || !members)
        return error_set(err, STATUS_NOMEM, "no memory for the %lld members of step %lld", (long long)n,
                         (long long)step);
    f->step.members = members;
    if ((rc = db_prepare(l,
                         "SELECT b.trajectory, b.attempt, b.segment, b.multiplicity, b.advantage, u.grp, "
                         "u.task FROM step_batch b"
                         " JOIN unit u ON u.trajectory=b.trajectory AND u.attempt=b.attempt WHERE b.step=?1 "
                         "ORDER BY b.ord",
                         &st, err)))
        return rc;
    db_bind(st, "i", step);
    int64_t i = 0;
    while (!(rc = db_step(l, st, &row, err)) && row && i < n) {
        members[i] = (struct ledger_member){
            .trajectory = sqlite3_column_int64(st, 0),
            .attempt = sqlite3_column_int(st, 1),
            .segment = sqlite3_column_int(st, 2),
            .multiplicity = sqlite3_column_int(st, 3),
            .advantage = sqlite3_column_double(st, 4),
        };
        f->sequences[i].group = sqlite3_column_int64(st, 5);
        f->sequences[i].task = sqlite3_column_int64(st, 6);
        i++;
    }
    sqlite3_reset(st);
    if (!rc && i != n)
        rc = error_set(err, STATUS_CORRUPT, "step %lld: a member without its trajectory", (long long)step);
    return rc;
}

enum status ledger_step_read(struct ledger *l, int64_t step, struct arena *arena,
                             struct ledger_step_full *ret, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    struct ledger_step_full f = {0};
    enum status rc = db_prepare(
        l,
        "SELECT "
        "stage,stage_step,stage_first,publish,checkpoint,optimizer_reset,lr,packing_seed,updates,outcome,"
        "hash FROM step WHERE step=?1",
        &st, err);
    if (rc)
        return rc;
    db_bind(st, "i", step);
    if ((rc = db_step(l, st, &row, err)))
        return rc;
    if (!row)
        return error_set(err, STATUS_NOTFOUND, "the ledger has no step %lld", (long long)step);
    f.step = (struct ledger_step){
        .step = step,
        .stage = sqlite3_column_int(st, 0),
        .stage_step = sqlite3_column_int64(st, 1),
        .stage_first = sqlite3_column_int(st, 2),
        .publish = sqlite3_column_int(st, 3),
        .checkpoint = sqlite3_column_int(st, 4),
        .optimizer_reset = sqlite3_column_int(st, 5),
        .lr = sqlite3_column_double(st, 6),
        .packing_seed = (uint64_t)sqlite3_column_int64(st, 7),
        .updates = sqlite3_column_int(st, 8),
    };
    f.committed = sqlite3_column_type(st, 9) != SQLITE_NULL;
    f.applied = sqlite3_column_int(st, 9) == 1;
    copy_text(f.hash, sizeof f.hash, st, 10);
    sqlite3_reset(st);
    if ((rc = read_members(l, step, arena, &f, err)))
        return rc;
    // Members of one unit are adjacent in practice; its segments are joined once and handed out.
    struct ledger_sequence *segs = NULL;
    int32_t n_segs = 0;
    for (int32_t i = 0; i < f.step.n_members; i++) {
        const struct ledger_member *m = &f.step.members[i];
        struct ledger_sequence *s = &f.sequences[i];
        if (i == 0 || m->trajectory != m[-1].trajectory || m->attempt != m[-1].attempt)
            if ((rc = ledger_unit_tokens(l, m->trajectory, m->attempt, arena, &segs, &n_segs, err)))
                return rc;
        if (m->segment < 0 || m->segment >= n_segs)
            return error_set(err, STATUS_CORRUPT, "step %lld: trajectory %lld has no segment %d",
                             (long long)step, (long long)m->trajectory, m->segment);
        int64_t group = s->group, task = s->task;
        *s = segs[m->segment];
        s->member = *m;
        s->group = group;
        s->task = task;
    }
    *ret = f;
    return STATUS_OK;
}

enum status ledger_open_groups(struct ledger *l, int32_t stage,
                               enum status (*fn)(void *ctx, const struct ledger_group *g,
                                                 const struct ledger_unit_row *u, struct error *err),
                               void *ctx, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(l,
                                "SELECT "
                                "g.id,g.stage,g.task,g.prompt_index,g.prompt_epoch,g.seed,g.size,u."
                                "trajectory,u.attempt,u.member,u.source,u.state,u.reason,"
                                "u.reward,u.advantage,u.truncated,u.episode,u.step,u.n_turns,u.n_tokens,u.n_"
                                "sampled,u.version_min,u.version_max"
                                " FROM grp g JOIN unit u ON u.grp=g.id WHERE g.stage=?1 AND g.id IN (SELECT "
                                "grp FROM unit WHERE stage=?1 AND state<=4)"
                                " ORDER BY g.id, u.member, u.attempt",
                                &st, err);
    if (rc)
        return rc;
    db_bind(st, "i", (int64_t)stage);
    while (!(rc = db_step(l, st, &row, err)) && row) {
        struct ledger_group g = {
            .id = sqlite3_column_int64(st, 0),
            .stage = sqlite3_column_int(st, 1),
            .task = sqlite3_column_int64(st, 2),
            .prompt_index = sqlite3_column_int64(st, 3),
            .prompt_epoch = sqlite3_column_int64(st, 4),
            .seed = (uint64_t)sqlite3_column_int64(st, 5),
            .size = sqlite3_column_int(st, 6),
        };
        struct ledger_unit_row u = {
            .unit = {.trajectory = sqlite3_column_int64(st, 7),
                     .attempt = sqlite3_column_int(st, 8),
                     .group = g.id,
                     .member = sqlite3_column_int(st, 9),
                     .stage = g.stage,
                     .task = g.task,
                     .source = (enum unit_source)sqlite3_column_int(st, 10)},
            .state = (enum unit_state)sqlite3_column_int(st, 11),
            .reason = (enum drop_reason)sqlite3_column_int(st, 12),
            .reward = sqlite3_column_double(st, 13),
            .advantage = sqlite3_column_double(st, 14),
            .truncated = sqlite3_column_int(st, 15),
            .episode = (const char *)sqlite3_column_text(st, 16),
            .leased_step = db_col_int(st, 17, -1),
            .n_turns = sqlite3_column_int(st, 18),
            .n_tokens = sqlite3_column_int(st, 19),
            .n_sampled = sqlite3_column_int(st, 20),
            .version_min = db_col_int(st, 21, -1),
            .version_max = db_col_int(st, 22, -1),
        };
        if ((rc = fn(ctx, &g, &u, err)))
            break;
    }
    sqlite3_reset(st);
    return rc;
}

enum status ledger_turns(struct ledger *l, int64_t trajectory, int32_t attempt,
                         enum status (*fn)(void *ctx, const struct ledger_turn *t, struct error *err),
                         void *ctx, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(
        l, "SELECT turn, message, reply, done FROM turn WHERE trajectory=?1 AND attempt=?2 ORDER BY turn",
        &st, err);
    if (rc)
        return rc;
    db_bind(st, "ii", trajectory, (int64_t)attempt);
    while (!(rc = db_step(l, st, &row, err)) && row) {
        struct ledger_turn t = {
            .trajectory = trajectory,
            .attempt = attempt,
            .turn = sqlite3_column_int(st, 0),
            .message = (const char *)sqlite3_column_text(st, 1),
            .reply = (const char *)sqlite3_column_text(st, 2),
            .done = sqlite3_column_int(st, 3),
        };
        if ((rc = fn(ctx, &t, err)))
            break;
    }
    sqlite3_reset(st);
    return rc;
}

enum status ledger_tasks(struct ledger *l,
                         enum status (*fn)(void *ctx, const struct ledger_task *t, struct error *err),
                         void *ctx, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(
        l, "SELECT id,name,url,origin,ratio,max_concurrency,removed FROM task ORDER BY id", &st, err);
    if (rc)
        return rc;
    while (!(rc = db_step(l, st, &row, err)) && row) {
        struct ledger_task t = {
            .id = sqlite3_column_int64(st, 0),
            .name = (const char *)sqlite3_column_text(st, 1),
            .url = (const char *)sqlite3_column_text(st, 2),
            .origin = (const char *)sqlite3_column_text(st, 3),
            .ratio = sqlite3_column_double(st, 4),
            .max_concurrency = sqlite3_column_int64(st, 5),
            .removed = sqlite3_column_int(st, 6),
        };
        if ((rc = fn(ctx, &t, err)))
            break;
    }
    sqlite3_reset(st);
    return rc;
}

enum status ledger_counts_read(struct ledger *l, struct ledger_counts *ret, struct error *err)
{
    struct ledger_counts c = {0};
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(
        l, "SELECT state, reason, COUNT(*), SUM(n_sampled) FROM unit GROUP BY state, reason", &st, err);
    if (rc)
        return rc;
    while (!(rc = db_step(l, st, &row, err)) && row) {
        int state = sqlite3_column_int(st, 0), reason = sqlite3_column_int(st, 1);
        int64_t n = sqlite3_column_int64(st, 2), tokens = sqlite3_column_int64(st, 3);
        if (state < 0 || state >= UNIT_STATE_COUNT || reason < 0 || reason >= DROP_REASON_COUNT) {
            rc = error_set(err, STATUS_CORRUPT, "the ledger has units in state %d, reason %d", state, reason);
            break;
        }
        c.units[state] += n;
        c.tokens_generated += tokens;
        if (state == UNIT_DROPPED) {
            c.dropped[reason] += n;
            c.tokens_dropped += tokens;
        } else if (state == UNIT_TRAINED) {
            c.tokens_trained += tokens;
        }
    }
    sqlite3_reset(st);
    if (!rc)
        *ret = c;
    return rc;
}
