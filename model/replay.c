// Replay: see replay.h. Runs on the thread that owns the device; the device's pool works inside calls.
//
// Invariants
//   1. Passes of a member are computed in their order; `at` rows of pass `next` are done.
//   2. Members on pages come in batches whose pages fit the budget; a batch walks the versions until its members are done: once,
//      since versions of a history rise, but for a run whose versions once fell.
//   3. A member that lost its weights computes nothing more.
#include "model/replay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/history.h"
#include "model/train.h"

#define PAGE_TOKENS (2 * ATTN_BLOCK)
#define FORWARD_MAX 1024               // rows of one forward pass on pages
#define LOGITS_MAX  ((int64_t)1 << 21) // floats alive at once …
#define LOGITS_MIN  8                  // … but rows enough to keep the GEMM busy

struct member {
    struct replay_segment *s;
    struct history h;
    bool paged;
    int32_t next, at;
    int32_t n_pages, first_page;
};

// A row whose logits are wanted.
struct target {
    int32_t row, id; // of the batch; the token after it
    float inv_temp;
    float *ret;
};

struct work {
    const struct replay *r;
    const struct model_config *c;
    int32_t n;
    struct member *m;
    int64_t *versions; // ascending
    int32_t n_versions;
    struct kv *kv;
    int32_t *pages; // 0, 1, 2, …
    // one forward pass
    int32_t cap_rows, n_rows, n_seqs, n_targets;
    int32_t *ids, *pos, *targets;
    struct attn_seq *seqs;
    struct target *target;
    float *inv_temp, *logprob, *lse;
    float *hidden, *picked, *logits; // [cap_rows, C], [logit_rows, C], [logit_rows, V]
    int32_t logit_rows;
    struct arena step;
};

// ---- what there is to do ----------------------------------------------------------------------------------------------

static bool scorable(const struct replay_segment *s, const struct model_config *c)
{
    if (s->n - 1 > c->max_position)
        return false;
    for (int32_t i = 0; i < s->n; i++)
        if (s->ids[i] < 0 || s->ids[i] >= c->vocab ||
            (s->mask[i] && !(isfinite(s->temperatures[i]) && s->temperatures[i] > 0)))
            return false;
    return true;
}

static int32_t most_rows(const struct history *h)
{
    int32_t most = 0;
    for (int32_t i = 0; i < h->n; i++)
        most = h->passes[i].to > most ? h->passes[i].to : most;
    return most;
}

static void member_init(struct work *w, struct member *m, struct replay_segment *s)
{
    *m = (struct member){.s = s};
    s->outcome = REPLAY_BROKEN;
    s->crossing = false;
    if (!scorable(s, w->c) || !history_init(&m->h, s))
        return;
    int32_t rows = most_rows(&m->h);
    s->outcome = REPLAY_COMPARED;
    s->crossing = m->h.crossing;
    m->paged = !m->h.plain || rows > w->r->train_rows;
    m->n_pages = m->paged ? (rows + PAGE_TOKENS - 1) / PAGE_TOKENS : 0;
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void gather_versions(struct work *w)
{
    size_t n = 0, kept = 0;
    for (int32_t i = 0; i < w->n; i++)
        n += (size_t)w->m[i].h.n;
    w->versions = mem_must(n + 1, sizeof *w->versions);
    n = 0;
    for (int32_t i = 0; i < w->n; i++)
        for (int32_t k = 0; k < w->m[i].h.n; k++)
            w->versions[n++] = w->m[i].h.passes[k].version;
    qsort(w->versions, n, sizeof *w->versions, ascending);
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || w->versions[i] != w->versions[kept - 1])
            w->versions[kept++] = w->versions[i];
    w->n_versions = (int32_t)kept;
}

