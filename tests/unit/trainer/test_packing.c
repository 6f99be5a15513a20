// trainer/packing.h and trainer/aggregate.h.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "trainer/aggregate.h"
#include "trainer/packing.h"

static int32_t bin_rows(const struct packing *p, int32_t b, const int32_t *rows)
{
    int32_t sum = 0;
    for (int32_t i = p->start[b]; i < p->start[b + 1]; i++)
        sum += rows[p->members[i]];
    return sum;
}

static void test_every_sequence_once_within_budget(void **state)
{
    (void)state;
    struct rng rng;
    struct error err;
    rng_init(&rng, 1, 2);
    for (int round = 0; round < 200; round++) {
        int32_t n = (int32_t)rng_below(&rng, 60), budget = 16 + (int32_t)rng_below(&rng, 100);
        int32_t members[64], rows[64], seen[64] = {0};
        int64_t total = 0;
        for (int32_t i = 0; i < n; i++) {
            members[i] = i;
            rows[i] = (int32_t)rng_below(&rng, round % 5 == 0 ? 200 : (uint64_t)budget);
            total += rows[i];
        }
        struct packing p;
        assert_int_equal(packing_init(&p, n, members, rows, budget, 9, &err), STATUS_OK);
        int32_t most = 0;
        for (int32_t b = 0; b < p.n_bins; b++) {
            int32_t sum = bin_rows(&p, b, rows);
            assert_true(p.start[b + 1] > p.start[b]);
            assert_true(sum <= budget || p.start[b + 1] - p.start[b] == 1);
            most = sum > most ? sum : most;
            for (int32_t i = p.start[b]; i < p.start[b + 1]; i++)
                seen[p.members[i]]++;
            // first fit: nothing of this bin would have fitted into an earlier one
            for (int32_t e = 0; e < b; e++)
                assert_true(bin_rows(&p, e, rows) + rows[p.members[p.start[b]]] > budget);
        }
        assert_int_equal(p.max_rows, most);
        for (int32_t i = 0; i < n; i++)
            assert_int_equal(seen[i], rows[i] > 0);
        packing_done(&p);
    }
}

static void test_seed_orders_equal_lengths(void **state)
{
    (void)state;
    int32_t members[40], rows[40], differ = 0;
    struct packing a, b, c;
    struct error err;
    for (int32_t i = 0; i < 40; i++) {
        members[i] = i;
        rows[i] = 10;
    }
    assert_int_equal(packing_init(&a, 40, members, rows, 45, 1, &err), STATUS_OK);
    assert_int_equal(packing_init(&b, 40, members, rows, 45, 1, &err), STATUS_OK);
    assert_int_equal(packing_init(&c, 40, members, rows, 45, 2, &err), STATUS_OK);
    assert_int_equal(a.n_bins, 10);
    assert_memory_equal(a.members, b.members, sizeof members);
    for (int i = 0; i < 40; i++)
        differ += a.members[i] != c.members[i];
    assert_true(differ > 10);
    packing_done(&a);
    packing_done(&b);
    packing_done(&c);
    assert_int_equal(packing_init(&a, 40, members, rows, 0, 1, &err), STATUS_RANGE);
}

// 100,000 sequences pack in well under a second: the search for room is logarithmic.
static void test_packs_many(void **state)
{
    (void)state;
    int32_t n = 100000;
    int32_t *members = mem_must((size_t)n, sizeof *members), *rows = mem_must((size_t)n, sizeof *rows);
    int64_t total = 0;
    struct rng rng;
    struct packing p;
    struct error err;
    rng_init(&rng, 3, 4);
    for (int32_t i = 0; i < n; i++) {
        members[i] = i;
        rows[i] = 1 + (int32_t)rng_below(&rng, 1000);
        total += rows[i];
    }
    assert_int_equal(packing_init(&p, n, members, rows, 1024, 1, &err), STATUS_OK);
    assert_true(p.n_bins < 1.03 * (double)total / 1024 + 2); // and wastes little
    packing_done(&p);
    free(members);
    free(rows);
}

static void test_aggregation_by_hand(void **state)
{
    (void)state;
    // trajectory 0 has two segments (2 + 4 tokens), trajectory 1 counts twice, trajectory 2 has nothing
    const struct aggregate_member m[] = {
        {0, 0, 1, 2}, {0, 0, 1, 4}, {1, 0, 2, 5}, {2, 1, 3, 0}, {3, 1, 1, 8}};
    const double token[] = {1.0 / 24, 1.0 / 24, 2.0 / 24, 3.0 / 24, 1.0 / 24};
    const double sequence[] = {1.0 / 24, 1.0 / 24, 2.0 / 20, 0, 1.0 / 32};
    const double group[] = {1.0 / 32, 1.0 / 32, 2.0 / 32, 0, 1.0 / 16};
    const double *const want[] = {token, sequence, group};
    struct error err;
    for (int k = 0; k < 3; k++) {
        double w[5];
        assert_int_equal(aggregate_weights(RUN_AGG_TOKEN_MEAN + k, 5, m, 4, 2, w, &err), STATUS_OK);
        for (int i = 0; i < 5; i++)
            assert_true(fabs(w[i] - want[k][i]) < 1e-15 || m[i].n_counted == 0);
        double w1;
        assert_int_equal(aggregate_weights(RUN_AGG_TOKEN_MEAN + k, 1, m + 3, 4, 2, &w1, &err),
                         STATUS_NUMERIC);
        assert_non_null(strstr(err.text, "zero denominator"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_sequence_once_within_budget),
        cmocka_unit_test(test_seed_orders_equal_lengths),
        cmocka_unit_test(test_packs_many),
        cmocka_unit_test(test_aggregation_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
