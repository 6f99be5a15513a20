// rollout/pages.h and rollout/sessions.h: sharing, purity, eviction in order, sessions that outlive their pages.
#include "tiny.h"

#include "rollout/pages.h"
#include "rollout/sessions.h"

enum { PT = 4 };

static int32_t fill(struct pages *p, int32_t before, int32_t first_id, int32_t version, bool own)
{
    int32_t ids[PT], versions[PT], page = pages_take(p);
    assert_true(page >= 0);
    for (int32_t i = 0; i < PT; i++) {
        ids[i] = first_id + i;
        versions[i] = version;
    }
    return pages_register(p, page, before, ids, versions, own);
}

static void test_share_and_purity(void **state)
{
    (void)state;
    struct pages *p = NULL;
    must(pages_open(6, PT, &p, err));
    static const int32_t ids[] = {10, 11, 12, 13, 20, 21, 22, 23, 30};
    int32_t found[4];
    uint64_t next;
    int32_t a = fill(p, -1, 10, 1, false), b = fill(p, a, 20, 1, false);
    assert_int_equal(pages_match(p, 1, ids, 9, found, &next), 2);
    assert_int_equal(found[0], a);
    assert_int_equal(found[1], b);
    assert_int_equal(pages_match(p, 1, ids, 7, found, &next), 1); // whole pages only
    assert_int_equal(pages_match(p, 2, ids, 9, found, &next), 0); // another version
    assert_true(next != 0);
    assert_int_equal(pages_match(p, 1, ids + 4, 4, found, &next), 0); // the same tokens elsewhere

    // The same contents again: one page serves both holders.
    assert_int_equal(fill(p, -1, 10, 1, false), a);
    assert_int_equal(pages_available(p), 4);
    pages_release(p, a);
    assert_true(pages_held(p, a));

    // Made by version 2 on top of version 1: not pure, so remembered for a session only.
    int32_t c = fill(p, b, 30, 2, false), d = fill(p, b, 30, 2, true);
    assert_true(c != d);
    assert_int_equal(pages_serial(p, c), 0);
    assert_true(pages_serial(p, d) != 0);
    pages_close(p);
}

static void test_eviction_and_sessions(void **state)
{
    (void)state;
    struct pages *p = NULL;
    must(pages_open(3, PT, &p, err));
    struct sessions *s = sessions_open(1);
    static const int32_t ids[] = {10, 11, 12, 13, 20, 21, 22, 23};
    int32_t found[4], held[2];
    held[0] = fill(p, -1, 10, 1, true);
    held[1] = fill(p, held[0], 20, 1, true);
    sessions_put(s, 7, p, held, 2);
    pages_release(p, held[1]);
    pages_release(p, held[0]);
    assert_int_equal(pages_available(p), 3);
    assert_int_equal(sessions_match(s, 7, p, PT, ids, 8, found), 2);
    assert_int_equal(sessions_match(s, 8, p, PT, ids, 8, found), 0);

    int32_t x = pages_take(p), y = pages_take(p); // the free one, then the last of the chain
    assert_int_equal(y, held[1]);
    assert_int_equal(pages_match(p, 1, ids, 8, found, NULL), 1);
    assert_int_equal(sessions_match(s, 7, p, PT, ids, 8, found), 1); // notices that its second page is gone
    pages_ref(p, held[0]);
    assert_int_equal(pages_take(p), -1); // all are held
    pages_release(p, held[0]);
    pages_forget(p);
    assert_int_equal(pages_match(p, 1, ids, 8, found, NULL), 0);
    assert_int_equal(sessions_match(s, 7, p, PT, ids, 8, found), 0);

    sessions_put(s, 9, p, &x, 0); // room for one session: 7 gives way
    assert_int_equal(sessions_match(s, 7, p, PT, ids, 8, found), 0);
    sessions_close(s);
    pages_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_share_and_purity),
        cmocka_unit_test(test_eviction_and_sessions),
    };
    return cmocka_run_group_tests_name("rollout pages", tests, NULL, NULL);
}
