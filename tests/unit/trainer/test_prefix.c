// trainer/prefix.h: who shares rows with whom, and the packing of what comes of it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "model/model.h"
#include "trainer/prefix.h"

#define MEMBERS 200
#define TOKENS  (1 << 18)
#define BLOCK   ((int32_t)ATTN_BLOCK)

// Members of a step, written token by token.
struct steps {
    struct msg_prepare msg;
    struct msg_member members[MEMBERS];
    struct prepared prepared;
    struct prepared_member prepared_members[MEMBERS];
    int32_t ids[TOKENS], all[MEMBERS];
    uint8_t mask[TOKENS];
    struct prefix x;
};

static struct steps *steps_new(void)
{
    struct steps *s = mem_must(1, sizeof *s);
    s->msg.members = s->members;
    s->msg.ids = s->ids;
    s->msg.mask = s->mask;
    s->prepared.msg = &s->msg;
    s->prepared.members = s->prepared_members;
    for (int i = 0; i < MEMBERS; i++)
        s->all[i] = i;
    return s;
}

static void steps_free(struct steps *s)
{
    prefix_done(&s->x);
    free(s);
}

// A member of n tokens, all `id` but for the `prompt` first, which are `of`; trained from token `trained` on.
static int32_t add(struct steps *s, int32_t n, int32_t prompt, int32_t of, int32_t id, int32_t trained)
{
    int32_t i = s->msg.n_members++;
    int64_t first = s->msg.n_tokens;
    assert_true(i < MEMBERS && first + n <= TOKENS);
    for (int32_t t = 0; t < n; t++) {
        s->ids[first + t] = t < prompt ? of + t % 7 : id;
        s->mask[first + t] = t >= trained;
    }
    s->members[i].n_tokens = n;
    s->prepared_members[i] = (struct prepared_member){
        .first = first, .rows = trained < n ? n - 1 : 0, .first_trained = trained, .n_trained = n - trained};
    s->msg.n_tokens += n;
    return i;
}

