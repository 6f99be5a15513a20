// The drift gate against fakes (fake_trainer.h, fake_engine.h): what a check brings is what the ledger holds, what it finds is recorded,
// and every way that it can end.
#include "loop_run.h"

#define STRICT   "check: {every: 3, share: 0.5}\n"
#define N_CHECKS 4 // of the rl stage: its first step, …, its last

static json_t *parity_rows(void)
{
    struct ledger *l;
    struct error err;
    json_t *rows;
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_parity_list(l, 1000, &rows, &err), STATUS_OK);
    ledger_close(l);
    return rows;
}

static struct ledger_parity_totals parity_totals(void)
{
    struct ledger *l;
    struct error err;
    struct ledger_parity_totals t;
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_parity_totals_read(l, &t, &err), STATUS_OK);
    ledger_close(l);
    return t;
}

static int64_t rows_of(const json_t *rows, const char *kind, int64_t step)
{
    int64_t n = 0;
    size_t i;
    json_t *r;
    json_array_foreach((json_t *)rows, i, r) n +=
        strcmp(json_string_value(json_object_get(r, "kind")), kind) == 0 &&
        (step < 0 || json_integer_value(json_object_get(r, "step")) == step);
    return n;
}

static void last_error_says(const char *const *words)
{
    struct ledger *l;
    struct error err;
    char *text;
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_meta_get(l, "last_error", &text, &err), STATUS_OK);
    for (; *words; words++)
        if (!strstr(text, *words))
            fail_msg("\"%s\" is not in: %s", *words, text);
    free(text);
    ledger_close(l);
}

static void start(int fault, const char *check)
{
    check_config = check;
    set_up_run();
    faults = fault;
}

// A run without faults: both engines probed, steps 0, 3, 6, 9 of the rl stage scored again, half of their trajectories.
static void test_whole_run(void **unused)
{
    (void)unused;
    const struct plan plan = {0};
    start(NO_FAULTS, STRICT);
    assert_int_equal(play(&plan), 0);
    check_ledger();
    json_t *rows = parity_rows();
    assert_int_equal(rows_of(rows, "probe", -1), 2);
    assert_int_equal(rows_of(rows, "step", -1), N_CHECKS);
    for (int64_t k = 0; k < RL_STEPS; k += 3)
        assert_int_equal(rows_of(rows, "step", SFT_STEPS + k), 1);
    json_decref(rows);
    struct ledger_parity_totals t = parity_totals();
    double coverage = (double)t.tokens / (double)t.tokens_trained;
    assert_true(t.failed == 0 && t.max_abs_diff == 0 && t.skipped == 0 && t.crossing == N_CHECKS);
    assert_true(coverage > 0.15 && coverage < 0.35);                   // half of every second step
    assert_int_equal(lines_of("metrics.jsonl"), STEPS + 5 + N_CHECKS); // steps, evaluations, checks
    clean_up();
}

// The gate fails: the run stops and names token, logprobs, engine, layer, block and op.
static void test_drift_names_the_op(void **unused)
{
    (void)unused;
    const struct plan plan = {0};
    start(DRIFT, STRICT);
    assert_int_equal(play(&plan), 1);
    last_error_says((const char *const[]){"parity: trajectory ", " token ", "recorded log-probability -1.5,",
                                          "scored again -1.5000009", "allowed 0", "the trainer and engine-1",
                                          "layer 1, block mlp, op gemm", NULL});
    json_t *rows = parity_rows(), *last = json_array_get(rows, json_array_size(rows) - 1);
    assert_true(json_is_false(json_object_get(last, "ok")));
    assert_int_equal(json_integer_value(json_object_get(last, "step")), SFT_STEPS + DRIFT_AT);
    assert_true(json_integer_value(json_object_get(last, "trajectory")) > 0);
    assert_non_null(
        strstr(json_string_value(json_object_get(last, "detail")), "layer 1, block mlp, op gemm"));
    json_decref(rows);
    clean_up();
}

// The gate fails over what nobody computes otherwise by then.
static void test_passing_fault(void **unused)
{
    (void)unused;
    const struct plan plan = {0};
    start(PASSING, STRICT);
    assert_int_equal(play(&plan), 1);
    last_error_says(
        (const char *const[]){"agrees now", "engine-0", "engine-1", "KV history or a passing fault", NULL});
    clean_up();
}

