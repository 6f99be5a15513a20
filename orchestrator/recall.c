// Stored trajectories as a CHECK message; see recall.h. Pure but for reading the ledger; runs on the loop's thread.
#include "orchestrator/recall.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

struct choice {
    uint64_t hash;
    struct ledger_unit_key key;
    int32_t place; // in the step
};

static int lowest_hash(const void *a, const void *b)
{
    const struct choice *x = a, *y = b;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    return (x->place > y->place) - (x->place < y->place);
}

static int first_place(const void *a, const void *b)
{
    const struct choice *x = a, *y = b;
    return (x->place > y->place) - (x->place < y->place);
}

// The share of the step's units with the lowest hashes, in the step's order; at least one.
static enum status choose(const struct recall *r, struct arena *a, struct choice **ret, int32_t *ret_n,
                          struct error *err)
{
    struct ledger_unit_key *units;
    int32_t n;
    enum status rc = ledger_step_units(r->ledger, r->step, a, &units, &n, err);
    if (rc)
        return rc;
    struct choice *v = arena_alloc(a, (size_t)n * sizeof *v);
    if (!v)
        return error_set(err, STATUS_NOMEM, "no memory for the %d trajectories of a step", n);
    for (int32_t i = 0; i < n; i++) {
        const uint64_t key[3] = {0x706172697479, (uint64_t)units[i].trajectory, (uint64_t)units[i].attempt};
        v[i] = (struct choice){hash64_seed(key, sizeof key, r->seed), units[i], i};
    }
    int32_t k = (int32_t)ceil(r->share * n);
    k = k < 1 ? 1 : k > n ? n : k;
    qsort(v, (size_t)n, sizeof *v, lowest_hash);
    qsort(v, (size_t)k, sizeof *v, first_place);
    *ret = v;
    *ret_n = k;
    return STATUS_OK;
}

struct collect { // sequences of the chosen units, until they are laid out in the message
    struct ledger_sequence *v;
    int32_t n, cap;
    int64_t n_tokens, n_kv;
    int64_t *versions; // every one that is named, unordered
    int32_t n_versions, cap_versions;
};

static void note_version(struct collect *s, int64_t version)
{
    for (int32_t i = 0; i < s->n_versions; i++)
        if (s->versions[i] == version)
            return;
    if (s->n_versions == s->cap_versions) {
        s->cap_versions = s->cap_versions ? 2 * s->cap_versions : 8;
        s->versions = mem_grow(s->versions, (size_t)s->cap_versions, sizeof *s->versions);
    }
    s->versions[s->n_versions++] = version;
}

// False: over what one message holds.
static bool add_sequence(struct collect *s, const struct ledger_sequence *q)
{
    const struct msg_kv *kv = q->kv;
    int64_t n_kv = q->kv_bytes / (int32_t)sizeof *kv;
    if (s->n_tokens + q->n > MSG_BATCH_MAX || s->n_kv + n_kv > MSG_CHECK_KV || s->n >= MSG_MEMBERS)
        return false;
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 64;
        s->v = mem_grow(s->v, (size_t)s->cap, sizeof *s->v);
    }
    s->v[s->n++] = *q;
    s->n_tokens += q->n;
    s->n_kv += n_kv;
    for (int32_t i = 0; i < q->n; i++)
        if (q->versions[i] >= 0 && (i == 0 || q->versions[i] != q->versions[i - 1]))
            note_version(s, q->versions[i]);
    for (int64_t i = 0; i < n_kv; i++)
        note_version(s, kv[i].version);
    return true;
}

