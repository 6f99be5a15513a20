// SFT rows; see sft.h. Runs on the loop's thread; a file is read when the run begins, to refuse it
// before anything is paid for, and when its stage begins.
#include "orchestrator/sft.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "orchestrator/orch.h"
#include "rl/shuffle.h"

#define FILE_MAX ((size_t)8 << 30)

static enum status row_read(struct sft_data *d, const char *text, size_t n, const struct chat *c,
                            int64_t max_tokens, struct error *err)
{
    json_t *j = NULL;
    size_t at = d->tokens.n;
    enum status rc = json_parse(text, n, "row", &j, err);
    if (rc)
        return rc;
    const json_t *messages = json_object_get(j, "messages"), *tools = json_object_get(j, "tools");
    if (!json_is_array(messages) || json_array_size(messages) == 0) {
        rc = error_set(err, STATUS_INVALID, "\"messages\" must be a non-empty array");
        goto out;
    }
    if (tools && !json_is_array(tools) && !json_is_null(tools)) {
        rc = error_set(err, STATUS_INVALID, "\"tools\" must be an array");
        goto out;
    }
    if (!json_is_array(tools) || json_array_size(tools) == 0)
        tools = NULL;
    if ((rc = chat_render(c, messages, tools, NULL, false, &d->tokens, err)))
        goto out;
    size_t len = d->tokens.n - at, trained = 0;
    if (len > 0)
        d->tokens.mask[at] = 0; // nothing predicts the first token
    for (size_t i = at; i < d->tokens.n; i++)
        trained += d->tokens.mask[i];
    if ((int64_t)len > max_tokens)
        rc = error_set(err, STATUS_LIMIT, "%zu tokens, over max_tokens %lld: shorten it or raise the limit",
                       len, (long long)max_tokens);
    else if (trained == 0)
        rc = error_set(err, STATUS_INVALID,
                       "no token of it is trained (no assistant message, or all with \"train\": false)");
    if (rc)
        goto out;
    if (d->n_rows == d->cap_rows) {
        d->cap_rows = d->cap_rows ? d->cap_rows * 2 : 1024;
        d->rows = mem_grow(d->rows, (size_t)d->cap_rows, sizeof *d->rows);
    }
    d->rows[d->n_rows++] = (struct sft_row){at, (int32_t)len};
out:
    json_decref(j);
    return rc;
}

enum status sft_data_read(struct sft_data *d, const char *path, const struct chat *c, int64_t max_tokens,
                          struct error *err)
{
    char *data = NULL;
    size_t n = 0;
    int64_t line = 0;
    enum status rc = file_read(path, FILE_MAX, &data, &n, err);
    if (rc)
        return rc;
    for (char *p = data, *end = data + n, *next; p < end && !rc; p = next) {
        char *eol = memchr(p, '\n', (size_t)(end - p));
        next = eol ? eol + 1 : end;
        size_t len = (size_t)((eol ? eol : end) - p);
        line++;
        if (strspn(p, " \t\r") >= len)
            continue;
        if ((rc = row_read(d, p, len, c, max_tokens, err)))
            error_prefix(err, "%s:%lld", path, (long long)line);
    }
    free(data);
    if (!rc && d->n_rows == 0)
        rc = error_set(err, STATUS_INVALID, "%s: no rows", path);
    if (rc)
        sft_data_done(d);
    return rc;
}

void sft_data_done(struct sft_data *d)
{
    tokens_done(&d->tokens);
    free(d->rows);
    *d = (struct sft_data){0};
}

int64_t sft_row_at(uint64_t seed, int stage, int64_t n_rows, int64_t p, int64_t *ret_epoch)
{
    uint64_t key[2] = {(uint64_t)stage, (uint64_t)(p / n_rows)};
    *ret_epoch = p / n_rows;
    return (int64_t)shuffle_at(seed, hash64(key, sizeof key), (uint64_t)n_rows, (uint64_t)(p % n_rows));
}

enum status sft_check(const struct orch *o, struct error *err)
{
    enum status rc = STATUS_OK;
    for (int i = 0; i < o->cfg->n_stages && !rc; i++) {
        const struct run_stage *s = &o->cfg->stages[i];
        struct sft_data d = {0};
        if (s->kind == RUN_STAGE_SFT && !(rc = sft_data_read(&d, s->data, o->chat, s->max_tokens, err)))
            sft_data_done(&d);
    }
    return rc;
}

static uint64_t data_hash(const struct sft_data *d)
{
    uint64_t h = hash64(d->tokens.ids, d->tokens.n * sizeof *d->tokens.ids);
    h = hash64_seed(d->tokens.mask, d->tokens.n, h);
    for (int64_t i = 0; i < d->n_rows; i++)
        h = hash64_seed(&d->rows[i].n, sizeof d->rows[i].n, h);
    return h;
}

