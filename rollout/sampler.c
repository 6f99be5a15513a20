// Sampling: see sampler.h. Runs on the compute thread, rows split among the device's pool.
#include "rollout/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/fmath.h"

#define SUM_BLOCK 256  // probabilities are summed in blocks of this, blocks in order
#define BUCKETS   4096 // of the coarse order by likelihood: the upper bits of the float

struct candidate {
    float p;
    int32_t id;
};

struct scratch {                  // of one thread of the pool
    struct candidate *candidates; // [V]
    double *block_sums;           // [ceil(V / SUM_BLOCK)]
    double *bucket_mass;          // [BUCKETS]
    int32_t *bucket_count;        // [BUCKETS]
};

struct sampler {
    struct device *d;
    int32_t max_rows;
    int64_t v;
    float *p;        // [max_rows, V] of rows whose distribution is truncated
    float *inv_temp; // [max_rows]
    float *uniform;  // [max_rows]
    float *lse;      // [max_rows]
    float *logprob;  // [max_rows] of `token`
    int32_t *token;  // [max_rows] drawn from the plain distribution
    int n_scratch;
    struct scratch *scratch;
};

enum status sampler_open(struct device *d, int32_t max_rows, int64_t n_vocab, struct sampler **ret,
                         struct error *err)
{
    struct sampler *s = mem_must(1, sizeof *s);
    s->d = d;
    s->max_rows = max_rows;
    s->v = n_vocab;
    size_t rows = (size_t)max_rows, v = (size_t)n_vocab;
    s->p = device_alloc(d, rows * v * sizeof *s->p);
    s->inv_temp = device_alloc(d, rows * sizeof *s->inv_temp);
    s->uniform = device_alloc(d, rows * sizeof *s->uniform);
    s->lse = device_alloc(d, rows * sizeof *s->lse);
    s->logprob = device_alloc(d, rows * sizeof *s->logprob);
    s->token = device_alloc(d, rows * sizeof *s->token);
    s->n_scratch = pool_threads(d->pool);
    s->scratch = mem_must((size_t)s->n_scratch, sizeof *s->scratch);
    bool ok = s->p && s->inv_temp && s->uniform && s->lse && s->logprob && s->token;
    for (int i = 0; i < s->n_scratch && ok; i++) {
        struct scratch *c = &s->scratch[i];
        c->candidates = mem_alloc(v * sizeof *c->candidates);
        c->block_sums = mem_alloc((v / SUM_BLOCK + 1) * sizeof *c->block_sums);
        c->bucket_mass = mem_alloc(BUCKETS * sizeof *c->bucket_mass);
        c->bucket_count = mem_alloc(BUCKETS * sizeof *c->bucket_count);
        ok = c->candidates && c->block_sums && c->bucket_mass && c->bucket_count;
    }
    if (!ok) {
        sampler_close(s);
        return error_set(err, STATUS_NOMEM, "no memory to sample %d rows of %lld logits", max_rows,
                         (long long)n_vocab);
    }
    *ret = s;
    return STATUS_OK;
}

void sampler_close(struct sampler *s)
{
    if (!s)
        return;
    device_free(s->d, s->p);
    device_free(s->d, s->inv_temp);
    device_free(s->d, s->uniform);
    device_free(s->d, s->lse);
    device_free(s->d, s->logprob);
    device_free(s->d, s->token);
    for (int i = 0; i < s->n_scratch; i++) {
        mem_free(s->scratch[i].candidates);
        mem_free(s->scratch[i].block_sums);
        mem_free(s->scratch[i].bucket_mass);
        mem_free(s->scratch[i].bucket_count);
    }
    free(s->scratch);
    free(s);
}

float sampler_inv_temp(float temperature)
{
    return temperature > 0 ? 1.0f / temperature : 1.0f;
}

bool sampler_truncates(const struct msg_sampling *s)
{
    return s->top_k > 0 || s->top_p < 1 || s->min_p > 0;
}

enum status sampler_check(const struct msg_sampling *s, int64_t n_vocab, struct error *err)
{
    if (!(s->temperature >= 0 && s->temperature <= 100) || (s->temperature > 0 && s->temperature < 1e-3f))
        return error_set(err, STATUS_INVALID, "temperature %g: give 0 (greedy) or 0.001 to 100",
                         (double)s->temperature);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return error_set(err, STATUS_INVALID, "top_p %g: give a number over 0, at most 1 (1 = off)",
                         (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p < 1))
        return error_set(err, STATUS_INVALID, "min_p %g: give 0 (off) or a number below 1", (double)s->min_p);
    if (s->top_k < 0)
        return error_set(err, STATUS_INVALID, "top_k %d: give 0 (off) or a positive number", s->top_k);
    if (s->max_new < 0 || s->min_new < 0 || s->min_new > s->max_new)
        return error_set(err, STATUS_INVALID, "max_new %d, min_new %d: give 0 <= min_new <= max_new",
                         s->max_new, s->min_new);
    if (s->n_stop < 0 || s->n_stop > MSG_STOP_IDS)
        return error_set(err, STATUS_INVALID, "%d stop ids: at most %d", s->n_stop, MSG_STOP_IDS);
    for (int32_t i = 0; i < s->n_stop; i++)
        if (s->stop[i] < 0 || s->stop[i] >= n_vocab)
            return error_set(err, STATUS_INVALID, "stop id %d is not in the vocabulary of %lld", s->stop[i],
                             (long long)n_vocab);
    if (s->train && (s->temperature == 0 || sampler_truncates(s) || s->min_new > 0))
        return error_set(
            err, STATUS_REFUSED,
            "training needs the plain distribution: temperature > 0 without top_k, top_p, min_p or min_new "
            "(got %g, %d, %g, %g, %d)",
            (double)s->temperature, s->top_k, (double)s->top_p, (double)s->min_p, s->min_new);
    return STATUS_OK;
}

