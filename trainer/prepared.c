// prepared: see prepared.h. Pure; any thread. Groups are dealt to updates in an order shuffled by the step's packing seed, whole
// groups only, as evenly as counts allow, so that the split is a function of the recorded step.
#include "trainer/prepared.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"

// Numbers keys in order of first appearance: open addressing over member indexes.
struct key {
    uint64_t a, b;
};

static int32_t number_keys(int32_t n, const struct key *keys, int32_t *ret_number)
{
    size_t size = 16;
    int32_t count = 0;
    while (size < 2 * (size_t)n)
        size *= 2;
    int32_t *slots = mem_must(size, sizeof *slots); // 1 + member that owns the slot
    for (int32_t i = 0; i < n; i++) {
        size_t s = hash64(&keys[i], sizeof keys[i]) & (size - 1);
        while (slots[s] && memcmp(&keys[slots[s] - 1], &keys[i], sizeof keys[i]) != 0)
            s = (s + 1) & (size - 1);
        if (!slots[s]) {
            slots[s] = i + 1;
            ret_number[i] = count++;
        } else {
            ret_number[i] = ret_number[slots[s] - 1];
        }
    }
    free(slots);
    return count;
}

static enum status check_tokens(const struct msg_prepare *m, int32_t i, int64_t first, int64_t vocab,
                                bool needs_rollout, struct error *err)
{
    for (int64_t t = first; t < first + m->members[i].n_tokens; t++) {
        if (m->ids[t] < 0 || m->ids[t] >= vocab)
            return error_set(err, STATUS_INVALID,
                             "member %d: token %lld has id %d, the vocabulary ends at %lld", i,
                             (long long)(t - first), m->ids[t], (long long)vocab);
        if (!m->mask[t])
            continue;
        if (t == first)
            return error_set(err, STATUS_INVALID,
                             "member %d: its first token cannot be trained (nothing before it)", i);
        if (!(m->temperatures[t] > 0) || !isfinite(m->temperatures[t]))
            return error_set(err, STATUS_INVALID, "member %d: token %lld has temperature %g", i,
                             (long long)(t - first), (double)m->temperatures[t]);
        if (needs_rollout && !isfinite(m->logprobs[t]))
            return error_set(err, STATUS_INVALID, "member %d: token %lld has the rollout log-probability %g",
                             i, (long long)(t - first), (double)m->logprobs[t]);
    }
    return STATUS_OK;
}

static enum status index_member(struct prepared *p, int32_t i, int64_t first, const struct model_config *c,
                                int64_t max_rows, bool needs_rollout, struct error *err)
{
    const struct msg_prepare *m = p->msg;
    const struct msg_member *src = &m->members[i];
    struct prepared_member *dst = &p->members[i];
    if (src->n_tokens < 1 || first + src->n_tokens > m->n_tokens)
        return error_set(err, STATUS_INVALID, "member %d: %d tokens, the step's arrays end at %lld", i,
                         src->n_tokens, (long long)m->n_tokens);
    if (src->multiplicity < 1 || !isfinite(src->advantage))
        return error_set(err, STATUS_INVALID, "member %d: multiplicity %d, advantage %g", i,
                         src->multiplicity, (double)src->advantage);
    enum status rc = check_tokens(m, i, first, c->vocab, needs_rollout, err);
    if (rc)
        return rc;
    dst->first = first;
    for (int32_t t = 0; t < src->n_tokens; t++) {
        if (m->mask[first + t]) {
            dst->first_trained = dst->n_trained ? dst->first_trained : t;
            dst->rows = t;
            dst->n_trained++;
        }
    }
    if (dst->rows > max_rows || dst->rows > c->max_position)
        return error_set(err, STATUS_RANGE,
                         "member %d: %d tokens, but the stage allows %lld and the model %lld", i,
                         dst->rows + 1, (long long)max_rows, (long long)c->max_position);
    p->longest = dst->rows > p->longest ? dst->rows : p->longest;
    p->n_trained += dst->n_trained;
    return STATUS_OK;
}