static enum status work_init(struct work *w, const struct replay *r, int32_t n, struct replay_segment *s,
                             struct error *err)
{
    *w = (struct work){.r = r, .c = weights_config(r->w), .n = n};
    arena_init(&w->step, 0);
    w->m = mem_must((size_t)n + 1, sizeof *w->m);
    for (int32_t i = 0; i < n; i++)
        member_init(w, &w->m[i], &s[i]);
    gather_versions(w);
    w->cap_rows = r->train_rows > FORWARD_MAX ? r->train_rows : FORWARD_MAX;
    size_t rows = (size_t)w->cap_rows, C = (size_t)w->c->hidden, V = (size_t)w->c->vocab;
    int64_t fit = LOGITS_MAX / w->c->vocab;
    w->logit_rows = (int32_t)(fit < LOGITS_MIN ? LOGITS_MIN : fit < FORWARD_MAX ? fit : FORWARD_MAX);
    w->ids = mem_must(rows, sizeof *w->ids);
    w->pos = mem_must(rows, sizeof *w->pos);
    w->targets = mem_must(rows, sizeof *w->targets);
    w->seqs = mem_must(rows, sizeof *w->seqs);
    w->target = mem_must(rows, sizeof *w->target);
    w->inv_temp = mem_must(rows, sizeof *w->inv_temp);
    w->logprob = mem_must(rows, sizeof *w->logprob);
    w->lse = mem_must((size_t)w->logit_rows, sizeof *w->lse);
    w->hidden = mem_alloc(FORWARD_MAX * C * sizeof *w->hidden);
    w->picked = mem_alloc((size_t)w->logit_rows * C * sizeof *w->picked);
    w->logits = mem_alloc((size_t)w->logit_rows * V * sizeof *w->logits);
    if (!w->hidden || !w->picked || !w->logits)
        return error_set(err, STATUS_NOMEM, "no memory to score %d segments", n);
    return STATUS_OK;
}

static void work_done(struct work *w)
{
    for (int32_t i = 0; i < w->n; i++)
        history_done(&w->m[i].h);
    kv_close(w->kv);
    arena_done(&w->step);
    void *const small[] = {w->m,    w->versions, w->pages,    w->ids,     w->pos, w->targets,
                           w->seqs, w->target,   w->inv_temp, w->logprob, w->lse};
    for (size_t i = 0; i < sizeof small / sizeof small[0]; i++)
        free(small[i]);
    mem_free(w->hidden);
    mem_free(w->picked);
    mem_free(w->logits);
}

static bool canceled(const struct work *w)
{
    return w->r->cancel && atomic_load(w->r->cancel);
}

// Does row r of the segment, computed by this pass, score the token after it?
static bool scores(const struct replay_segment *s, const struct history_pass *p, int32_t row)
{
    return row + 1 >= p->score_from && row + 1 < s->n && s->mask[row + 1];
}

static void add_rows(struct work *w, const struct replay_segment *s, int32_t from, int32_t to,
                     const int32_t *pages)
{
    w->seqs[w->n_seqs++] =
        (struct attn_seq){.row0 = w->n_rows, .n_rows = to - from, .pos0 = from, .pages = pages};
    for (int32_t r = from; r < to; r++) {
        w->ids[w->n_rows] = s->ids[r];
        w->pos[w->n_rows++] = r;
    }
}

static struct batch batch_of(const struct work *w)
{
    return (struct batch){
        .n_rows = w->n_rows, .n_seqs = w->n_seqs, .ids = w->ids, .pos = w->pos, .seqs = w->seqs};
}

// ---- plain passes: as the trainer does it -----------------------------------------------------------------------------

static void add_plain(struct work *w, struct member *m, const struct history_pass *p)
{
    for (int32_t r = 0, row = w->n_rows; r < p->to; r++, row++) {
        bool wanted = scores(m->s, p, r);
        w->targets[row] = wanted ? m->s->ids[r + 1] : -1;
        w->inv_temp[row] = wanted ? 1.0f / m->s->temperatures[r + 1] : 1.0f;
        if (wanted)
            w->target[w->n_targets++] = (struct target){.row = row, .ret = &m->s->rescored[r + 1]};
    }
    add_rows(w, m->s, 0, p->to, NULL);
}

static void run_plain(struct work *w)
{
    const struct batch b = batch_of(w);
    train_forward(w->r->train, w->r->w, &b);
    train_logprobs(w->r->train, w->r->w, w->targets, w->inv_temp, w->logprob, NULL);
    for (int32_t i = 0; i < w->n_targets; i++)
        *w->target[i].ret = w->logprob[w->target[i].row];
    w->n_rows = w->n_seqs = w->n_targets = 0;
}

// All plain passes of the version, packed.
static enum status score_plain(struct work *w, int64_t version)
{
    for (int32_t i = 0; i < w->n; i++) {
        struct member *m = &w->m[i];
        for (int32_t k = 0; k < m->h.n && !m->paged && m->s->outcome == REPLAY_COMPARED; k++) {
            if (m->h.passes[k].version != version)
                continue;
            if (w->n_rows + m->h.passes[k].to > w->r->train_rows) {
                if (canceled(w))
                    return STATUS_CANCELED;
                run_plain(w);
            }
            add_plain(w, m, &m->h.passes[k]);
        }
    }
    if (w->n_rows > 0)
        run_plain(w);
    return STATUS_OK;
}

