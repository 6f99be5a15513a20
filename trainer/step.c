// step: see step.h. Compute thread; all memory of a step is t->arena, reset at the start of the next one.
//
//   trainer_step ── prepared_init ─► for each update: run_update ── score (forward only, when something must be known first)
//                                                              └── gradient (forward, loss, backward) ─► apply
//
// The order of sums: micro-batches in packing order, sequences in row order, tokens ascending; the model adds each micro-batch to
// the gradient in turn.
#include "trainer/step.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/observe.h"
#include "trainer/aggregate.h"
#include "trainer/prefix.h"

// Largest gradient norm, after clipping, whose square is still an ordinary float: beyond it the second moment would overflow.
#define NORM_MAX 1e18

// A micro-batch as the model takes it; every array has one entry a row. Row r of a sequence predicts its token r + 1. The rows of a
// member begin behind those that its root serves (prefix.h).
struct micro {
    struct batch batch;
    int32_t *ids, *pos, *targets;
    struct attn_seq *seqs;
    float *inv_temp, *lp, *entropy, *advantage, *dlp, *dentropy;
    double *term, *dterm;
    uint8_t *kept;
};

struct work {
    struct trainer *t;
    const struct msg_prepare *msg;
    const struct run_stage *stage;
    const struct loss *loss;
    struct loss_params params;
    struct prepared prepared;
    struct micro micro;
    int32_t *members;                // of the update under way
    struct prefix prefix;            // of the pass under way
    int32_t n_members;               // of the update under way
    float *old;                      // [n_tokens] lp before the first update; NULL = not needed
    int64_t *n_kept;                 // [n_members]
    double *weight, *entropy_weight; // [n_members]
    struct aggregate_member *aggregate;
    struct metrics metrics;
};

// ---- micro-batches ----------------------------------------------------------------------------------------------------------

static enum status micro_alloc(struct work *w, int32_t rows, int32_t seqs, struct error *err)
{
    struct arena *a = &w->t->arena;
    struct micro *m = &w->micro;
    size_t n = (size_t)rows;
    m->ids = arena_alloc(a, n * sizeof *m->ids);
    m->pos = arena_alloc(a, n * sizeof *m->pos);
    m->targets = arena_alloc(a, n * sizeof *m->targets);
    m->seqs = arena_alloc(a, (size_t)seqs * sizeof *m->seqs);
    float **f32[] = {&m->inv_temp, &m->lp, &m->entropy, &m->advantage, &m->dlp, &m->dentropy};
    bool ok = m->ids && m->pos && m->targets && m->seqs;
    for (size_t i = 0; i < sizeof f32 / sizeof f32[0]; i++)
        ok = (*f32[i] = arena_alloc(a, n * sizeof(float))) && ok;
    m->term = arena_alloc(a, n * sizeof *m->term);
    m->dterm = arena_alloc(a, n * sizeof *m->dterm);
    m->kept = arena_alloc(a, n);
    if (!ok || !m->term || !m->dterm || !m->kept)
        return error_set(err, STATUS_NOMEM, "no memory for a micro-batch of %d rows", rows);
    return STATUS_OK;
}

// The model's operations in the forward pass of the micro-batch (metrics.h).
static double micro_flops(const struct work *w)
{
    const struct model_config *c = &w->t->model;
    const struct batch *b = &w->micro.batch;
    double keys = 0, targets = 0;
    for (int32_t i = 0; i < b->n_seqs; i++)
        keys += (double)b->seqs[i].n_rows * (b->seqs[i].pos0 + (b->seqs[i].n_rows + 1) / 2.0);
    for (int32_t i = 0; i < b->n_rows; i++)
        targets += w->micro.targets[i] >= 0;
    return 2 * (w->t->matrix_parameters * b->n_rows + (double)(c->vocab * c->hidden) * targets) +
           4 * (double)(c->n_layers * c->n_heads * c->head_dim) * keys;
}

// Rows of member i that are computed for it alone.
static int32_t own_rows(const struct work *w, int32_t i)
{
    return w->prepared.members[i].rows - w->prefix.shared[i];
}

