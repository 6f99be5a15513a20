// Choosing an engine, words that are lost between it and the router, the table of jobs, prompts, pass@k, and what a task says of itself.
#include <math.h>

#include "still_orch.h"

#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"
#include "orchestrator/eval.h"
#include "orchestrator/router.h"
#include "orchestrator/sampler.h"
#include "orchestrator/task.h"

static const uint64_t names[] = {11, 22, 33, 44};

static void test_choice_is_sticky(void **state)
{
    (void)state;
    int load[4] = {0}, room[4] = {100, 100, 100, 100}, count[4] = {0};
    int moved = 0;
    for (uint64_t s = 1; s <= 1000; s++) {
        uint64_t session = hash64(&s, sizeof s);
        int a = router_choose(session, names, load, room, 4);
        assert_int_equal(a, router_choose(session, names, load, room, 4));
        count[a]++;
        // Without engine 3 only its own sessions move (rendezvous hashing).
        int b = router_choose(session, names, load, room, 3);
        if (a != 3)
            assert_int_equal(a, b);
        else
            moved++;
    }
    for (int i = 0; i < 4; i++)
        assert_in_range(count[i], 200, 300);
    assert_int_equal(moved, count[3]);
}

static void test_choice_is_bounded(void **state)
{
    (void)state;
    int room[4] = {10, 10, 10, 10}, load[4] = {0};
    uint64_t session = 5;
    for (int i = 0; i < 40; i++) { // forty times the same session
        int k = router_choose(session, names, load, room, 4);
        assert_true(k >= 0 && load[k] < room[k]);
        load[k]++;
        int total = i + 1, most = 0;
        for (int e = 0; e < 4; e++)
            most = load[e] > most ? load[e] : most;
        assert_true(most <= (total * 5 + 15) / 16 + 1); // 5/4 of the mean, rounded up
    }
    assert_int_equal(router_choose(session, names, load, room, 4), -1);
    load[2]--;
    assert_int_equal(router_choose(session, names, load, room, 4), 2);
}

// ---- an engine of the test's --------------------------------------------------------------------------------------------------------

static const int32_t prefix[] = {1, 2, 3};

static struct job *issue(uint64_t session)
{
    const struct job spec = {.session = session,
                             .sampling = {.temperature = 1, .top_p = 1, .max_new = 100000},
                             .prefix = prefix,
                             .n_prefix = 3};
    struct job *j = router_start(still.o, &spec);
    router_pump(still.o);
    return j;
}

// Tokens [at, at + n) of the job, each of them its position, of weights `version`.
static void tokens(struct wire *w, uint64_t job, int32_t at, int32_t n, int64_t version)
{
    int32_t ids[16];
    float logprobs[16];
    const struct msg_span span = {version, at, at + n};
    assert_in_range(n, 1, 16);
    for (int32_t i = 0; i < n; i++) {
        ids[i] = at + i;
        logprobs[i] = -1;
    }
    const struct msg m = {.type = MSG_TOKEN_DATA,
                          .tokens = {.job = job,
                                     .offset = at,
                                     .n = n,
                                     .ids = ids,
                                     .logprobs = logprobs,
                                     .n_spans = 1,
                                     .spans = &span,
                                     .error = ""}};
    still_say(w, &m);
}

static void hears_job(struct wire *w, const struct job *j)
{
    struct msg m = still_expect(w, MSG_JOB);
    assert_true(m.job.job == j->id && m.job.n_ids == j->n_prefix + j->base);
    assert_memory_equal(m.job.ids, prefix, sizeof prefix);
    assert_int_equal(m.job.sampling.max_new, 100000 - j->base);
}

// engine-0, which has heard of one job.
static struct wire *engine_with_job(struct job **ret_job)
{
    still_weights(3);
    struct wire *w = still_engine("engine-0");
    *ret_job = issue(1);
    hears_job(w, *ret_job);
    return w;
}

// A second goes by, in which the engine makes a token of `busy`.
static void second(struct wire *w, struct job *busy)
{
    still_pass(1000);
    if (busy)
        tokens(w, busy->id, busy->n, 1, 3);
    router_pump(still.o);
}

