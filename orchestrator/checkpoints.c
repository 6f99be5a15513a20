// Checkpoints: recording what the trainer wrote and choosing what may be removed. Runs on the loop's thread.
//
// Kept: the newest trainer.keep_last, every stage's last one (the next stage starts from it), and with trainer.keep_best the one with
// the best evaluation. The list is a meta entry of the ledger beside its rows, so that a restart knows what lies on the disk; so is the
// list of those that may be removed, whose folders the trainer removes: they are named to it until they are gone.
#include "orchestrator/checkpoints.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "orchestrator/orch.h"

#define META_LIST    "checkpoints"
#define META_PRUNED  "checkpoints_pruned"
#define META_WEIGHTS "published_weights"

static enum status list_read(struct orch *o, const char *text, struct error *err)
{
    struct trainer_link *t = &o->trainer;
    json_t *list = NULL, *c;
    size_t i;
    enum status rc = json_parse(text, strlen(text), "meta entry " META_LIST, &list, err);
    if (rc)
        return rc;
    json_array_foreach(list, i, c)
    {
        const char *path = json_string_value(json_object_get(c, "path")),
                   *hash = json_string_value(json_object_get(c, "hash"));
        if (!path || !hash || t->n_checkpoints == TRAINER_CHECKPOINTS)
            continue;
        int k = t->n_checkpoints++;
        t->checkpoints[k].step = json_integer_value(json_object_get(c, "step"));
        snprintf(t->checkpoints[k].path, sizeof t->checkpoints[k].path, "%s", path);
        snprintf(t->checkpoints[k].hash, sizeof t->checkpoints[k].hash, "%s", hash);
        t->checkpoints[k].stage_end = json_is_true(json_object_get(c, "stage_end"));
        const json_t *eval = json_object_get(c, "eval");
        t->checkpoints[k].eval = json_is_number(eval) ? json_number_value(eval) : NAN;
    }
    json_decref(list);
    return STATUS_OK;
}

static enum status list_write(struct orch *o, struct error *err)
{
    struct trainer_link *t = &o->trainer;
    json_t *list = json_array();
    for (int i = 0; i < t->n_checkpoints; i++) {
        json_t *c = json_pack("{s:I, s:s, s:s, s:b}", "step", (json_int_t)t->checkpoints[i].step, "path",
                              t->checkpoints[i].path, "hash", t->checkpoints[i].hash, "stage_end",
                              t->checkpoints[i].stage_end);
        if (isfinite(t->checkpoints[i].eval))
            json_object_set_new(c, "eval", json_real(t->checkpoints[i].eval));
        json_array_append_new(list, c);
    }
    char *text = json_text(list);
    enum status rc = ledger_meta_set(o->ledger, META_LIST, text, err);
    free(text);
    json_decref(list);
    return rc;
}

static bool is_kept(const struct trainer_link *t, const char *path)
{
    for (int i = 0; i < t->n_checkpoints; i++)
        if (strcmp(t->checkpoints[i].path, path) == 0)
            return true; // a replay wrote it again
    return false;
}

static void pruned_read(struct orch *o)
{
    struct trainer_link *t = &o->trainer;
    char *text = NULL;
    struct error none;
    json_t *list = NULL, *path;
    size_t i;
    if (ledger_meta_get(o->ledger, META_PRUNED, &text, &none))
        return;
    if (json_parse(text, strlen(text), "meta entry " META_PRUNED, &list, &none))
        list = NULL; // what is forgotten so is left where it lies
    json_array_foreach(list, i, path)
    {
        if (t->n_pruned < TRAINER_PRUNED && json_is_string(path))
            snprintf(t->pruned[t->n_pruned++], sizeof t->pruned[0], "%s", json_string_value(path));
    }
    json_decref(list);
    free(text);
}

static enum status pruned_write(struct orch *o, struct error *err)
{
    struct trainer_link *t = &o->trainer;
    int n = 0;
    json_t *list = json_array();
    for (int i = 0; i < t->n_pruned; i++)
        if (file_exists(t->pruned[i]) && !is_kept(t, t->pruned[i])) {
            memmove(t->pruned[n], t->pruned[i], sizeof t->pruned[0]);
            json_array_append_new(list, json_string(t->pruned[n++]));
        }
    t->n_pruned = n;
    char *text = json_text(list);
    enum status rc = ledger_meta_set(o->ledger, META_PRUNED, text, err);
    free(text);
    json_decref(list);
    return rc;
}