// Lays out bin b of the packing and runs the layers.
static void micro_forward(struct work *w, const struct packing *p, int32_t b)
{
    const struct msg_prepare *msg = w->msg;
    struct micro *m = &w->micro;
    int32_t row = 0, n_seqs = 0;
    for (int32_t i = p->start[b]; i < p->start[b + 1]; i++) {
        const struct prepared_member *member = &w->prepared.members[p->members[i]];
        int32_t shared = w->prefix.shared[p->members[i]];
        m->seqs[n_seqs++] =
            (struct attn_seq){.row0 = row, .n_rows = own_rows(w, p->members[i]), .pos0 = shared};
        for (int32_t r = shared; r < member->rows; r++, row++) {
            int64_t next = member->first + r + 1;
            m->ids[row] = msg->ids[next - 1];
            m->pos[row] = r;
            m->targets[row] = msg->mask[next] ? msg->ids[next] : -1;
            m->inv_temp[row] = msg->mask[next] ? 1.0f / msg->temperatures[next] : 1.0f;
        }
    }
    m->batch = (struct batch){row, n_seqs, m->ids, m->pos, m->seqs};
    train_forward(w->t->train, w->t->weights, &m->batch);
    w->metrics.flops += micro_flops(w);
    atomic_fetch_add(&w->t->done_tokens, row);
}

// What the loss sees of the n rows of member i from its row `from` on; its rows begin at `row` of the micro-batch.
static struct loss_input micro_input(const struct work *w, int32_t i, int32_t row, int32_t from, int32_t n)
{
    const struct micro *m = &w->micro;
    int64_t at = w->prepared.members[i].first + w->prefix.shared[i] + from + 1; // in the step's arrays
    row += from;
    struct loss_input in = {.n = n,
                            .lp = m->lp + row,
                            .lp_old = m->lp + row,
                            .lp_roll = w->msg->logprobs + at,
                            .advantage = m->advantage + row,
                            .mask = w->msg->mask + at};
    if (w->stage->old_logprob == RUN_OLD_ROLLOUT && w->loss->needs_old)
        in.lp_old = in.lp_roll;
    else if (w->old)
        in.lp_old = w->old + at;
    for (int32_t r = 0; r < n; r++)
        m->advantage[row + r] = w->msg->members[i].advantage;
    return in;
}

static struct loss_output micro_output(const struct work *w, int32_t row)
{
    return (struct loss_output){w->micro.term + row, w->micro.dterm + row, w->micro.kept + row};
}

// ---- passes -----------------------------------------------------------------------------------------------------------------

// Forward only: writes w->old and / or w->n_kept for every packed member.
static enum status score_pass(struct work *w, const struct packing *p, float *old, int64_t *n_kept)
{
    for (int32_t b = 0; b < p->n_bins; b++) {
        int32_t row = 0;
        if (atomic_load(&w->t->cancel))
            return STATUS_CANCELED;
        micro_forward(w, p, b);
        train_logprobs(w->t->train, w->t->weights, w->micro.targets, w->micro.inv_temp, w->micro.lp,
                       w->micro.entropy);
        for (int32_t k = p->start[b]; k < p->start[b + 1]; k++) {
            int32_t i = p->members[k], rows = own_rows(w, i);
            struct loss_stats ignored = {0};
            if (old)
                memcpy(old + w->prepared.members[i].first + w->prefix.shared[i] + 1, w->micro.lp + row,
                       (size_t)rows * sizeof *old);
            if (n_kept) {
                struct loss_input in = micro_input(w, i, row, 0, rows);
                struct loss_output out = micro_output(w, row);
                w->loss->eval(&w->params, &in, &out, &ignored);
                n_kept[i] = 0;
                for (int32_t r = 0; r < rows; r++)
                    n_kept[i] += out.kept[r];
            }
            row += rows;
        }
    }
    return STATUS_OK;
}

// A range of rows of the bin under way, as train_objective asks for them.
struct objective {
    struct work *w;
    const struct packing *packing;
    int32_t bin;
};