static enum status collect(const struct recall *r, struct arena *a, const struct choice *v, int32_t n,
                           struct collect *s, struct error *err)
{
    for (int32_t i = 0; i < n; i++) {
        struct ledger_sequence *q;
        int32_t n_q;
        enum status rc =
            ledger_unit_tokens(r->ledger, v[i].key.trajectory, v[i].key.attempt, a, &q, &n_q, err);
        if (rc)
            return rc;
        for (int32_t k = 0; k < n_q; k++) {
            if (q[k].kv_bytes % (int32_t)sizeof(struct msg_kv))
                return error_set(err, STATUS_CORRUPT, "trajectory %lld: its KV events are cut off",
                                 (long long)v[i].key.trajectory);
            if (!add_sequence(s, &q[k]))
                return STATUS_OK;
        }
    }
    return STATUS_OK;
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static enum status fill_weights(const struct recall *r, struct arena *a, struct collect *s,
                                struct msg_check *m, struct error *err)
{
    int32_t n = s->n_versions < MSG_WEIGHTS ? s->n_versions : MSG_WEIGHTS;
    struct msg_weights *w = arena_alloc(a, (size_t)(n ? n : 1) * sizeof *w);
    if (!w)
        return error_set(err, STATUS_NOMEM, "no memory for a check");
    qsort(s->versions, (size_t)s->n_versions, sizeof *s->versions, ascending);
    for (int32_t i = 0; i < n; i++) { // the newest, if there are too many
        int64_t version = s->versions[s->n_versions - n + i];
        struct ledger_weights_file f = {"", ""};
        enum status rc = ledger_weights_read(r->ledger, version, &f, err);
        if (rc && rc != STATUS_NOTFOUND)
            return rc;
        w[i] = (struct msg_weights){version, arena_strndup(a, f.path, strlen(f.path)),
                                    arena_strndup(a, f.hash, strlen(f.hash))};
        if (!w[i].path || !w[i].hash)
            return error_set(err, STATUS_NOMEM, "no memory for a check");
    }
    m->n_weights = n;
    m->weights = w;
    return STATUS_OK;
}

static enum status fill_tokens(struct arena *a, const struct collect *s, struct msg_check *m,
                               struct error *err)
{
    size_t n = (size_t)s->n_tokens, at = 0, kv_at = 0;
    struct msg_check_segment *segments = arena_zalloc(a, (size_t)s->n * sizeof *segments);
    struct msg_kv *kv = arena_alloc(a, (size_t)(s->n_kv ? s->n_kv : 1) * sizeof *kv);
    int32_t *ids = arena_alloc(a, n * 4), *versions = arena_alloc(a, n * 4);
    float *logprobs = arena_alloc(a, n * 4), *temperatures = arena_alloc(a, n * 4);
    uint8_t *mask = arena_alloc(a, n);
    if (!segments || !kv || !ids || !versions || !logprobs || !temperatures || !mask)
        return error_set(err, STATUS_NOMEM, "no memory for the %zu tokens of a check", n);
    for (int32_t i = 0; i < s->n; i++) {
        const struct ledger_sequence *q = &s->v[i];
        size_t k = (size_t)q->n;
        segments[i] = (struct msg_check_segment){.trajectory = (uint64_t)q->member.trajectory,
                                                 .attempt = (uint32_t)q->member.attempt,
                                                 .segment = (uint32_t)q->member.segment,
                                                 .n_tokens = q->n,
                                                 .n_kv = q->kv_bytes / (int32_t)sizeof *kv};
        memcpy(ids + at, q->ids, k * 4);
        memcpy(mask + at, q->mask, k);
        memcpy(logprobs + at, q->logprobs, k * 4);
        memcpy(versions + at, q->versions, k * 4);
        memcpy(temperatures + at, q->temperatures, k * 4);
        if (q->kv_bytes)
            memcpy(kv + kv_at, q->kv, (size_t)q->kv_bytes);
        at += k;
        kv_at += (size_t)segments[i].n_kv;
    }
    m->n_segments = s->n;
    m->segments = segments;
    m->n_kv = (int32_t)s->n_kv;
    m->kv = kv;
    m->n_tokens = s->n_tokens;
    m->ids = ids;
    m->mask = mask;
    m->logprobs = logprobs;
    m->versions = versions;
    m->temperatures = temperatures;
    return STATUS_OK;
}

enum status recall_step(const struct recall *r, struct arena *arena, struct msg_check *ret, struct error *err)
{
    struct collect s = {0};
    struct choice *chosen;
    struct msg_check m = {.step = r->step};
    int32_t n;
    enum status rc = choose(r, arena, &chosen, &n, err);
    if (!rc)
        rc = collect(r, arena, chosen, n, &s, err);
    if (!rc)
        rc = fill_weights(r, arena, &s, &m, err);
    if (!rc && s.n > 0)
        rc = fill_tokens(arena, &s, &m, err);
    free(s.v);
    free(s.versions);
    if (!rc)
        *ret = m;
    return rc;
}
