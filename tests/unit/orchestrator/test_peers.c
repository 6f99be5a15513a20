// Who may say what: processes of this host, and engines of others, each by the name of its key. And what a query may break.
#include "base/json.h"
#include "orchestrator/status.h"
#include "still_orch.h"

static void refused(struct wire *w, const char *word)
{
    struct msg m = still_expect(w, MSG_WELCOME);
    assert_false(m.welcome.accepted);
    if (!strstr(m.welcome.reason, word))
        fail_msg("\"%s\" is not in: %s", word, m.welcome.reason);
}

static bool numerics_known(char ret[64])
{
    char *known = NULL;
    struct error err;
    if (ledger_meta_get(still.o->ledger, "numerics_id", &known, &err) != STATUS_OK)
        return false;
    snprintf(ret, 64, "%s", known);
    free(known);
    return true;
}

static const struct msg stop = {.type = MSG_QUERY, .query = {.id = 7, .verb = "stop", .args = "{}"}};

// The answer to a query of another host; after it everything said before has been taken in.
static void stop_is_refused(struct wire *w)
{
    still_say(w, &stop);
    struct msg m = still_expect(w, MSG_REPLY);
    assert_int_equal(m.reply.id, 7);
    assert_int_equal(m.reply.status, STATUS_REFUSED);
    assert_non_null(strstr(m.reply.json, "own host"));
    assert_false(still.o->stopping);
}

static void test_remote_engine(void **state)
{
    (void)state;
    char known[64];
    still_weights(3);
    struct wire *x = still_remote("engine-x/1", "engine-x"), *t = still_local("trainer-0/1");
    struct msg h = still_hello(ROLE_ENGINE, "engine-x"), trainer = still_hello(ROLE_TRAINER, "trainer-0");
    stop_is_refused(x);
    // What the run computes with is for this host to say: until then another one's engine gets no answer.
    h.hello.numerics_id = "theirs";
    still_say(x, &h);
    stop_is_refused(x);
    assert_false(numerics_known(known));
    still_say(t, &trainer);
    assert_true(still_expect(t, MSG_WELCOME).welcome.accepted);
    assert_true(numerics_known(known));
    assert_string_equal(known, "ours");
    still_say(x, &h);
    refused(x, "numerics_id theirs");
    // It says that it is of this host, and is not taken for it: it gets no path.
    h.hello.numerics_id = "ours";
    still_say(x, &h);
    struct msg m = still_expect(x, MSG_WELCOME);
    assert_true(m.welcome.accepted);
    assert_int_equal(m.welcome.version, 3);
    assert_string_equal(m.welcome.version_path, "");
    assert_true(still_peer("engine-x")->remote);
    stop_is_refused(x);
    wire_close(x);
    wire_close(t);
}