// micro.dlp and micro.dentropy of rows [begin, end), which may cut members in two: a loss is a function of single tokens.
static bool differentiate(void *ctx, int32_t begin, int32_t end)
{
    const struct objective *o = ctx;
    struct work *w = o->w;
    struct micro *m = &w->micro;
    double coef = w->stage->entropy_coef;
    bool any = false;
    int32_t row = 0;
    for (int32_t k = o->packing->start[o->bin]; k < o->packing->start[o->bin + 1] && row < end; k++) {
        int32_t i = o->packing->members[k], rows = own_rows(w, i);
        int32_t from = begin > row ? begin - row : 0, to = end < row + rows ? end - row : rows;
        if (from < to) {
            struct loss_input in = micro_input(w, i, row, from, to - from);
            struct loss_output out = micro_output(w, row + from);
            struct loss_stats ignored = {0}; // member_loss counts
            w->loss->eval(&w->params, &in, &out, &ignored);
            for (int32_t r = 0; r < in.n; r++) {
                float *dlp = m->dlp + row + from + r, *dentropy = m->dentropy + row + from + r;
                *dlp = (float)(w->weight[i] * out.dlp[r]);
                *dentropy = in.mask[r] ? (float)(-coef * w->entropy_weight[i]) : 0;
                any = any || *dlp != 0 || *dentropy != 0; // NaN counts
            }
        }
        row += rows;
    }
    return any;
}

// Adds member i, whose rows begin at `row`, to the metrics. Returns its share of the update's loss.
static double member_loss(struct work *w, int32_t i, int32_t row)
{
    struct micro *m = &w->micro;
    struct loss_input in = micro_input(w, i, row, 0, own_rows(w, i));
    struct loss_output out = micro_output(w, row);
    struct loss_stats stats = {0};
    double loss = 0, entropy = 0, coef = w->stage->entropy_coef;
    w->loss->eval(&w->params, &in, &out, &stats);
    for (int64_t r = 0; r < in.n; r++) {
        loss += out.term[r];
        entropy += in.mask[r] ? (double)m->entropy[row + r] : 0;
    }
    metrics_add(&w->metrics, &in, m->entropy + row, w->stage->kind == RUN_STAGE_RL, w->msg->members[i].task,
                &stats);
    w->metrics.entropy_bonus += coef * w->entropy_weight[i] * entropy;
    return w->weight[i] * loss - coef * w->entropy_weight[i] * entropy;
}

// Loss of the bin under way, added to *total.
static enum status micro_loss(struct work *w, const struct packing *p, int32_t b, double *total,
                              struct error *err)
{
    int32_t row = 0;
    for (int32_t k = p->start[b]; k < p->start[b + 1]; k++) {
        int32_t i = p->members[k];
        const struct msg_member *member = &w->msg->members[i];
        double loss = member_loss(w, i, row);
        if (!isfinite(loss))
            return error_set(
                err, STATUS_NUMERIC,
                "the loss is not finite (%g) at member %d: trajectory %llu attempt %u segment %u", loss, i,
                (unsigned long long)member->trajectory, member->attempt, member->segment);
        *total += loss;
        row += own_rows(w, i);
        w->metrics.shared_tokens += w->prefix.shared[i];
    }
    w->metrics.tokens += row;
    w->metrics.micro_batches++;
    return STATUS_OK;
}

// Forward, loss, backward over one update's micro-batches into t->grads. STATUS_NUMERIC with the reason when a loss is not finite.
static enum status gradient_pass(struct work *w, const struct packing *p, double *ret_loss, struct error *err)
{
    struct trainer *t = w->t;
    struct micro *m = &w->micro;
    double total = 0;
    memset(t->grads, 0, (size_t)t->layout.total * sizeof(float));
    for (int32_t b = 0; b < p->n_bins; b++) {
        struct objective bin = {w, p, b};
        struct train_objective o = {.differentiate = differentiate,
                                    .ctx = &bin,
                                    .dlogprob = m->dlp,
                                    .dentropy = w->stage->entropy_coef > 0 ? m->dentropy : NULL};
        if (atomic_load(&t->cancel))
            return STATUS_CANCELED;
        micro_forward(w, p, b);
        bool any = train_objective_grad(t->train, t->weights, m->targets, m->inv_temp, &o, m->lp, m->entropy,
                                        t->grads);
        enum status rc = micro_loss(w, p, b, &total, err);
        if (rc)
            return rc;
        // nothing to learn from this micro-batch (zero advantages, all rejected): its gradient is exactly zero
        if (any) {
            train_backward_layers(t->train, t->weights, t->grads);
            w->metrics.flops += 2 * micro_flops(w);
        }
    }
    *ret_loss = total;
    return STATUS_OK;
}