// ---- passes on pages: as the engine did it ----------------------------------------------------------------------------

static const struct history_pass *pass_at(const struct member *m, int64_t version)
{
    const struct history_pass *p = m->next < m->h.n ? &m->h.passes[m->next] : NULL;
    return p && p->version == version && m->s->outcome == REPLAY_COMPARED ? p : NULL;
}

static void add_paged(struct work *w, struct member *m, const struct history_pass *p)
{
    int32_t from = p->from + m->at, room = FORWARD_MAX - w->n_rows;
    int32_t to = p->to - from < room ? p->to : from + room;
    for (int32_t r = from; r < to; r++)
        if (scores(m->s, p, r))
            w->target[w->n_targets++] =
                (struct target){w->n_rows + r - from, m->s->ids[r + 1], 1.0f / m->s->temperatures[r + 1],
                                &m->s->rescored[r + 1]};
    add_rows(w, m->s, from, to, w->pages + m->first_page);
    m->at = to - p->from;
    if (to == p->to) {
        m->next++;
        m->at = 0;
    }
}

static enum status run_paged(struct work *w, struct error *err)
{
    const struct batch b = batch_of(w);
    int64_t C = w->c->hidden, V = w->c->vocab;
    arena_reset(&w->step);
    enum status rc = model_forward(w->r->w, w->kv, &b, &w->step, w->hidden, err);
    for (int32_t i = 0, m; i < w->n_targets && !rc; i += m) {
        m = w->n_targets - i < w->logit_rows ? w->n_targets - i : w->logit_rows;
        const struct target *t = w->target + i;
        for (int32_t k = 0; k < m; k++) {
            memcpy(w->picked + k * C, w->hidden + t[k].row * C, (size_t)C * sizeof(float));
            w->targets[k] = t[k].id;
            w->inv_temp[k] = t[k].inv_temp;
        }
        model_logits(w->r->w, m, w->picked, w->logits);
        w->r->d->k->logprob(w->r->d, m, V, w->logits, V, w->inv_temp, w->targets, w->logprob, w->lse, NULL);
        for (int32_t k = 0; k < m; k++)
            *t[k].ret = w->logprob[k];
    }
    w->n_rows = w->n_seqs = w->n_targets = 0;
    return rc;
}

// What members [first, end) can compute with this version now. A member has at most one chunk in a forward pass.
static enum status score_paged(struct work *w, int64_t version, int32_t first, int32_t end, struct error *err)
{
    for (bool any = true; any;) {
        any = false;
        for (int32_t i = first; i < end && w->n_rows < FORWARD_MAX; i++) {
            const struct history_pass *p = w->m[i].paged ? pass_at(&w->m[i], version) : NULL;
            any = any || p;
            if (p)
                add_paged(w, &w->m[i], p);
        }
        if (canceled(w))
            return STATUS_CANCELED;
        enum status rc = any ? run_paged(w, err) : STATUS_OK;
        if (rc)
            return rc;
    }
    return STATUS_OK;
}

// ---- walking the versions ---------------------------------------------------------------------------------------------

// Is version the next thing that one of members [first, end) needs? plain: of all members' plain passes too.
static bool needed(const struct work *w, int64_t version, int32_t first, int32_t end, bool plain)
{
    for (int32_t i = first; i < end; i++)
        if (w->m[i].paged && pass_at(&w->m[i], version))
            return true;
    for (int32_t i = 0; i < w->n && plain; i++)
        for (int32_t k = 0; k < w->m[i].h.n && !w->m[i].paged && w->m[i].s->outcome == REPLAY_COMPARED; k++)
            if (w->m[i].h.passes[k].version == version)
                return true;
    return false;
}

static void give_up(struct work *w, int64_t version)
{
    for (int32_t i = 0; i < w->n; i++)
        for (int32_t k = w->m[i].next; k < w->m[i].h.n; k++)
            if (w->m[i].h.passes[k].version == version)
                w->m[i].s->outcome = REPLAY_NO_WEIGHTS;
}

