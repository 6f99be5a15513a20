// The whole orchestrator against a fake engine pair, a fake trainer and a fake task service, each a process of its own that speaks the
// real protocols: SFT, then RL, evaluations between, with an engine lost in the middle of a turn, a trainer lost in the middle of a
// step (restore, replay, equal hashes), the service lost, and the orchestrator killed by SIGKILL. The run must end as if nothing had
// happened: every step committed once, the ledger's audit clean.
#include "loop_run.h"

static void test_losses(void **unused)
{
    (void)unused;
    set_up_run();
    faults = LOSSES;
    const struct plan plan = {.kill_orch_at = SFT_STEPS + 4, .kill_task_at = SFT_STEPS + 7};
    assert_int_equal(play(&plan), 0);
    assert_int_equal(restarts_of[ENGINE0], 1);
    assert_int_equal(restarts_of[TRAINER], 2);
    check_ledger();
    clean_up();
}

static void check_state(const char *want, int64_t at_most)
{
    struct ledger *l;
    struct error err;
    struct ledger_state s;
    char *state;
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_state_read(l, &s, &err), STATUS_OK);
    assert_int_equal(ledger_meta_get(l, "state", &state, &err), STATUS_OK);
    assert_string_equal(state, want);
    assert_true(s.committed_steps <= at_most);
    assert_int_equal(s.checkpoint.step, s.committed_steps); // the drain ended in a checkpoint
    free(state);
    ledger_close(l);
}

static int64_t trained_of(const char *task)
{
    struct ledger *l;
    struct error err;
    json_t *rewards;
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_rewards(l, 10000, &rewards, &err), STATUS_OK);
    int64_t n = json_integer_value(json_object_get(json_object_get(rewards, task), "n"));
    json_decref(rewards);
    ledger_close(l);
    return n;
}

// Ctrl-C in the middle, `ooze resume` later; a service registered at run time is part of both sittings.
static void test_stop_and_resume(void **unused)
{
    (void)unused;
    set_up_run();
    faults = NO_FAULTS;
    const struct plan first = {.register_at = SFT_STEPS + 1, .stop_at = SFT_STEPS + 6}, second = {0};
    assert_int_equal(play(&first), 0);
    check_state("stopped", STEPS - 1);
    assert_int_equal(play(&second), 0);
    check_ledger();
    clean_up();
}

// SIGKILL of the orchestrator when the second stage's first groups are out and none of its steps is committed.
static void test_killed_at_boundary(void **unused)
{
    (void)unused;
    set_up_run();
    faults = NO_FAULTS;
    const struct plan plan = {.kill_orch_at = SFT_STEPS + 2}; // the line after the stage's evaluation
    assert_int_equal(play(&plan), 0);
    check_ledger();
    clean_up();
}

// SIGKILL of the orchestrator after the commit of a stage's last step and before the trainer knows of it: the trainer lives on, and
// its checkpoint, which the end of the stage waits for, is still written.
static void test_lost_acknowledgement(void **unused)
{
    (void)unused;
    set_up_run();
    faults = LOST_ACK;
    const struct plan plan = {0};
    assert_int_equal(play(&plan), 0);
    assert_int_equal(restarts_of[ORCH], 1);
    assert_int_equal(restarts_of[TRAINER], 0);
    check_ledger();
    clean_up();
}

// A trainer that does not compute the same bits twice: the run stops and names both hashes.
static void test_conflict_stops_the_run(void **unused)
{
    (void)unused;
    struct ledger *l;
    struct error err;
    char *text;
    set_up_run();
    faults = OTHER_BITS;
    const struct plan plan = {0};
    assert_int_equal(play(&plan), 1);
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_meta_get(l, "last_error", &text, &err), STATUS_OK);
    if (!strstr(text, "recorded weights hash") || !strstr(text, ", now "))
        fail_msg("%s", text);
    free(text);
    ledger_close(l);
    clean_up();
}

// A trainer that answers pings but never its step: fenced when the lease is over; the next one gets the same step. A service
// registered meanwhile has its share of the groups.
static void test_lease(void **unused)
{
    (void)unused;
    set_up_run();
    char with_lease[sizeof config + 100];
    snprintf(with_lease, sizeof with_lease, "%s%s", config, check_config);
    memcpy(strstr(with_lease, "lease_ms: 20000"), "lease_ms: 1500 ", 15);
    put_file("config.yaml", with_lease);
    faults = HANGS;
    const struct plan plan = {.register_at = 1};
    assert_int_equal(play(&plan), 0);
    assert_int_equal(restarts_of[TRAINER], 1);
    check_ledger();
    assert_true(trained_of("pair") > 0 && trained_of("other") > 0);
    clean_up();
}

// The model ends its turns with stop ids of its own. Killed between a turn's tokens and the service's reply, the orchestrator still
// knows that they were not cut off.
static void test_stop_ids_of_the_model(void **unused)
{
    (void)unused;
    set_up_run();
    faults = OTHER_STOP;
    const struct plan plan = {.kill_orch_at = SFT_STEPS + 4};
    assert_int_equal(play(&plan), 0);
    assert_int_equal(restarts_of[ORCH], 1);
    check_ledger();
    clean_up();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_losses),
                                       cmocka_unit_test(test_stop_and_resume),
                                       cmocka_unit_test(test_conflict_stops_the_run),
                                       cmocka_unit_test(test_lease),
                                       cmocka_unit_test(test_killed_at_boundary),
                                       cmocka_unit_test(test_lost_acknowledgement),
                                       cmocka_unit_test(test_stop_ids_of_the_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