static enum status number_members(struct prepared *p, struct error *err)
{
    const struct msg_prepare *m = p->msg;
    enum status rc = STATUS_OK;
    size_t n = (size_t)m->n_members;
    struct key *keys = mem_must(n + 1, sizeof *keys);
    int32_t *number = mem_must(n + 1, sizeof *number), *first_of = mem_must(n + 1, sizeof *first_of);
    for (size_t i = 0; i < n; i++)
        keys[i] = (struct key){m->members[i].group, 0};
    p->n_groups = number_keys(m->n_members, keys, number);
    for (size_t i = 0; i < n; i++) {
        p->members[i].group = number[i];
        keys[i] = (struct key){m->members[i].trajectory, m->members[i].attempt};
    }
    p->n_trajectories = number_keys(m->n_members, keys, number);
    for (size_t i = 0; i < n && !rc; i++) {
        p->members[i].trajectory = number[i];
        int32_t *f = &first_of[number[i]]; // 1 + first member of the trajectory
        if (!*f)
            *f = (int32_t)i + 1;
        const struct msg_member *a = &m->members[*f - 1], *b = &m->members[i];
        if (a->group != b->group || a->multiplicity != b->multiplicity)
            rc = error_set(err, STATUS_INVALID,
                           "members %d and %zu are segments of one trajectory but differ in group or "
                           "multiplicity",
                           *f - 1, i);
    }
    free(first_of);
    free(number);
    free(keys);
    return rc;
}

static void deal_groups(struct prepared *p)
{
    int32_t n = p->n_groups;
    uint32_t *order = mem_must((size_t)n + 1, sizeof *order);
    struct rng rng;
    p->n_updates = p->msg->updates < n ? p->msg->updates : n;
    for (int32_t g = 0; g < n; g++)
        order[g] = (uint32_t)g;
    rng_init(&rng, p->msg->packing_seed, hash64("updates", 7));
    if (p->n_updates > 1)
        rng_shuffle_u32(&rng, order, (uint32_t)n);
    for (int32_t k = 0; k < n; k++)
        p->update_of_group[order[k]] = (int32_t)((int64_t)k * p->n_updates / n);
    free(order);
}

enum status prepared_init(struct prepared *ret, const struct msg_prepare *msg, const struct model_config *c,
                          int64_t max_rows, bool needs_rollout, struct error *err)
{
    struct prepared p = {.msg = msg};
    enum status rc = STATUS_OK;
    int64_t first = 0;
    if (msg->n_members < 1 || msg->updates < 1 || !isfinite(msg->lr) || msg->lr < 0)
        return error_set(err, STATUS_INVALID, "%d members, %d updates, learning rate %g", msg->n_members,
                         msg->updates, msg->lr);
    p.members = mem_must((size_t)msg->n_members, sizeof *p.members);
    p.update_of_group = mem_must((size_t)msg->n_members, sizeof *p.update_of_group);
    for (int32_t i = 0; i < msg->n_members && !rc; i++) {
        rc = index_member(&p, i, first, c, max_rows, needs_rollout, err);
        first += msg->members[i].n_tokens;
    }
    if (!rc && first != msg->n_tokens)
        rc = error_set(err, STATUS_INVALID, "the members have %lld tokens, the arrays %lld", (long long)first,
                       (long long)msg->n_tokens);
    if (!rc)
        rc = number_members(&p, err);
    if (rc) {
        prepared_done(&p);
        return rc;
    }
    deal_groups(&p);
    *ret = p;
    return STATUS_OK;
}

void prepared_done(struct prepared *p)
{
    free(p->members);
    free(p->update_of_group);
    *p = (struct prepared){0};
}

int32_t prepared_update_members(const struct prepared *p, int32_t update, int32_t *ret_members)
{
    int32_t n = 0;
    for (int32_t i = 0; i < p->msg->n_members; i++)
        if (p->update_of_group[p->members[i].group] == update)
            ret_members[n++] = i;
    return n;
}