// A JOB or the tokens of one that were lost, at an engine that is busy with another: JOB is said again, ever more seldom, and nothing is
// spent on it. It is the same for a job that waits in the engine's queue.
static void test_lost_word(void **state)
{
    (void)state;
    still_weights(3);
    struct wire *w = still_engine("engine-0");
    struct peer *p = still_peer("engine-0");
    struct job *lost = issue(1), *busy = issue(2);
    uint64_t id = lost->id;
    int said = 0, at[16];
    hears_job(w, lost);
    hears_job(w, busy);
    for (int t = 1; t <= STILL_LEASE_MS / 1000 + 60; t++) {
        second(w, busy);
        if (orch_now(still.o) == lost->said_ms) {
            assert_in_range(said, 0, 15);
            at[said++] = t;
            hears_job(w, lost);
        }
    }
    still_quiet(w, p);
    assert_in_range(said, 6, 7); // after 11, 22, 44, … seconds
    assert_in_range(at[0], STILL_SILENCE_MS / 1000, STILL_SILENCE_MS / 1000 + 2);
    for (int i = 1; i < said; i++)
        assert_true(at[i] >= 2 * at[i - 1] && at[i] <= 2 * at[i - 1] + 2);
    assert_true(lost->id == id && lost->engine == p && lost->issues == 1);
    // Its tokens come at last: from there on the pauses are short again.
    tokens(w, id, 0, 4, 3);
    assert_int_equal(lost->n, 4);
    for (int t = 1; t <= STILL_SILENCE_MS / 1000 + 1; t++)
        second(w, busy);
    hears_job(w, lost);
    still_quiet(w, p);
    wire_close(w);
}

// An engine that says again what it said before, and no more, computes nothing: after the lease its jobs go elsewhere.
static void test_repeated_tokens_are_no_progress(void **state)
{
    (void)state;
    struct job *j;
    struct wire *w = engine_with_job(&j);
    uint64_t id = j->id;
    tokens(w, id, 0, 4, 3);
    for (int t = 1; t <= STILL_LEASE_MS / 1000 && j->id == id; t++) {
        second(w, NULL);
        if (orch_now(still.o) == j->said_ms) {
            hears_job(w, j);
            tokens(w, id, 0, 4, 3);
        }
    }
    assert_true(j->id == id && j->n == 4);
    second(w, NULL);
    assert_true(still_expect(w, MSG_CANCEL).cancel.job == id);
    assert_true(j->id != id && j->base == 4);
    router_pump(still.o);
    assert_int_equal(j->issues, 2);
    wire_close(w);
}

// Tokens were lost between two messages: the engine is told of the job again, once, and says again what is not acknowledged.
static void test_missing_tokens(void **state)
{
    (void)state;
    struct job *j;
    struct wire *w = engine_with_job(&j);
    struct peer *p = still_peer("engine-0");
    uint64_t id = j->id;
    tokens(w, id, 0, 2, 3);
    tokens(w, id, 5, 2, 3); // 2, 3 and 4 are missing
    hears_job(w, j);
    tokens(w, id, 7, 1, 3); // was on its way
    still_quiet(w, p);
    tokens(w, id, 0, 9, 3);
    assert_true(j->id == id && j->n == 9 && j->issues == 1);
    for (int32_t i = 0; i < 9; i++)
        assert_int_equal(j->ids[i], i);
    assert_true(j->n_spans == 1 && j->spans[0].start == 0 && j->spans[0].end == 9);
    // An engine that does not mend it loses the job, at what there is of it.
    for (int i = 0; i < ROUTER_GAPS_MAX; i++)
        tokens(w, id, 20 + i, 1, 3);
    hears_job(w, j);
    still_quiet(w, p);
    tokens(w, id, 90, 1, 3);
    assert_true(still_expect(w, MSG_CANCEL).cancel.job == id);
    assert_true(j->id != id && j->base == 9 && !j->engine);
    wire_close(w);
}

// Tokens of weights that the run does not have are not taken.
static void test_unknown_version(void **state)
{
    (void)state;
    struct job *j;
    struct wire *w = engine_with_job(&j);
    uint64_t id = j->id;
    tokens(w, id, 0, 2, 3);
    tokens(w, id, 2, 2, 4);
    assert_true(still_expect(w, MSG_CANCEL).cancel.job == id);
    assert_true(j->id != id && j->n == 2 && j->base == 2);
    // Committed weights whose file is to be made again: engines may hold them all the same.
    still.o->weights.version = -1;
    still.o->committed_steps = 4;
    router_pump(still.o);
    hears_job(w, j);
    tokens(w, j->id, 0, 2, 4);
    assert_true(j->n == 4 && j->spans[1].version == 4);
    id = j->id;
    tokens(w, id, 2, 1, 5);
    assert_true(still_expect(w, MSG_CANCEL).cancel.job == id);
    assert_int_equal(j->n, 4);
    wire_close(w);
}