static void weights_read(struct orch *o)
{
    char *text = NULL;
    struct error err;
    json_t *j = NULL;
    if (ledger_meta_get(o->ledger, META_WEIGHTS, &text, &err))
        return;
    if (json_parse(text, strlen(text), "meta entry " META_WEIGHTS, &j, &err) == STATUS_OK) {
        const char *path = json_string_value(json_object_get(j, "path")),
                   *hash = json_string_value(json_object_get(j, "hash"));
        if (path && hash && file_exists(path)) {
            o->weights.version = json_integer_value(json_object_get(j, "version"));
            o->weights.bytes = json_integer_value(json_object_get(j, "bytes"));
            snprintf(o->weights.path, sizeof o->weights.path, "%s", path);
            snprintf(o->weights.hash, sizeof o->weights.hash, "%s", hash);
        }
    }
    json_decref(j);
    free(text);
}

enum status weights_note(struct orch *o, int64_t version, const char *path, const char *hash, int64_t bytes,
                         struct error *err)
{
    json_t *j = json_pack("{s:I, s:s, s:s, s:I}", "version", (json_int_t)version, "path", path, "hash", hash,
                          "bytes", (json_int_t)bytes);
    char *text = json_text(j);
    json_decref(j);
    enum status rc = ledger_meta_set(o->ledger, META_WEIGHTS, text, err);
    free(text);
    return rc;
}

enum status checkpoints_open(struct orch *o, struct error *err)
{
    char *text = NULL;
    struct error none;
    if (ledger_meta_get(o->ledger, META_LIST, &text, &none) == STATUS_OK) {
        enum status rc = list_read(o, text, err);
        free(text);
        if (rc)
            return rc;
    }
    pruned_read(o);
    weights_read(o);
    // The ledger's row is what counts for recovery; its files must be there.
    struct ledger_state s;
    enum status rc = ledger_state_read(o->ledger, &s, err);
    if (rc)
        return rc;
    if (s.has_checkpoint) {
        if (!file_exists(s.checkpoint.path))
            return error_set(err, STATUS_NOTFOUND, "checkpoint %s of step %lld is recorded but gone",
                             s.checkpoint.path, (long long)s.checkpoint.step);
        o->checkpoint.step = s.checkpoint.step;
        snprintf(o->checkpoint.path, sizeof o->checkpoint.path, "%s", s.checkpoint.path);
        snprintf(o->checkpoint.hash, sizeof o->checkpoint.hash, "%s", s.checkpoint.hash);
    }
    return STATUS_OK;
}

bool trainer_has_checkpoint(const struct orch *o, int64_t step)
{
    for (int i = 0; i < o->trainer.n_checkpoints; i++)
        if (o->trainer.checkpoints[i].step == step)
            return true;
    return false;
}

static bool is_best(const struct trainer_link *t, int k)
{
    if (!isfinite(t->checkpoints[k].eval))
        return false;
    for (int i = 0; i < t->n_checkpoints; i++)
        if (isfinite(t->checkpoints[i].eval) && (t->checkpoints[i].eval > t->checkpoints[k].eval ||
                                                 (t->checkpoints[i].eval == t->checkpoints[k].eval && i > k)))
            return false;
    return true;
}

// Takes those that may go out of the list and records them as pruned. No more than the list of the pruned has room for: the rest next time.
static enum status prune(struct orch *o, struct error *err)
{
    struct trainer_link *t = &o->trainer;
    int last = (int)(o->cfg->trainer.keep_last > 0 ? o->cfg->trainer.keep_last : 1);
    bool full = t->n_checkpoints >= TRAINER_CHECKPOINTS - 1;
    for (int i = 0; i + last < t->n_checkpoints && (full || t->n_pruned < TRAINER_PRUNED);) {
        bool keep = t->checkpoints[i].stage_end || (o->cfg->trainer.keep_best && is_best(t, i));
        if (keep && !full) {
            i++;
            continue;
        }
        enum status rc = ledger_checkpoint_pruned(o->ledger, t->checkpoints[i].step, err);
        if (rc)
            return rc;
        if (t->n_pruned == TRAINER_PRUNED) // nothing of them goes away: the oldest is left where it is
            memmove(t->pruned[0], t->pruned[1], (size_t)--t->n_pruned * sizeof t->pruned[0]);
        memcpy(t->pruned[t->n_pruned++], t->checkpoints[i].path, sizeof t->pruned[0]);
        memmove(&t->checkpoints[i], &t->checkpoints[i + 1],
                (size_t)(t->n_checkpoints - i - 1) * sizeof t->checkpoints[0]);
        t->n_checkpoints--;
    }
    return STATUS_OK;
}