static bool is_forbidden(const struct sampler_row *r, int32_t id)
{
    for (int32_t i = 0; i < r->n_forbidden; i++)
        if (r->forbidden[i] == id)
            return true;
    return false;
}

// Drawn from less than the whole distribution, so that its probabilities are wanted one by one?
static bool is_cut(const struct sampler_row *r)
{
    return r->sampling->temperature > 0 && (r->n_forbidden > 0 || sampler_truncates(r->sampling));
}

static float block_sum(const float *p, int64_t n)
{
    float lanes[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++)
            lanes[l] += p[i + l];
    for (int l = 0; i + l < n; l++)
        lanes[l] += p[i + l];
    for (int width = 8; width; width /= 2)
        for (int l = 0; l < width; l++)
            lanes[l] += lanes[l + width];
    return lanes[0];
}

static double sum_blocks(const float *p, int64_t v, double *sums)
{
    double total = 0;
    for (int64_t b = 0; b * SUM_BLOCK < v; b++) {
        int64_t n = v - b * SUM_BLOCK < SUM_BLOCK ? v - b * SUM_BLOCK : SUM_BLOCK;
        sums[b] = (double)block_sum(p + b * SUM_BLOCK, n);
        total += sums[b];
    }
    return total;
}

static int likelier(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

static uint32_t bucket_of(float p)
{
    uint32_t u;
    memcpy(&u, &p, 4);
    return u >> 18; // 8 bits of exponent, 5 of mantissa; p in [0, 1] stays below BUCKETS
}

// Collects the ids that can be in the kept set, likeliest first: whole buckets from the top until they hold top_k ids, or
// top_p of the mass when there is no top_k. Returns how many.
static int32_t collect(const struct sampler_row *r, const float *p, int64_t v, struct scratch *c,
                       double total)
{
    memset(c->bucket_mass, 0, BUCKETS * sizeof *c->bucket_mass);
    memset(c->bucket_count, 0, BUCKETS * sizeof *c->bucket_count);
    for (int64_t i = 0; i < v; i++) {
        uint32_t b = bucket_of(p[i]);
        c->bucket_count[b]++;
        c->bucket_mass[b] += (double)p[i];
    }
    const struct msg_sampling *s = r->sampling;
    double mass = 0, want = (double)s->top_p * total * (1 + 1e-9);
    int64_t count = 0;
    uint32_t lowest = BUCKETS - 1;
    for (;; lowest--) {
        count += c->bucket_count[lowest];
        mass += c->bucket_mass[lowest];
        bool enough = s->top_k > 0 ? count >= s->top_k : s->top_p < 1 && mass >= want;
        if (enough || lowest == 0)
            break;
    }
    int32_t n = 0;
    for (int64_t i = 0; i < v; i++)
        if (p[i] > 0 && bucket_of(p[i]) >= lowest)
            c->candidates[n++] = (struct candidate){p[i], (int32_t)i};
    qsort(c->candidates, (size_t)n, sizeof *c->candidates, likelier);
    return n;
}

// Truncated or with forbidden ids: the kept set is listed likeliest first. Changes p (forbidden ids become 0).
static int32_t sample_kept(const struct sampler_row *r, float *p, int64_t v, struct scratch *c,
                           double *ret_mass)
{
    for (int32_t i = 0; i < r->n_forbidden; i++)
        p[r->forbidden[i]] = 0;
    const struct msg_sampling *s = r->sampling;
    double total = sum_blocks(p, v, c->block_sums);
    int32_t n = collect(r, p, v, c, total);
    if (n == 0)
        return -1;
    if (s->top_k > 0) {
        n = n < s->top_k ? n : s->top_k;
        total = 0;
        for (int32_t i = 0; i < n; i++)
            total += (double)c->candidates[i].p;
    }
    double mass = 0;
    float floor = s->min_p * c->candidates[0].p;
    int32_t kept = 0;
    while (kept < n && c->candidates[kept].p >= floor &&
           (kept == 0 || s->top_p >= 1 || mass < (double)s->top_p * total))
        mass += (double)c->candidates[kept++].p;
    double target = (double)r->uniform * mass, before = 0;
    *ret_mass = mass;
    for (int32_t i = 0; i < kept; i++) {
        before += (double)c->candidates[i].p;
        if (before > target)
            return c->candidates[i].id;
    }
    return c->candidates[kept - 1].id;
}

static int32_t sample_greedy(const struct sampler_row *r, const float *logits, int64_t v)
{
    int32_t best = -1;
    float top = -INFINITY;
    for (int64_t i = 0; i < v; i++) {
        if (logits[i] > top && !is_forbidden(r, (int32_t)i)) {
            top = logits[i];
            best = (int32_t)i;
        }
    }
    return best;
}

static void list_top(struct sampler_row *r, const float *logits, int64_t v, float lse)
{
    int32_t n = 0;
    float least = -INFINITY;
    for (int64_t i = 0; i < v; i++) {
        if (n == r->n_top && !(logits[i] > least))
            continue;
        int32_t at = n < r->n_top ? n++ : n - 1;
        for (; at > 0 && logits[i] > logits[r->top_ids[at - 1]]; at--)
            r->top_ids[at] = r->top_ids[at - 1];
        r->top_ids[at] = (int32_t)i;
        least = logits[r->top_ids[n - 1]];
    }
    for (int32_t i = 0; i < n; i++) {
        float z = logits[r->top_ids[i]] * r->inv_temp;
        r->top_logprobs[i] = z - lse;
    }
    for (int32_t i = n; i < r->n_top; i++) { // a vocabulary smaller than n_top
        r->top_ids[i] = -1;
        r->top_logprobs[i] = 0;
    }
}

struct run {
    struct sampler *s;
    int32_t n, rows_per_task;
    const float *logits;
    struct sampler_row *rows;
};

static void sample_row(struct run *run, int32_t i, struct scratch *c)
{
    struct sampler *s = run->s;
    struct sampler_row *r = &run->rows[i];
    const float *logits = run->logits + (int64_t)i * s->v;
    float *p = s->p + (int64_t)i * s->v;
    double mass = 0; // 0: nothing was cut off
    r->token = -1;
    r->logprob = 0;
    if (!isfinite(s->lse[i]))
        return;
    if (r->n_top > 0)
        list_top(r, logits, s->v, s->lse[i]);
    if (r->sampling->temperature == 0)
        r->token = sample_greedy(r, logits, s->v);
    else if (is_cut(r))
        r->token = sample_kept(r, p, s->v, c, &mass);
    else
        r->token = s->token[i];
    if (r->token < 0)
        return;
    // As the logprob op has it: z = logits * inv_temp, rounded; logprob = z - lse.
    float z = logits[r->token] * r->inv_temp;
    r->logprob = z - s->lse[i];
    if (mass > 0)
        r->logprob -= fmath_log((float)mass);
    if (!isfinite(r->logprob))
        r->token = -1;
}

static void sample_rows(void *ctx, int task, int thread)
{
    struct run *run = ctx;
    int32_t end = (task + 1) * run->rows_per_task;
    for (int32_t i = task * run->rows_per_task; i < end && i < run->n; i++)
        sample_row(run, i, &run->s->scratch[thread]);
}

void sampler_run(struct sampler *s, int32_t n, const float *logits, struct sampler_row *rows)
{
    assert(n <= s->max_rows);
    struct device *d = s->d;
    bool more = false; // than the plain draw and its log-probability
    for (int32_t i = 0; i < n; i++) {
        s->inv_temp[i] = rows[i].inv_temp;
        s->uniform[i] = rows[i].uniform;
        more = more || rows[i].n_top > 0 || is_cut(&rows[i]) || rows[i].sampling->temperature == 0;
    }
    d->k->sample(d, n, s->v, logits, s->v, s->inv_temp, s->uniform, s->token, s->logprob, s->lse);
    for (int32_t i = 0; i < n && !more; i++) {
        rows[i].token = s->token[i];
        rows[i].logprob = s->logprob[i];
    }
    if (!more)
        return;
    for (int32_t i = 0, end; i < n; i = end + 1) { // runs of neighbours together
        for (end = i; end < n && is_cut(&rows[end]); end++)
            ;
        if (end > i)
            d->k->probs(d, end - i, s->v, logits + (int64_t)i * s->v, s->v, s->inv_temp + i, s->lse + i,
                        s->p + (int64_t)i * s->v, s->v);
    }
    // A task is worth handing out from some 4,000 probabilities on.
    int32_t per_task = s->v < 4096 ? (int32_t)(4096 / s->v) : 1;
    struct run run = {.s = s, .n = n, .rows_per_task = per_task, .logits = logits, .rows = rows};
    pool_run(d->pool, (n + per_task - 1) / per_task, sample_rows, &run);
}
