// What one step may hold, and what becomes of a run whose next step is more: it ends before the step is recorded, naming what to lower, and
// goes on from there once the step fits. The sizes are planted where the step asks the ledger (linked with --wrap, cmake/tests.cmake): a
// real step of 2^27 tokens would be 2 GB.
#include "loop_run.h"

static struct {
    int64_t step;
    int32_t members; // what the step has instead of its own, 0 = its own
    int64_t tokens;
} planted = {.step = -1};

enum status __real_ledger_step_prepare(struct ledger *l, const struct ledger_step *s, struct error *err);
enum status __wrap_ledger_step_prepare(struct ledger *l, const struct ledger_step *s, struct error *err);
enum status __real_ledger_step_tokens(struct ledger *l, int64_t step, int64_t *ret, struct error *err);
enum status __wrap_ledger_step_tokens(struct ledger *l, int64_t step, int64_t *ret, struct error *err);

enum status __wrap_ledger_step_prepare(struct ledger *l, const struct ledger_step *s, struct error *err)
{
    enum status rc = __real_ledger_step_prepare(l, s, err);
    if (!rc && s->step == planted.step && planted.members)
        ((struct ledger_step *)s)->n_members = planted.members; // the caller's own, and not const there
    return rc;
}

enum status __wrap_ledger_step_tokens(struct ledger *l, int64_t step, int64_t *ret, struct error *err)
{
    enum status rc = __real_ledger_step_tokens(l, step, ret, err);
    if (!rc && step == planted.step && planted.tokens)
        *ret = planted.tokens;
    return rc;
}

static void test_limits(void **unused)
{
    (void)unused;
    struct error err;
    assert_int_equal(step_fits(7, "rl", MSG_MEMBERS, MSG_BATCH_MAX, &err), STATUS_OK);
    assert_int_equal(step_fits(7, "rl", MSG_MEMBERS + 1, 10, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "step 7 has 131073 segments"));
    assert_int_equal(step_fits(7, "rl", 10, (int64_t)MSG_BATCH_MAX + 1, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "lower groups_per_step, group_size or batch_rows of stage rl"));
}

// The ledger of a run that ended before step n: nothing of the step is in it, its members wait as before.
static void check_refused(int64_t n, const char *figures, const char *stage)
{
    struct ledger *l;
    struct error err;
    struct ledger_state s;
    struct ledger_counts counts;
    char *text;
    json_t *audit;
    const int64_t max_lag[] = {0, MAX_LAG};
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_state_read(l, &s, &err), STATUS_OK);
    assert_int_equal(s.committed_steps, n);
    assert_int_equal(s.next_step, n);
    assert_false(s.has_prepared);
    assert_int_equal(ledger_counts_read(l, &counts, &err), STATUS_OK);
    assert_int_equal(counts.units[UNIT_LEASED], 0);
    assert_int_equal(ledger_audit(l, max_lag, 2, false, &audit, &err), STATUS_OK);
    assert_true(json_is_true(json_object_get(audit, "ok")));
    json_decref(audit);
    assert_int_equal(ledger_meta_get(l, "last_error", &text, &err), STATUS_OK);
    if (!strstr(text, figures) || !strstr(text, stage))
        fail_msg("%s", text);
    free(text);
    ledger_close(l);
}

// One too large, planted at `step`; then the run goes on without it.
static void refuses(int64_t step, int32_t members, int64_t tokens, const char *figures, const char *stage)
{
    const struct plan plan = {0};
    set_up_run();
    faults = NO_FAULTS;
    planted.step = step;
    planted.members = members;
    planted.tokens = tokens;
    assert_int_equal(play(&plan), 2); // wrong usage: no restart cures it
    check_refused(step, figures, stage);
    planted.step = -1;
    assert_int_equal(play(&plan), 0);
    check_ledger();
    clean_up();
}

static void test_supervised_step_of_too_many_tokens(void **unused)
{
    (void)unused;
    refuses(2, 0, (int64_t)MSG_BATCH_MAX + 1, "step 2 has 6 segments with 134217729 tokens", "of stage sft");
}

static void test_step_of_too_many_segments(void **unused)
{
    (void)unused;
    refuses(SFT_STEPS + 3, MSG_MEMBERS + 1, 0, "step 7 has 131073 segments", "of stage rl");
}

// The largest that a message holds is no reason to stop.
static void test_largest(void **unused)
{
    (void)unused;
    const struct plan plan = {0};
    set_up_run();
    faults = NO_FAULTS;
    planted.step = SFT_STEPS + 1;
    planted.members = 0;
    planted.tokens = MSG_BATCH_MAX;
    assert_int_equal(play(&plan), 0);
    planted.step = -1;
    check_ledger();
    clean_up();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits), cmocka_unit_test(test_supervised_step_of_too_many_tokens),
        cmocka_unit_test(test_step_of_too_many_segments), cmocka_unit_test(test_largest)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