// ---- one update -------------------------------------------------------------------------------------------------------------

static enum status set_weights(struct work *w, struct error *err)
{
    const struct prepared *p = &w->prepared;
    enum run_aggregation kind = w->stage->aggregation == RUN_AGG_DEFAULT
                                    ? w->loss->aggregation
                                    : (enum run_aggregation)w->stage->aggregation;
    double *weight = mem_must((size_t)w->n_members + 1, sizeof *weight);
    enum status rc = STATUS_OK;
    // the entropy bonus always averages over every trained token
    for (int pass = 0; pass < 2 && !rc; pass++) {
        bool kept = pass == 0 && w->n_kept;
        for (int32_t k = 0; k < w->n_members; k++) {
            const struct prepared_member *m = &p->members[w->members[k]];
            w->aggregate[k] = (struct aggregate_member){m->trajectory, m->group,
                                                        w->msg->members[w->members[k]].multiplicity,
                                                        kept ? w->n_kept[w->members[k]] : m->n_trained};
        }
        rc = aggregate_weights(kind, w->n_members, w->aggregate, p->n_trajectories, p->n_groups, weight, err);
        for (int32_t k = 0; k < w->n_members && !rc; k++)
            (pass == 0 ? w->weight : w->entropy_weight)[w->members[k]] = weight[k];
    }
    free(weight);
    return rc;
}

// Trees of the members of a pass, and their packing.
static enum status work_pack(struct work *w, struct packing *ret, struct error *err)
{
    const struct run_config *c = w->t->config;
    int32_t budget = (int32_t)c->trainer.micro_batch_tokens;
    prefix_done(&w->prefix);
    prefix_init(&w->prefix, &w->prepared, w->n_members, w->members, budget, c->trainer.prefix_sharing);
    return prefix_pack(&w->prefix, w->n_members, w->members, budget, w->msg->packing_seed, ret, err);
}

// Gradient of update u at the present weights into t->grads.
static enum status update_gradient(struct work *w, int32_t u, double *ret_loss, struct error *err)
{
    struct packing packing = {0};
    w->n_members = prepared_update_members(&w->prepared, u, w->members);
    enum status rc = work_pack(w, &packing, err);
    if (!rc && w->n_kept)
        rc = score_pass(w, &packing, NULL, w->n_kept);
    if (!rc)
        rc = set_weights(w, err);
    if (!rc)
        rc = gradient_pass(w, &packing, ret_loss, err);
    w->metrics.sequences += w->n_members;
    packing_done(&packing);
    return rc;
}

static void apply_range(void *ctx, struct device *solo, const struct param *p, int64_t begin, int64_t end)
{
    optimizer_apply(ctx, solo, p, begin, end);
}

// The update itself. The last one of a step makes the weights that are published: whoever wants them takes them out of the caches.
static void apply(struct work *w, double scale, bool last)
{
    struct trainer *t = w->t;
    const struct run_optimizer *config = &w->stage->optimizer;
    if (!last || !t->taker.take) {
        optimizer_update(&t->optimizer, t->device, &t->layout, config, w->msg->lr, scale, t->grads,
                         t->master);
        return;
    }
    struct optimizer_pass pass =
        optimizer_begin(&t->optimizer, config, w->msg->lr, scale, t->grads, t->master);
    struct weights_before before = {.fn = apply_range, .ctx = &pass};
    t->taker.take(t->taker.ctx, t, t->step + 1, &before);
    for (int32_t i = 0; i < t->layout.n && !before.done; i++)
        optimizer_apply(&pass, t->device, &t->layout.params[i], 0,
                        t->layout.params[i].rows * t->layout.params[i].cols);
}

