// aggregate: see aggregate.h. Pure; any thread. Sums run in member order, in double (counts are exact in it).
#include "trainer/aggregate.h"

#include <assert.h>
#include <stdlib.h>

#include "base/mem.h"

static double token_mean(int32_t n, const struct aggregate_member *m, double *w)
{
    double total = 0;
    for (int32_t i = 0; i < n; i++)
        total += (double)m[i].multiplicity * (double)m[i].n_counted;
    for (int32_t i = 0; i < n; i++)
        w[i] = total > 0 ? m[i].multiplicity / total : 0;
    return total;
}

static double sequence_mean(int32_t n, const struct aggregate_member *m, int32_t n_trajectories, double *w)
{
    double *length = mem_must((size_t)n_trajectories + 1, sizeof *length), count = 0;
    double *times = mem_must((size_t)n_trajectories + 1, sizeof *times);
    for (int32_t i = 0; i < n; i++) {
        length[m[i].trajectory] += (double)m[i].n_counted;
        times[m[i].trajectory] = m[i].multiplicity;
    }
    for (int32_t j = 0; j < n_trajectories; j++)
        count += length[j] > 0 ? times[j] : 0;
    for (int32_t i = 0; i < n; i++)
        w[i] = m[i].n_counted > 0 ? m[i].multiplicity / (length[m[i].trajectory] * count) : 0;
    free(length);
    free(times);
    return count;
}

static double group_mean(int32_t n, const struct aggregate_member *m, int32_t n_groups, double *w)
{
    double *total = mem_must((size_t)n_groups + 1, sizeof *total), count = 0;
    for (int32_t i = 0; i < n; i++)
        total[m[i].group] += (double)m[i].multiplicity * (double)m[i].n_counted;
    for (int32_t g = 0; g < n_groups; g++)
        count += total[g] > 0;
    for (int32_t i = 0; i < n; i++)
        w[i] = m[i].n_counted > 0 ? m[i].multiplicity / (total[m[i].group] * count) : 0;
    free(total);
    return count;
}

enum status aggregate_weights(enum run_aggregation kind, int32_t n, const struct aggregate_member *members,
                              int32_t n_trajectories, int32_t n_groups, double *ret_weight, struct error *err)
{
    double denominator = 0;
    assert(kind != RUN_AGG_DEFAULT);
    if (kind == RUN_AGG_TOKEN_MEAN)
        denominator = token_mean(n, members, ret_weight);
    else if (kind == RUN_AGG_SEQUENCE_MEAN)
        denominator = sequence_mean(n, members, n_trajectories, ret_weight);
    else
        denominator = group_mean(n, members, n_groups, ret_weight);
    if (!(denominator > 0))
        return error_set(err, STATUS_NUMERIC,
                         "the loss has a zero denominator: none of %d sequences has a token that counts", n);
    return STATUS_OK;
}