static int32_t sum_of(const int32_t *x, int32_t n)
{
    int32_t sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

// Finds the trees and checks every promise of the header but the choice itself.
static void find(struct steps *s, int32_t budget)
{
    struct prefix *x = &s->x;
    int32_t n = s->msg.n_members, seen[MEMBERS] = {0};
    prefix_done(x);
    prefix_init(x, &s->prepared, n, s->all, budget, true);
    for (int32_t root = 0; root < n; root++) {
        const struct prepared_member *r = &s->prepared_members[root];
        struct train_tree tree = {0};
        if (x->shared[root] || !r->rows) {
            assert_int_equal(x->rows[root], 0);
            seen[root] += !r->rows;
            continue;
        }
        for (int32_t i = root; i >= 0; i = x->next[i]) {
            const struct prepared_member *m = &s->prepared_members[i];
            seen[i]++;
            train_tree_add(&tree, m->rows - x->shared[i], x->shared[i]);
            assert_int_equal(x->shared[i] % BLOCK, 0);
            assert_true(i == root ? x->shared[i] == 0 : x->shared[i] > 0);
            assert_true(x->shared[i] < m->rows && x->shared[i] <= r->rows);
            assert_memory_equal(s->ids + r->first, s->ids + m->first, (size_t)x->shared[i] * sizeof(int32_t));
            for (int32_t t = 0; t <= x->shared[i] && i != root; t++)
                assert_false(s->mask[m->first + t]);
        }
        assert_int_equal(tree.rows, x->rows[root]);
        assert_true(tree.rows <= budget || tree.rows == r->rows);
        assert_true(train_tree_fits(&tree));
    }
    for (int32_t i = 0; i < n; i++)
        assert_int_equal(seen[i], 1);
}

static void test_group(void **state)
{
    (void)state;
    struct steps *s = steps_new();
    for (int i = 0; i < 4; i++)
        add(s, 150, 100, 1, 50 + i, 100);
    for (int i = 0; i < 4; i++) // of another prompt
        add(s, 150, 100, 9, 50 + i, 100);
    find(s, 4096);
    assert_int_equal(sum_of(s->x.shared, 8), 6 * 96);
    // the prompt is as long as the block: its last row predicts a trained token
    s->msg.n_members = 0;
    s->msg.n_tokens = 0;
    for (int i = 0; i < 4; i++)
        add(s, 150, 96, 1, 50 + i, 96);
    find(s, 4096);
    assert_int_equal(sum_of(s->x.shared, 4), 3 * 64);
    // one token more
    s->msg.n_members = 0;
    s->msg.n_tokens = 0;
    for (int i = 0; i < 4; i++)
        add(s, 150, 97, 1, 50 + i, 97);
    find(s, 4096);
    assert_int_equal(sum_of(s->x.shared, 4), 3 * 96);
    steps_free(s);
}

static void test_nothing_in_common(void **state)
{
    (void)state;
    struct steps *s = steps_new();
    for (int i = 0; i < 8; i++)
        add(s, 100, 0, 0, 50 + i, 60);
    add(s, 20, 0, 0, 50, 5);     // shorter than a block
    add(s, 100, 0, 0, 50, 3);    // trained within the first block: a root at best
    add(s, 100, 90, 3, 50, 100); // nothing trained: no rows
    find(s, 4096);
    // members 0 and 9 are equal: 9 trains first, so it is the root
    assert_int_equal(sum_of(s->x.shared, 11), 32);
    assert_int_equal(s->x.shared[0], 32);
    assert_int_equal(s->x.next[9], 0);
    prefix_done(&s->x);
    prefix_init(&s->x, &s->prepared, 11, s->all, 4096, false);
    assert_int_equal(sum_of(s->x.shared, 11), 0);
    assert_int_equal(sum_of(s->x.rows, 11), 8 * 99 + 19 + 99);
    steps_free(s);
}

// Segments of one trajectory: the second one has the first one's tokens as context. Duplicates, and ids that end early.
static void test_segments(void **state)
{
    (void)state;
    struct steps *s = steps_new();
    int32_t first = add(s, 200, 200, 1, 0, 130), second = add(s, 400, 200, 1, 60, 300);
    find(s, 4096);
    assert_int_equal(s->x.shared[second], 192); // rows of the first one that train tokens serve too
    assert_int_equal(s->x.next[first], second);
    int32_t same = add(s, 400, 200, 1, 60, 300), early = add(s, 250, 200, 1, 60, 240);
    find(s, 4096);
    assert_int_equal(s->x.shared[second] + s->x.shared[same] + s->x.shared[early], 3 * 192);
    // without the first one, duplicates share all that they do not train, and so does what ends early
    s->prepared_members[first].rows = 0;
    find(s, 4096);
    assert_int_equal(s->x.shared[second] + s->x.shared[same], 2 * 224);
    assert_int_equal(s->x.shared[early], 0);
    steps_free(s);
}

// A system prompt before all prompts: each group has its own tree, what is alone goes where the system prompt is.
static void test_two_levels(void **state)
{
    (void)state;
    struct steps *s = steps_new();
    for (int g = 0; g < 5; g++)
        for (int i = 0; i < (g < 4 ? 8 : 1); i++) {
            int32_t m = add(s, 250, 64, 1, 50 + i, 200);
            for (int32_t t = 64; t < 200; t++)
                s->ids[s->prepared_members[m].first + t] = 20 + g;
        }
    find(s, 4096);
    assert_int_equal(sum_of(s->x.shared, 33), 4 * 7 * 192 + 64);
    steps_free(s);
}

static void test_budget(void **state)
{
    (void)state;
    struct steps *s = steps_new();
    struct packing p;
    struct error err;
    for (int i = 0; i < 16; i++)
        add(s, 301, 201, 1, 50 + i, 201); // 300 rows, 192 shared: 108 its own
    for (int32_t budget = 100; budget < 3000; budget += 50) {
        int32_t most = budget < 300 ? 1 : 1 + (budget - 300) / 108, trees = (16 + most - 1) / most, seen = 0;
        find(s, budget);
        assert_int_equal(sum_of(s->x.shared, 16), (16 - trees) * 192);
        assert_int_equal(prefix_pack(&s->x, 16, s->all, budget, 7, &p, &err), STATUS_OK);
        for (int32_t b = 0; b < p.n_bins; b++) {
            int32_t rows = 0;
            for (int32_t k = p.start[b]; k < p.start[b + 1]; k++) {
                int32_t i = p.members[k];
                rows += s->prepared_members[i].rows - s->x.shared[i];
                seen |= 1 << i;
                // a branch stands behind its root or another branch of it
                assert_true(!s->x.shared[i] || (k > p.start[b] && s->x.next[p.members[k - 1]] == i));
            }
            assert_true(rows <= budget || p.start[b + 1] - p.start[b] == 1);
            assert_true(rows <= p.max_rows);
        }
        assert_int_equal(seen, 0xffff);
        assert_int_equal(p.start[p.n_bins], 16);
        packing_done(&p);
    }
    steps_free(s);
}

// Answers of one token to a long prompt: pages, not rows, are what a tree runs out of.
static void test_short_answers(void **state)
{
    (void)state;
    struct steps *s = steps_new();
    for (int i = 0; i < MEMBERS; i++)
        add(s, 1026, 1025, 1, 50 + i, 1025);
    find(s, 1 << 20);
    int32_t trees = MEMBERS - sum_of(s->x.shared, MEMBERS) / 1024;
    assert_true(trees > 1 && trees < 6);
    steps_free(s);
}

// Members of random kinship keep every promise.
static void test_random(void **state)
{
    (void)state;
    struct steps *s = steps_new();
    struct rng r;
    rng_init(&r, 5, 6);
    for (int round = 0; round < 300; round++) {
        s->msg.n_members = 0;
        s->msg.n_tokens = 0;
        for (int i = 0, n = 1 + (int)rng_below(&r, 40); i < n; i++) {
            int32_t tokens = 2 + (int32_t)rng_below(&r, round % 3 ? 200 : 1000),
                    trained = 1 + (int32_t)rng_below(&r, (uint64_t)tokens);
            int32_t m = add(s, tokens, (int32_t)rng_below(&r, (uint64_t)tokens + 1), 1, 50, trained);
            for (int32_t t = trained + 1; t < tokens; t++)
                s->mask[s->prepared_members[m].first + t] = rng_below(&r, 3) > 0 || t == tokens - 1;
            if (trained == tokens - 1)
                s->mask[s->prepared_members[m].first + trained] = 1;
        }
        find(s, 64 + (int32_t)rng_below(&r, 2000));
    }
    steps_free(s);
}

// 100,000 members with much in common, in a second or two: near-linear.
static void test_many(void **state)
{
    (void)state;
    int32_t n = 100000, per = 200;
    struct msg_prepare msg = {.n_members = n};
    struct prepared p = {.msg = &msg, .members = mem_must((size_t)n, sizeof *p.members)};
    int32_t *ids = mem_must((size_t)n * (size_t)per, sizeof *ids), *all = mem_must((size_t)n, sizeof *all);
    int64_t shared = 0;
    for (int32_t i = 0; i < n; i++) {
        all[i] = i;
        p.members[i] = (struct prepared_member){
            .first = (int64_t)i * per, .rows = per - 1, .first_trained = 150, .n_trained = 50};
        for (int32_t t = 0; t < per; t++)
            ids[(int64_t)i * per + t] = t < 64 ? 5 : t < 140 ? i % 12500 : i;
    }
    msg.ids = ids;
    struct prefix x;
    prefix_init(&x, &p, n, all, 4096, true);
    for (int32_t i = 0; i < n; i++)
        shared += x.shared[i];
    assert_true(shared >= (int64_t)7 * 12500 * 128);
    prefix_done(&x);
    free(all);
    free(ids);
    free(p.members);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group),         cmocka_unit_test(test_nothing_in_common),
        cmocka_unit_test(test_segments),      cmocka_unit_test(test_two_levels),
        cmocka_unit_test(test_budget),        cmocka_unit_test(test_random),
        cmocka_unit_test(test_short_answers), cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