static enum status run_update(struct work *w, int32_t u, bool reset, struct error *err)
{
    struct trainer *t = w->t;
    double loss = 0;
    enum status rc = update_gradient(w, u, &loss, err);
    if (rc)
        return rc;
    device_mark(t->device, -1, "optimizer");
    double norm = optimizer_grad_norm(t->device, &t->layout, t->grads);
    double scale = optimizer_clip_scale(norm, w->stage->optimizer.clip_grad_norm);
    if (!isfinite(norm))
        return error_set(err, STATUS_NUMERIC, "the gradient norm is not finite (%g), the loss is %g", norm,
                         loss);
    if (norm * scale > NORM_MAX)
        return error_set(err, STATUS_NUMERIC, "the gradient norm %g is too large for f32 moments", norm);
    w->metrics.loss += loss;
    w->metrics.grad_norm += norm;
    w->metrics.updates++;
    if (reset)
        optimizer_reset(&t->optimizer, &t->layout);
    apply(w, scale, u + 1 == w->prepared.n_updates);
    trainer_sync_weights(t);
    return STATUS_OK;
}

// ---- the step ---------------------------------------------------------------------------------------------------------------

static enum status work_init(struct work *w, struct trainer *t, const struct msg_prepare *msg,
                             struct error *err)
{
    struct arena *a = &t->arena;
    *w = (struct work){.t = t, .msg = msg};
    if (msg->stage < 0 || msg->stage >= t->config->n_stages)
        return error_set(err, STATUS_INVALID, "stage %d of %lld", msg->stage, (long long)t->config->n_stages);
    w->stage = &t->config->stages[msg->stage];
    w->loss = loss_get((enum run_loss)w->stage->loss);
    w->params = (struct loss_params){w->stage->eps_low, w->stage->eps_high, w->stage->beta};
    bool rl = w->stage->kind == RUN_STAGE_RL;
    enum status rc = prepared_init(&w->prepared, msg, &t->model,
                                   rl ? w->stage->max_context : w->stage->max_tokens, rl, err);
    if (rc)
        return rc;
    size_t n = (size_t)msg->n_members;
    w->members = arena_zalloc(a, n * sizeof *w->members);
    w->weight = arena_zalloc(a, n * sizeof *w->weight);
    w->entropy_weight = arena_zalloc(a, n * sizeof *w->entropy_weight);
    w->aggregate = arena_zalloc(a, n * sizeof *w->aggregate);
    bool kept = w->stage->denominator == RUN_DENOM_KEPT && w->loss->rejects;
    bool old = w->loss->needs_old && w->stage->old_logprob == RUN_OLD_RECOMPUTE && w->prepared.n_updates > 1;
    w->n_kept = kept ? arena_zalloc(a, n * sizeof *w->n_kept) : NULL;
    w->old = old ? arena_zalloc(a, (size_t)msg->n_tokens * sizeof *w->old) : NULL;
    if (!w->members || !w->weight || !w->entropy_weight || !w->aggregate || (kept && !w->n_kept) ||
        (old && !w->old))
        return error_set(err, STATUS_NOMEM, "no memory for a step of %d sequences", msg->n_members);
    return STATUS_OK;
}

// Workspace for the largest micro-batch that any packing of these sequences can have.
static enum status work_reserve(struct work *w, struct error *err)
{
    int64_t sum = 0, budget = w->t->config->trainer.micro_batch_tokens;
    for (int32_t i = 0; i < w->msg->n_members; i++)
        sum += w->prepared.members[i].rows;
    if (!sum)
        return STATUS_OK; // aggregation will find the zero denominator
    int32_t rows = (int32_t)(sum < budget ? sum : budget);
    rows = w->prepared.longest > rows ? w->prepared.longest : rows;
    enum status rc = trainer_reserve(w->t, rows, err);
    return rc ? rc : micro_alloc(w, rows, w->msg->n_members < rows ? w->msg->n_members : rows, err);
}

// lp_old of all members, where the loss needs it: before the first update.
static enum status score_old(struct work *w, struct error *err)
{
    struct packing all;
    w->n_members = w->msg->n_members;
    for (int32_t i = 0; i < w->n_members; i++)
        w->members[i] = i;
    enum status rc = work_pack(w, &all, err);
    if (rc)
        return rc;
    rc = score_pass(w, &all, w->old, NULL);
    packing_done(&all);
    return rc;
}

static enum status work_start(struct work *w, struct error *err)
{
    enum status rc = work_reserve(w, err);
    return rc || !w->old ? rc : score_old(w, err);
}