static void test_table(void **state)
{
    (void)state;
    struct table t = {0};
    static int values[5000];
    struct rng r;
    bool in[5000] = {false};
    size_t n = 0;
    rng_init(&r, 1, 1);
    for (int i = 0; i < 50000; i++) {
        size_t k = rng_below(&r, 5000);
        if (in[k])
            table_remove(&t, k * 1024 + 1);
        else
            table_set(&t, k * 1024 + 1, &values[k]);
        n += in[k] ? (size_t)-1 : 1;
        in[k] = !in[k];
        assert_int_equal(t.n, n);
    }
    for (size_t k = 0; k < 5000; k++)
        assert_ptr_equal(table_get(&t, k * 1024 + 1), in[k] ? &values[k] : NULL);
    table_done(&t);
    assert_null(table_get(&t, 1));
}

static void test_prompts(void **state)
{
    (void)state;
    int64_t epoch, e2;
    bool seen[100] = {false};
    int same = 0;
    for (int64_t i = 0; i < 100; i++) {
        int64_t p = sampler_prompt(3, "sort", 100, i, &epoch);
        assert_true(epoch == 0 && p >= 0 && p < 100 && !seen[p]);
        seen[p] = true;
        same += p == sampler_prompt(3, "tool", 100, i, &e2);
        sampler_prompt(3, "sort", 100, i + 100, &e2);
        assert_int_equal(e2, 1);
    }
    assert_true(same < 20);
    assert_int_equal(sampler_prompt(3, "sort", -1, 12345, &epoch), 12345); // unbounded: in order
}

static void test_pass_at(void **state)
{
    (void)state;
    assert_true(fabs(eval_pass_at(4, 1, 1) - 0.25) < 1e-12);
    assert_true(fabs(eval_pass_at(4, 1, 2) - 0.5) < 1e-12); // 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert_true(fabs(eval_pass_at(10, 3, 5) - (1 - 21.0 / 252)) < 1e-12);
    assert_true(eval_pass_at(4, 0, 4) == 0);
    assert_true(eval_pass_at(4, 4, 1) == 1);
}

static enum status describe(struct task *t, const char *text, struct error *err)
{
    return task_describe(t, text, strlen(text), err);
}

#define HEAD                                                                                                 \
    "{\"protocol\":\"ooze-task/1\",\"name\":\"x\",\"mode\":\"env\",\"splits\":{\"train\":null,\"eval\":7}"

static void test_task_describes_itself(void **state)
{
    (void)state;
    struct task t = {0};
    struct error err;
    if (describe(&t, HEAD ",\"max_turns\":3,\"tools\":[{}],\"reward\":{\"min\":-1,\"max\":2}}", &err))
        fail_msg("%s", err.text);
    assert_int_equal(t.n_train, -1);
    assert_int_equal(t.n_eval, 7);
    assert_int_equal(t.max_turns, 3);
    assert_true(t.reward_min == -1 && t.reward_max == 2 && json_array_size(t.tools) == 1);
    t.cfg.max_turns = 2; // the run's own limit wins
    assert_int_equal(describe(&t, HEAD "}", &err), STATUS_OK);
    assert_true(t.max_turns == 2 && t.tools == NULL && t.reward_max == 1);
    assert_int_equal(describe(&t, "{\"protocol\":\"ooze-task/1\",\"mode\":\"agent\",\"splits\":{}}", &err),
                     STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "agent"));
    assert_int_equal(describe(&t, "{\"protocol\":\"other/1\",\"mode\":\"env\",\"splits\":{}}", &err),
                     STATUS_UNSUPPORTED);
    assert_int_not_equal(describe(&t, "{\"protocol\":\"ooze-task/1\",\"mode\":\"env\"}", &err), STATUS_OK);
    assert_int_not_equal(describe(&t, HEAD ",\"reward\":{\"min\":1,\"max\":1}}", &err), STATUS_OK);
    assert_int_not_equal(describe(&t, HEAD ",\"tools\":3}", &err), STATUS_OK);
    assert_int_not_equal(
        describe(&t, "{\"protocol\":\"ooze-task/1\",\"mode\":\"env\",\"splits\":{\"train\":-4}}", &err),
        STATUS_OK);
    assert_int_not_equal(describe(&t, "[1", &err), STATUS_OK);
    assert_int_not_equal(describe(&t, "[]", &err), STATUS_OK);
    json_decref(t.tools);
}

int main(void)
{
#define STILL(f) cmocka_unit_test_setup_teardown(f, still_open, still_close)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice_is_sticky),
        cmocka_unit_test(test_choice_is_bounded),
        STILL(test_lost_word),
        STILL(test_repeated_tokens_are_no_progress),
        STILL(test_missing_tokens),
        STILL(test_unknown_version),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_pass_at),
        cmocka_unit_test(test_task_describes_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