// An engine that computes otherwise is found before it has done harm.
static void test_odd_engine_is_probed(void **unused)
{
    (void)unused;
    const struct plan plan = {0};
    start(ODD_ENGINE, STRICT);
    assert_int_equal(play(&plan), 1);
    last_error_says((const char *const[]){"the trainer and engine-0", "layer 1, block mlp, op gemm", NULL});
    json_t *rows = parity_rows();
    assert_int_equal(rows_of(rows, "step", -1), 0);
    json_decref(rows);
    clean_up();
}

// A trainer lost over a check: the next one gets the same check. One lost over it each time: the check is given up, the run is not.
static void test_trainer_lost(void **unused)
{
    (void)unused;
    const struct plan plan = {0};
    start(CHECK_DEATH, STRICT);
    assert_int_equal(play(&plan), 0);
    assert_int_equal(restarts_of[TRAINER], 1);
    check_ledger();
    struct ledger_parity_totals t = parity_totals();
    assert_true(t.checks == N_CHECKS && t.skipped == 0);
    clean_up();
    start(CHECK_DEATHS, "check: {every: 100, share: 0.5}\n");
    assert_int_equal(play(&plan), 0);
    assert_int_equal(restarts_of[TRAINER], 3);
    check_ledger();
    t = parity_totals();
    assert_true(t.checks == 1 && t.segments == 0 && t.failed == 0);
    clean_up();
}

static void test_weights_gone(void **unused)
{
    (void)unused;
    const struct plan plan = {0};
    start(NO_WEIGHTS, STRICT);
    assert_int_equal(play(&plan), 0);
    check_ledger();
    struct ledger_parity_totals t = parity_totals();
    assert_true(t.checks == N_CHECKS && t.segments == 0 && t.skipped > 0 && t.tokens == 0);
    clean_up();
}

// A history that contradicts itself ends a strict run by itself, and hides no difference found beside it.
static void test_broken_history(void **unused)
{
    (void)unused;
    const struct plan plan = {0};
    start(DRIFT_AND_HISTORY, STRICT);
    assert_int_equal(play(&plan), 1);
    last_error_says((const char *const[]){"recorded log-probability -1.5,", "scored again -1.5000009", NULL});
    clean_up();
    start(ODD_HISTORY, STRICT);
    assert_int_equal(play(&plan), 1);
    last_error_says((const char *const[]){"a history that contradicts itself", "ooze show", NULL});
    assert_int_equal(parity_totals().failed, 1);
    clean_up();
    start(ODD_HISTORY, "check: {every: 3, share: 0.5, numerics: relaxed, band: 0.02}\n");
    assert_int_equal(play(&plan), 0);
    struct ledger_parity_totals t = parity_totals();
    assert_true(t.failed == 0 && t.skipped == 1 && t.segments > 0);
    clean_up();
}

// The orchestrator is killed and comes back, then the run is stopped and resumed: the last step is scored again each time.
static void test_resume(void **unused)
{
    (void)unused;
    const struct plan first = {.kill_orch_at = SFT_STEPS + 6, .stop_at = SFT_STEPS + 9}, second = {0};
    start(NO_FAULTS, STRICT);
    assert_int_equal(play(&first), 0);
    assert_int_equal(play(&second), 0);
    check_ledger();
    json_t *rows = parity_rows();
    assert_int_equal(rows_of(rows, "resume", -1), 2);
    json_decref(rows);
    clean_up();
}

// numerics: relaxed: an engine of another instruction set is let in, differences within the band pass, others do not.
static void test_relaxed(void **unused)
{
    (void)unused;
    const struct plan plan = {0};
    start(OTHER_ISA, "check: {every: 3, share: 0.5, numerics: relaxed, band: 0.02}\n");
    assert_int_equal(play(&plan), 0);
    check_ledger();
    struct ledger_parity_totals t = parity_totals();
    assert_true(t.failed == 0 && t.max_abs_diff == 0.01 && t.probes == 2);
    clean_up();
    start(OTHER_ISA, "check: {every: 3, share: 0.5, numerics: relaxed, band: 0.005}\n");
    assert_int_equal(play(&plan), 1);
    last_error_says((const char *const[]){"allowed 0.005", NULL});
    clean_up();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_run),      cmocka_unit_test(test_drift_names_the_op),
        cmocka_unit_test(test_passing_fault),  cmocka_unit_test(test_odd_engine_is_probed),
        cmocka_unit_test(test_trainer_lost),   cmocka_unit_test(test_weights_gone),
        cmocka_unit_test(test_broken_history), cmocka_unit_test(test_resume),
        cmocka_unit_test(test_relaxed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