// Several updates: what the weights were, for a step that is rejected or abandoned after the first one.
static enum status snapshot_take(struct trainer *t, struct error *err)
{
    size_t n = (size_t)t->layout.total;
    if (!t->snapshot)
        t->snapshot = mem_alloc(3 * n * sizeof(float));
    if (!t->snapshot)
        return error_set(err, STATUS_NOMEM, "no memory for the snapshot that updates_per_batch > 1 needs");
    memcpy(t->snapshot, t->master, n * sizeof(float));
    memcpy(t->snapshot + n, t->optimizer.m, n * sizeof(float));
    memcpy(t->snapshot + 2 * n, t->optimizer.v, n * sizeof(float));
    return STATUS_OK;
}

static void snapshot_restore(struct trainer *t, int64_t updates)
{
    size_t n = (size_t)t->layout.total;
    memcpy(t->master, t->snapshot, n * sizeof(float));
    memcpy(t->optimizer.m, t->snapshot + n, n * sizeof(float));
    memcpy(t->optimizer.v, t->snapshot + 2 * n, n * sizeof(float));
    t->optimizer.updates = updates;
    trainer_sync_weights(t);
}

static enum status run_updates(struct work *w, bool reset, struct error *err)
{
    struct trainer *t = w->t;
    int64_t updates = t->optimizer.updates;
    enum status rc = w->prepared.n_updates > 1 ? snapshot_take(t, err) : STATUS_OK;
    for (int32_t u = 0; u < w->prepared.n_updates && !rc; u++) {
        rc = run_update(w, u, reset && u == 0, err);
        if (rc && u > 0)
            snapshot_restore(t, updates);
        if (rc == STATUS_NUMERIC && w->prepared.n_updates > 1)
            rc = error_prefix(err, "update %d of %d", u + 1, w->prepared.n_updates);
    }
    return rc;
}

enum status trainer_step(struct trainer *t, const struct msg_prepare *msg, struct step_result *ret,
                         struct error *err)
{
    struct work *w = mem_must(1, sizeof *w);
    bool reset = msg->stage_first || msg->optimizer_reset || t->reset_pending;
    arena_reset(&t->arena);
    if (msg->step != t->step) {
        free(w);
        return error_set(err, STATUS_PROTOCOL,
                         "step %lld was prepared for weights %lld, the trainer holds %lld",
                         (long long)msg->step, (long long)msg->step, (long long)t->step);
    }
    enum status rc = work_init(w, t, msg, err);
    if (!rc)
        rc = work_start(w, err);
    if (!rc)
        rc = run_updates(w, reset, err);
    bool rejected = rc == STATUS_NUMERIC || rc == STATUS_INVALID || rc == STATUS_RANGE;
    if (!rc || rejected) {
        ret->outcome = rejected ? STEP_REJECTED : STEP_APPLIED;
        snprintf(ret->reason, sizeof ret->reason, "%s", rejected ? err->text : "");
        w->metrics.tokens_trained = rejected ? 0 : w->prepared.n_trained;
        metrics_finish(&w->metrics, w->stage && w->stage->kind == RUN_STAGE_RL, msg->lr, &ret->metrics);
        ret->flops = w->metrics.flops;
        t->reset_pending = rejected && reset;
        t->step++;
        t->stage = rejected && rc != STATUS_NUMERIC ? t->stage : msg->stage;
        rc = STATUS_OK;
    } else if (rc == STATUS_CANCELED) {
        error_set(err, rc, "step %lld was abandoned", (long long)msg->step);
    }
    prefix_done(&w->prefix);
    prepared_done(&w->prepared);
    free(w);
    return rc;
}

enum status trainer_gradient(struct trainer *t, const struct msg_prepare *msg, int32_t update,
                             double *ret_loss, struct error *err)
{
    struct work *w = mem_must(1, sizeof *w);
    arena_reset(&t->arena);
    enum status rc = work_init(w, t, msg, err);
    if (!rc)
        rc = work_start(w, err);
    if (!rc) {
        assert(update >= 0 && update < w->prepared.n_updates);
        rc = update_gradient(w, update, ret_loss, err);
    }
    prefix_done(&w->prefix);
    prepared_done(&w->prepared);
    free(w);
    return rc;
}