static void test_key_is_a_name(void **state)
{
    (void)state;
    struct wire *t = still_local("trainer-0/1"), *x = still_remote("engine-x/1", "engine-x");
    struct msg trainer = still_hello(ROLE_TRAINER, "trainer-0"), h = still_hello(ROLE_ENGINE, "engine-y");
    still_say(t, &trainer);
    assert_true(still_expect(t, MSG_WELCOME).welcome.accepted);
    struct peer *p = still_peer("trainer-0");
    uint32_t serial = p->serial;
    still_say(x, &h);
    refused(x, "your key is that of \"engine-x\"");
    h = still_hello(ROLE_TRAINER, "engine-x");
    still_say(x, &h);
    refused(x, "only engines");
    h = still_hello(ROLE_CLI, "engine-x");
    still_say(x, &h);
    refused(x, "only engines");
    // With the key's own name, and the routing id of somebody else, who would take it back.
    wire_close(x);
    wire_close(t);
    x = still_remote("trainer-0/1", "engine-x");
    stop_is_refused(x);
    still_pass(100);
    struct msg words[] = {
        {.type = MSG_PONG, .ping = {.nonce = 1, .version = 9}},
        {.type = MSG_CHECKPOINT,
         .checkpoint = {.epoch = still.o->trainer.epoch, .step = 0, .path = "/x", .hash = "h"}},
        {.type = MSG_STEP_DONE,
         .step_done = {.epoch = still.o->trainer.epoch,
                       .step = -1,
                       .outcome = STEP_APPLIED,
                       .reason = "",
                       .hash = "h",
                       .path = "/x"}},
        {.type = MSG_CHECK_DONE, .check_done = {.epoch = still.o->trainer.epoch, .error = ""}},
        {.type = MSG_PING, .ping = {.nonce = 1}},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        still_say(x, &words[i]);
    stop_is_refused(x);
    assert_true(p->up && p->serial == serial && p->load.version == 0);
    assert_true(orch_now(still.o) - p->seen_ms == 100);
    assert_int_equal(still.o->weights.version, -1);
    assert_int_equal(still.o->trainer.n_checkpoints, 0);
    wire_close(x);
}

// A text that an answer cuts in the middle of a character is answered all the same.
static void test_query_cut_in_a_character(void **state)
{
    (void)state;
    static const struct {
        const char *verb, *args, *says;
    } queries[] = {
        // 39 bytes, then one of two
        {"0123456789012345678901234567890123456789\xC3\xA9" + 1, "{}", "no query"},
        {"task_register",
         "{\"url\":\"http://127.0.0.1:1/\",\"name\":\""
         "0123456789012345678901234567890123456789012345678901234567890123456789012345678\xC3\xA9\"}",
         "0123456789"},
    };
    struct wire *w = still_local("cli/1");
    for (size_t i = 0; i < sizeof queries / sizeof *queries; i++) {
        struct msg q = {.type = MSG_QUERY,
                        .query = {.id = i, .verb = queries[i].verb, .args = queries[i].args}};
        json_t *j;
        still_say(w, &q);
        struct msg m = still_expect(w, MSG_REPLY);
        assert_int_equal(m.reply.id, i);
        assert_int_not_equal(m.reply.status, STATUS_OK);
        still_ok(json_parse(m.reply.json, strlen(m.reply.json), "reply", &j, &err));
        const char *text = json_string_value(json_object_get(j, "error"));
        assert_true(text && strstr(text, queries[i].says));
        json_decref(j);
    }
    // Nor does what was noted before stand in the way of a status.
    char cause[1000];
    for (size_t i = 0; i < sizeof cause; i++) // "xxx€€€…", longer than what is kept
        cause[i] = i < 100 ? 'x' : "\xE2\x82\xAC"[(i - 100) % 3];
    cause[sizeof cause - 1] = 0;
    for (int shift = 0; shift < 3; shift++) {
        orch_warn(still.o, "test", "%s", cause + shift);
        json_t *j = status_json(still.o);
        const char *text = json_string_value(json_object_get(j, "last_error"));
        assert_true(text && strncmp(text, "test: xxx", 9) == 0);
        json_decref(j);
    }
    wire_close(w);
}

// HELLOs that waited together get a WELCOME each, and the jobs once.
static void test_hello_repeated(void **state)
{
    (void)state;
    static const int32_t prefix[] = {1, 2, 3};
    still_weights(3);
    struct wire *w = still_engine("engine-0");
    struct msg h = still_hello(ROLE_ENGINE, "engine-0");
    const struct job spec = {.session = 1,
                             .sampling = {.temperature = 1, .top_p = 1, .max_new = 5},
                             .prefix = prefix,
                             .n_prefix = 3};
    h.hello.version = 3;
    h.hello.version_hash = still.o->weights.hash;
    router_start(still.o, &spec);
    router_pump(still.o);
    uint64_t id = still_expect(w, MSG_JOB).job.job;
    still_pass(1000);
    for (int i = 0; i < 3; i++) {
        still_say(w, &h);
        assert_true(still_expect(w, MSG_WELCOME).welcome.accepted);
        if (i == 0)
            assert_true(still_expect(w, MSG_JOB).job.job == id);
        still_pass(100);
    }
    still_quiet(w, still_peer("engine-0"));
    still_pass(1000);
    still_say(w, &h);
    still_expect(w, MSG_WELCOME);
    assert_true(still_expect(w, MSG_JOB).job.job == id);
    wire_close(w);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, still_open, still_close)
    const struct CMUnitTest tests[] = {
        TEST(test_remote_engine),
        TEST(test_key_is_a_name),
        TEST(test_query_cut_in_a_character),
        TEST(test_hello_repeated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