static enum status add_row(struct orch *o, int k, struct error *err)
{
    struct ledger_checkpoint row = {.step = o->trainer.checkpoints[k].step,
                                    .stage_end = o->trainer.checkpoints[k].stage_end,
                                    .eval = o->trainer.checkpoints[k].eval};
    memcpy(row.path, o->trainer.checkpoints[k].path, sizeof row.path);
    memcpy(row.hash, o->trainer.checkpoints[k].hash, sizeof row.hash);
    return ledger_checkpoint_add(o->ledger, &row, err);
}

void trainer_on_checkpoint(struct orch *o, struct peer *p, const struct msg_checkpoint *m)
{
    struct trainer_link *t = &o->trainer;
    const char *paths[TRAINER_PRUNED];
    struct error err;
    if (m->epoch != t->epoch || t->fenced || m->step > o->committed_steps || m->step < 0 ||
        strlen(m->path) >= 1024 || strlen(m->hash) >= HASH_HEX) {
        log_event(LOG_WARN, "checkpoint_refused", "step=%lld epoch=%lld", (long long)m->step,
                  (long long)m->epoch);
        return;
    }
    int k = 0;
    while (k < t->n_checkpoints && t->checkpoints[k].step < m->step)
        k++;
    bool known = k < t->n_checkpoints && t->checkpoints[k].step == m->step;
    if (!known) {
        assert(t->n_checkpoints < TRAINER_CHECKPOINTS); // keep_last is less, and prune makes room
        memmove(&t->checkpoints[k + 1], &t->checkpoints[k],
                (size_t)(t->n_checkpoints - k) * sizeof t->checkpoints[0]);
        t->n_checkpoints++;
        t->checkpoints[k].eval = eval_mean_of(o, m->step);
    }
    t->checkpoints[k].step = m->step;
    t->checkpoints[k].stage_end = stage_ends_at(o, m->step);
    snprintf(t->checkpoints[k].path, sizeof t->checkpoints[k].path, "%s", m->path);
    snprintf(t->checkpoints[k].hash, sizeof t->checkpoints[k].hash, "%s", m->hash);
    if (journal_begin(o, &err) || add_row(o, k, &err) || prune(o, &err) || list_write(o, &err) ||
        pruned_write(o, &err)) {
        orch_fail(o, &err);
        return;
    }
    if (!journal_flush(o, true))
        return;
    if (m->step >= o->checkpoint.step) {
        o->checkpoint.step = m->step;
        snprintf(o->checkpoint.path, sizeof o->checkpoint.path, "%s", m->path);
        snprintf(o->checkpoint.hash, sizeof o->checkpoint.hash, "%s", m->hash);
    }
    for (int i = 0; i < t->n_pruned; i++)
        paths[i] = t->pruned[i];
    struct msg ack = {.type = MSG_CHECKPOINT,
                      .checkpoint = {.epoch = m->epoch,
                                     .step = m->step,
                                     .path = m->path,
                                     .hash = m->hash,
                                     .n_prune = t->n_pruned,
                                     .prune = paths}};
    peers_send(o, p, &ack); // lost: the trainer says it again after its next WELCOME
    log_event(LOG_INFO, "checkpoint", "step=%lld path=%s pruned=%d", (long long)m->step, m->path,
              t->n_pruned);
    orch_kick(o);
}

void trainer_ask_checkpoint(struct orch *o)
{
    struct msg ask = {
        .type = MSG_CHECKPOINT,
        .checkpoint = {.epoch = o->trainer.epoch, .step = o->committed_steps, .path = "", .hash = ""}};
    peers_send(o, peers_trainer(o), &ask);
}

void trainer_note_eval(struct orch *o, int64_t step, double mean)
{
    struct trainer_link *t = &o->trainer;
    struct error err;
    for (int k = 0; k < t->n_checkpoints; k++) {
        if (t->checkpoints[k].step != step)
            continue;
        t->checkpoints[k].eval = mean;
        if (journal_begin(o, &err) || add_row(o, k, &err) || list_write(o, &err))
            orch_fail(o, &err);
    }
}