// One walk for members [first, end) on pages; with `plain` all plain passes as well. *ret_more: some are not through yet.
static enum status walk(struct work *w, int32_t first, int32_t end, bool plain, bool *ret_more,
                        struct error *err)
{
    for (int32_t v = 0; v < w->n_versions; v++) {
        int64_t version = w->versions[v];
        if (!needed(w, version, first, end, plain))
            continue;
        if (canceled(w))
            return STATUS_CANCELED;
        enum status rc = w->r->load(w->r->ctx, w->r->w, version, err);
        if (rc == STATUS_NOTFOUND) {
            give_up(w, version);
            continue;
        }
        if (!rc && plain)
            rc = score_plain(w, version);
        if (!rc)
            rc = score_paged(w, version, first, end, err);
        if (rc)
            return rc;
    }
    *ret_more = false;
    for (int32_t i = first; i < end; i++)
        *ret_more = *ret_more ||
                    (w->m[i].paged && w->m[i].next < w->m[i].h.n && w->m[i].s->outcome == REPLAY_COMPARED);
    return STATUS_OK;
}

// Gives pages to members from `first` on, as many members as the budget holds. Returns where the next batch begins.
static int32_t batch_end(struct work *w, int32_t first, int32_t budget)
{
    int32_t used = 0, i = first;
    for (; i < w->n && (used == 0 || used + w->m[i].n_pages <= budget); i++) {
        w->m[i].first_page = used;
        used += w->m[i].n_pages;
    }
    return i;
}

static enum status open_pages(struct work *w, int32_t *ret_budget, struct error *err)
{
    int64_t all = 0, most = 0;
    int64_t fit = (int64_t)(w->r->kv_bytes / kv_page_bytes(w->c, w->r->kv_dtype, PAGE_TOKENS));
    for (int32_t i = 0; i < w->n; i++) {
        all += w->m[i].n_pages;
        most = w->m[i].n_pages > most ? w->m[i].n_pages : most;
    }
    int64_t n = all < fit ? all : fit > most ? fit : most;
    *ret_budget = (int32_t)n;
    if (n == 0)
        return STATUS_OK;
    w->pages = mem_must((size_t)n, sizeof *w->pages);
    for (int32_t i = 0; i < n; i++)
        w->pages[i] = i;
    return kv_open(w->r->d, w->c, w->r->kv_dtype, (int32_t)n, PAGE_TOKENS, &w->kv, err);
}

enum status replay_run(const struct replay *r, int32_t n, struct replay_segment *segments, struct error *err)
{
    struct work w;
    int32_t budget = 0, first = 0;
    enum status rc = work_init(&w, r, n, segments, err);
    if (!rc)
        rc = open_pages(&w, &budget, err);
    while (first < n && !rc) {
        int32_t end = batch_end(&w, first, budget);
        bool plain = first == 0;
        for (bool more = true; more && !rc; plain = false)
            rc = walk(&w, first, end, plain, &more, err);
        first = end;
    }
    if (rc == STATUS_CANCELED)
        error_set(err, rc, "the parity check was abandoned");
    work_done(&w);
    return rc;
}

// ---- summary ----------------------------------------------------------------------------------------------------------

static double difference(float recorded, float rescored)
{
    double d = fabs((double)recorded - (double)rescored);
    return d >= 0 ? d : (double)INFINITY; // not a number
}

void replay_summarize(int32_t n, const struct replay_segment *segments, struct replay_summary *ret)
{
    *ret = (struct replay_summary){.segment = -1, .first_broken = -1};
    for (int32_t i = 0; i < n; i++) {
        const struct replay_segment *s = &segments[i];
        bool compared = s->outcome == REPLAY_COMPARED;
        ret->compared += compared;
        ret->crossing += compared && s->crossing;
        ret->no_weights += s->outcome == REPLAY_NO_WEIGHTS;
        ret->broken += s->outcome == REPLAY_BROKEN;
        if (s->outcome == REPLAY_BROKEN && ret->first_broken < 0)
            ret->first_broken = i;
        for (int32_t t = 0; t < s->n; t++) {
            if (!s->mask[t])
                continue;
            ret->tokens += compared;
            ret->tokens_skipped += !compared;
            double d = compared ? difference(s->logprobs[t], s->rescored[t]) : 0;
            if (d != 0 && ret->segment < 0) {
                ret->segment = i;
                ret->position = t;
            }
            ret->max_abs_diff = d > ret->max_abs_diff ? d : ret->max_abs_diff;
        }
    }
}