// Units are (row, epoch), so that other rows under the same numbers would be trained unseen: a stage ends with the rows it began with.
static enum status same_data(struct orch *o, const char *path, struct error *err)
{
    char key[96], value[64], *text = NULL;
    struct error none;
    snprintf(key, sizeof key, "sft_data/%d", o->stage.index);
    snprintf(value, sizeof value, "%016llx %lld rows", (unsigned long long)data_hash(&o->sft.data),
             (long long)o->sft.data.n_rows);
    if (ledger_meta_get(o->ledger, key, &text, &none)) {
        enum status rc = journal_begin(o, err);
        return rc ? rc : ledger_meta_set(o->ledger, key, value, err);
    }
    enum status rc = strcmp(text, value) == 0
                         ? STATUS_OK
                         : error_set(err, STATUS_UNSUPPORTED,
                                     "%s gives other tokens (%s) than when its stage began (%s): put the old "
                                     "file back, or begin a new run",
                                     path, value, text);
    free(text);
    return rc;
}

enum status sft_open(struct orch *o, struct error *err)
{
    const struct run_stage *s = orch_stage(o);
    char key[96], value[32], *text = NULL;
    struct error none;
    sft_close(o);
    enum status rc = sft_data_read(&o->sft.data, s->data, o->chat, s->max_tokens, err);
    if (rc || (rc = same_data(o, s->data, err)))
        return rc;
    snprintf(key, sizeof key, "sft_offset/%d", o->stage.index);
    if (ledger_meta_get(o->ledger, key, &text, &none) == STATUS_OK) {
        o->sft.offset = strtoll(text, NULL, 10);
        free(text);
    } else {
        o->sft.offset = o->next_trajectory;
        snprintf(value, sizeof value, "%lld", (long long)o->sft.offset);
        if ((rc = journal_begin(o, err)) || (rc = ledger_meta_set(o->ledger, key, value, err)))
            return rc;
    }
    if (o->next_trajectory < o->sft.offset + o->sft.data.n_rows)
        o->next_trajectory = o->sft.offset + o->sft.data.n_rows;
    log_event(LOG_INFO, "sft_data", "path=%s rows=%lld tokens=%zu", s->data, (long long)o->sft.data.n_rows,
              o->sft.data.tokens.n);
    return STATUS_OK;
}

void sft_close(struct orch *o)
{
    sft_data_done(&o->sft.data);
}

// Runs of equal mask become pieces: given or target.
static enum status pieces_add(struct orch *o, int64_t trajectory, int32_t attempt, const struct sft_row *row,
                              struct error *err)
{
    const struct tokens *t = &o->sft.data.tokens;
    for (int32_t from = 0, to; from < row->n; from = to) {
        const uint8_t *mask = t->mask + row->at;
        for (to = from; to < row->n && mask[to] == mask[from]; to++)
            ;
        struct ledger_piece p = {
            .trajectory = trajectory,
            .attempt = attempt,
            .offset = from,
            .kind = mask[from] ? PIECE_TARGET : PIECE_GIVEN,
            .n = to - from,
            .ids = t->ids + row->at + from,
        };
        enum status rc = ledger_piece_add(o->ledger, &p, err);
        if (rc)
            return rc;
    }
    return STATUS_OK;
}

static enum status unit_write(struct orch *o, int64_t group, int32_t member, int64_t row, int64_t epoch,
                              struct error *err)
{
    struct ledger_unit u = {
        .trajectory = o->sft.offset + row,
        .attempt = (int32_t)epoch,
        .group = group,
        .member = member,
        .stage = (int32_t)o->stage.index,
        .task = -1,
        .source = SOURCE_SFT,
    };
    enum status rc = ledger_unit_add(o->ledger, &u, err);
    if (!rc)
        rc = pieces_add(o, u.trajectory, u.attempt, &o->sft.data.rows[row], err);
    if (!rc)
        rc = ledger_unit_ready(o->ledger, u.trajectory, u.attempt, 1, err);
    return rc;
}

void sft_prepare(struct orch *o)
{
    const struct run_stage *s = orch_stage(o);
    struct error err;
    int64_t at = o->committed_steps - stage_first_step(o, o->stage.index);
    int32_t n = (int32_t)s->batch_rows;
    struct ledger_member *members = mem_must((size_t)n, sizeof *members);
    // One ledger group a step keeps its rows together; to the trainer each row is a group of its own (step.c).
    struct ledger_group g = {
        .id = o->next_group++, .stage = (int32_t)o->stage.index, .task = -1, .prompt_index = at, .size = n};
    metrics_step_begin(o);
    enum status rc = journal_begin(o, &err);
    if (!rc)
        rc = ledger_group_add(o->ledger, &g, &err);
    for (int32_t i = 0; i < n && !rc; i++) {
        int64_t epoch, row = sft_row_at(o->cfg->seed, o->stage.index, o->sft.data.n_rows, at * n + i, &epoch);
        rc = unit_write(o, g.id, i, row, epoch, &err);
        members[i] = (struct ledger_member){.trajectory = o->sft.offset + row,
                                            .attempt = (int32_t)epoch,
                                            .segment = 0,
                                            .multiplicity = 1,
                                            .advantage = 1};
    }
    if (rc)
        orch_fail(o, &err);
    else
        step_prepare(o, members, n);
    free(members);
}
