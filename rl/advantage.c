// Advantages: see advantage.h for the equations. Pure functions without state, any thread.
#include "rl/advantage.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static bool all_equal(const double *r, int n)
{
    for (int i = 1; i < n; i++)
        if (r[i] != r[0])
            return false;
    return true;
}

static double mean_of(const double *r, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += r[i];
    return sum / n;
}

// (r - mean) / (unbiased std + eps); one row has no spread and gets 0.
static void whiten(const double *r, int n, double *ret)
{
    memset(ret, 0, (size_t)n * sizeof *ret);
    if (n < 2 || all_equal(r, n))
        return;
    double mean = mean_of(r, n), square = 0;
    for (int i = 0; i < n; i++)
        square += (r[i] - mean) * (r[i] - mean);
    double std = sqrt(square / (n - 1));
    for (int i = 0; i < n; i++)
        ret[i] = (r[i] - mean) / (std + ADVANTAGE_EPS);
}

static void advantage_grpo(const double *r, int n, double *ret)
{
    whiten(r, n, ret);
}

static void advantage_reinforce_pp(const double *r, int n, double *ret)
{
    whiten(r, n, ret);
}

static void advantage_group_centered(const double *r, int n, double *ret)
{
    memset(ret, 0, (size_t)n * sizeof *ret);
    if (all_equal(r, n))
        return;
    double mean = mean_of(r, n);
    for (int i = 0; i < n; i++)
        ret[i] = r[i] - mean;
}

static void advantage_rloo(const double *r, int n, double *ret)
{
    memset(ret, 0, (size_t)n * sizeof *ret);
    if (n < 2 || all_equal(r, n))
        return;
    double sum = mean_of(r, n) * n;
    for (int i = 0; i < n; i++)
        ret[i] = r[i] - (sum - r[i]) / (n - 1);
}

enum scope { SCOPE_GROUP, SCOPE_BATCH };

static const struct row {
    const char *name;
    void (*fn)(const double *r, int n, double *ret);
    enum scope scope;
    int least;
} table[] = {
#define ADVANTAGE(id, fn, scope, least) [RUN_ADV_##id] = {#fn, advantage_##fn, SCOPE_##scope, least},
#include "rl/advantage.def"
#undef ADVANTAGE
};

static const struct row *row_of(enum run_advantage a)
{
    assert((size_t)a < sizeof table / sizeof *table && table[a].fn);
    return &table[a];
}

bool advantage_is_batch(enum run_advantage a)
{
    return row_of(a)->scope == SCOPE_BATCH;
}

int advantage_least_members(enum run_advantage a)
{
    return row_of(a)->least;
}

const char *advantage_name(enum run_advantage a)
{
    return row_of(a)->name;
}

struct keyed {
    int64_t key;
    int row;
};

static int keyed_compare(const void *a, const void *b)
{
    const struct keyed *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

void advantage_compute(enum run_advantage a, const int64_t *groups, const double *rewards, int n, double *ret)
{
    const struct row *row = row_of(a);
    if (n <= 0)
        return;
    if (row->scope == SCOPE_BATCH) {
        row->fn(rewards, n, ret);
        return;
    }
    struct keyed *order = mem_must((size_t)n, sizeof *order);
    double *in = mem_must((size_t)n * 2, sizeof *in), *out = in + n;
    for (int i = 0; i < n; i++)
        order[i] = (struct keyed){groups[i], i};
    qsort(order, (size_t)n, sizeof *order, keyed_compare);
    for (int from = 0, to; from < n; from = to) {
        for (to = from; to < n && order[to].key == order[from].key; to++)
            in[to - from] = rewards[order[to].row];
        if (to - from < row->least)
            memset(out, 0, (size_t)(to - from) * sizeof *out);
        else
            row->fn(in, to - from, out);
        for (int i = from; i < to; i++)
            ret[order[i].row] = out[i - from];
    }
    free(in);
    free(order);
}
