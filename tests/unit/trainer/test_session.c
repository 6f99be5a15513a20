// trainer/session.h: the conversation with the orchestrator, message by message; trainer/client.h: the same over a real socket.
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/file.h"
#include "base/log.h"
#include "proto/wire.h"
#include "tests/unit/trainer/tiny.h"
#include "trainer/client.h"
#include "trainer/session.h"

static char run_dir[256], shm[300];
static struct run_config *config;

static int setup(void **state)
{
    (void)state;
    snprintf(run_dir, sizeof run_dir, "%s/ooze-session-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    if (!mkdtemp(run_dir))
        return -1;
    snprintf(shm, sizeof shm, "%s/shm", run_dir);
    config = tiny_config();
    struct error err;
    return file_mkdirs(shm, 0700, &err);
}

static int teardown(void **state)
{
    (void)state;
    struct error err;
    free(config);
    return file_remove_tree(run_dir, &err);
}

static struct session *open_session(void)
{
    struct session *s = NULL;
    struct error err = {0};
    if (session_open(config, run_dir, "0123abcd", shm, clock_system(), &s, &err))
        fail_msg("%s", err.text);
    return s;
}

static struct msg_welcome welcome(int64_t epoch, int64_t step, const char *path, const char *hash,
                                  int64_t committed)
{
    return (struct msg_welcome){.run = "0123abcd",
                                .epoch = epoch,
                                .accepted = true,
                                .reason = "",
                                .checkpoint_step = step,
                                .checkpoint = path,
                                .checkpoint_hash = hash,
                                .committed_steps = committed,
                                .version_path = "",
                                .version_hash = ""};
}

static void greet(struct session *s, struct msg_welcome w, struct msg *m)
{
    struct error err = {0};
    if (session_welcome(s, &w, m, &err))
        fail_msg("%s", err.text);
}

static void prepare(struct session *s, const struct msg_prepare *p, struct msg *m)
{
    struct error err = {0};
    if (session_prepare(s, p, m, &err))
        fail_msg("%s", err.text);
}

static void commit(struct session *s, int64_t epoch, int64_t step, struct msg *m)
{
    struct error err = {0};
    struct msg_commit_ack a = {epoch, step, COMMIT_OK, ""};
    if (session_commit(s, &a, m, &err))
        fail_msg("%s", err.text);
}

static struct msg_prepare step_of(const struct tiny_step *s, int64_t epoch, int64_t step)
{
    struct msg_prepare p = s->msg;
    p.epoch = epoch;
    p.step = step;
    p.stage_first = step == 0;
    p.publish = true;
    return p;
}

static void test_first_run_and_restarts(void **state)
{
    (void)state;
    struct session *s = open_session();
    struct tiny_step batch[4];
    struct msg m;
    struct error err = {0};
    char hashes[5][HASH_HEX], path[RUNCONFIG_PATH], checkpoint_hash[HASH_HEX];
    for (int k = 0; k < 4; k++)
        tiny_step_init(&batch[k], 6, 0, 2, 200 + (uint64_t)k);
    greet(s, welcome(1, 0, "", "", 0), &m);
    assert_int_equal(m.type, MSG_STEP_DONE);
    assert_int_equal(m.step_done.step, -1);
    assert_int_equal(m.step_done.version, 0);
    assert_true(file_exists(m.step_done.path));
    memcpy(hashes[0], m.step_done.hash, HASH_HEX);
    for (int k = 0; k < 4; k++) {
        struct msg_prepare p = step_of(&batch[k], 1, k);
        p.checkpoint = k == 1;
        prepare(s, &p, &m);
        assert_int_equal(m.type, MSG_STEP_DONE);
        assert_int_equal(m.step_done.step, k);
        assert_int_equal(m.step_done.version, k + 1);
        assert_int_equal(m.step_done.outcome, STEP_APPLIED);
        memcpy(hashes[k + 1], m.step_done.hash, HASH_HEX);
        assert_true(file_exists(m.step_done.path));
        // asked again, it says the same without computing again
        int64_t tokens = atomic_load(&s->trainer->done_tokens);
        prepare(s, &p, &m);
        assert_int_equal(m.type, MSG_STEP_DONE);
        assert_string_equal(m.step_done.hash, hashes[k + 1]);
        assert_int_equal(atomic_load(&s->trainer->done_tokens), tokens);
        commit(s, 1, k, &m);
        assert_int_equal(m.type, k == 1 ? MSG_CHECKPOINT : MSG_NONE);
        if (k == 1) {
            assert_int_equal(m.checkpoint.step, 2);
            snprintf(path, sizeof path, "%s", m.checkpoint.path);
            memcpy(checkpoint_hash, m.checkpoint.hash, HASH_HEX);
            session_pending(s, &m);
            assert_int_equal(m.type, MSG_CHECKPOINT);
            struct msg_checkpoint ack = {1, 2, path, checkpoint_hash, 0, NULL};
            assert_int_equal(session_checkpoint(s, &ack, &m, &err), STATUS_OK);
            session_pending(s, &m);
            assert_int_equal(m.type, MSG_NONE);
        }
        if (k == 2) { // asked for: step 2 has no checkpoint of its own until then; step 1 is over
            struct msg_checkpoint late = {1, 2, "", "", 0, NULL}, now = {1, 3, "", "", 0, NULL};
            assert_int_equal(session_checkpoint(s, &late, &m, &err), STATUS_OK);
            assert_int_equal(m.type, MSG_NONE);
            assert_int_equal(session_checkpoint(s, &now, &m, &err), STATUS_OK);
            assert_int_equal(m.type, MSG_CHECKPOINT);
            assert_int_equal(m.checkpoint.step, 3);
            assert_true(file_exists(m.checkpoint.path));
        }
    }
    session_close(s);

    // another incarnation: checkpoint of step 2, then the recorded steps 2 and 3 again
    s = open_session();
    greet(s, welcome(2, 2, path, checkpoint_hash, 4), &m);
    assert_int_equal(m.type, MSG_NONE);
    for (int k = 2; k < 4; k++) {
        struct msg_prepare p = step_of(&batch[k], 2, k);
        p.replay = true;
        p.publish = k == 3;
        prepare(s, &p, &m);
        assert_string_equal(m.step_done.hash, hashes[k + 1]);
        assert_true((*m.step_done.path != 0) == (k == 3));
        commit(s, 2, k, &m);
    }
    // the orchestrator restarts: same weights in memory, new epoch; a step of the old epoch is not for us
    struct msg_prepare late = step_of(&batch[0], 2, 4);
    greet(s, welcome(3, 2, path, checkpoint_hash, 4), &m);
    prepare(s, &late, &m);
    assert_int_equal(m.type, MSG_NONE);
    struct msg_prepare next = step_of(&batch[0], 3, 4);
    prepare(s, &next, &m);
    assert_int_equal(m.type, MSG_STEP_DONE);
    char hash[HASH_HEX];
    memcpy(hash, m.step_done.hash, HASH_HEX);
    // … and again, before it had committed: the step in memory is offered once more under the new epoch
    greet(s, welcome(4, 2, path, checkpoint_hash, 4), &m);
    assert_int_equal(m.type, MSG_NONE);
    next.epoch = 4;
    int64_t tokens = atomic_load(&s->trainer->done_tokens);
    prepare(s, &next, &m);
    assert_int_equal(m.step_done.epoch, 4);
    assert_string_equal(m.step_done.hash, hash);
    assert_int_equal(atomic_load(&s->trainer->done_tokens), tokens);
    // a replay from the checkpoint is possible at any time
    struct msg_prepare back = step_of(&batch[2], 4, 2);
    back.replay = true;
    prepare(s, &back, &m);
    assert_string_equal(m.step_done.hash, hashes[3]);
    session_close(s);

    // the checkpoint is the newest step: published at once
    s = open_session();
    greet(s, welcome(5, 2, path, checkpoint_hash, 2), &m);
    assert_int_equal(m.type, MSG_STEP_DONE);
    assert_int_equal(m.step_done.step, 1);
    assert_int_equal(m.step_done.version, 2);
    assert_string_equal(m.step_done.hash, hashes[2]);
    session_close(s);
    for (int k = 0; k < 4; k++)
        tiny_step_done(&batch[k]);
}

static void test_refusals(void **state)
{
    (void)state;
    struct session *s = open_session();
    struct tiny_step batch;
    struct msg m;
    struct error err = {0};
    tiny_step_init(&batch, 4, 0, 2, 300);
    greet(s, welcome(1, 0, "", "", 0), &m);
    struct msg_prepare p = step_of(&batch, 1, 3); // we hold 0
    assert_int_equal(session_prepare(s, &p, &m, &err), STATUS_PROTOCOL);
    p = step_of(&batch, 1, 0);
    prepare(s, &p, &m);
    p.lr *= 2;
    assert_int_equal(session_prepare(s, &p, &m, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.text, "prepared twice"));
    struct msg_commit_ack a = {1, 0, COMMIT_CONFLICT, "other hash"};
    assert_int_equal(session_commit(s, &a, &m, &err), STATUS_CORRUPT);
    a = (struct msg_commit_ack){1, 0, COMMIT_FENCED, "epoch 2 is at work"};
    assert_int_equal(session_commit(s, &a, &m, &err), STATUS_FENCED);
    a = (struct msg_commit_ack){7, 0, COMMIT_FENCED, "not for us"};
    assert_int_equal(session_commit(s, &a, &m, &err), STATUS_OK);
    struct msg_welcome w = welcome(9, 5, "/nonexistent/step-5", "", 5);
    assert_int_equal(session_welcome(s, &w, &m, &err), STATUS_NOTFOUND);
    tiny_step_done(&batch);
    session_close(s);
}

// ---- over a socket ----------------------------------------------------------------------------------------------------------

struct client_thread {
    struct session *session;
    struct client_options options;
    enum status rc;
    struct error err;
};

static void *run_client(void *arg)
{
    struct client_thread *t = arg;
    t->rc = client_run(t->session, &t->options, &t->err);
    return NULL;
}

// Receives until a message of `type` comes; PONGs seen on the way are counted.
static void expect(struct wire *w, struct wire_peer *peer, struct msg *m, enum msg_type type, int *pongs)
{
    struct error err = {0};
    for (int i = 0; i < 200; i++) {
        enum status rc = wire_wait(w, 10000, &err);
        if (rc)
            fail_msg("waiting for %s: %s", msg_type_name(type), err.text);
        while (!(rc = wire_recv(w, peer, m, &err))) {
            if (m->type == type)
                return;
            *pongs += m->type == MSG_PONG;
        }
    }
    fail_msg("%s did not come", msg_type_name(type));
}

static void say(struct wire *w, const struct wire_peer *peer, struct msg m)
{
    struct error err = {0};
    if (wire_send(w, peer, &m, &err))
        fail_msg("%s", err.text);
}

// CHECK and TRACE of the published weights.
static void ask_parity(struct wire *w, struct wire_peer *peer, const struct tiny_step *batch,
                       const char *path, const char *hash, int *pongs)
{
    struct msg m;
    const struct msg_check_segment segment = {7, 1, 0, batch->members[0].n_tokens, 1};
    const struct msg_kv kv = {KV_PREFILL, 2, 0, 2, 0};
    const struct msg_weights weights = {0, path, hash};
    const struct msg_check check = {.epoch = 1,
                                    .id = 21,
                                    .n_segments = 1,
                                    .segments = &segment,
                                    .n_weights = 1,
                                    .weights = &weights,
                                    .n_kv = 1,
                                    .kv = &kv,
                                    .n_tokens = segment.n_tokens,
                                    .ids = batch->ids,
                                    .mask = batch->mask,
                                    .logprobs = batch->logprobs,
                                    .versions = batch->versions,
                                    .temperatures = batch->temperatures};
    const struct msg_trace trace = {1, 22, 0, path, hash, segment.n_tokens, batch->ids};
    for (int i = 0; i < 3; i++)
        say(w, peer, (struct msg){.type = MSG_CHECK, .check = check});
    say(w, peer, (struct msg){.type = MSG_TRACE, .trace = trace});
    expect(w, peer, &m, MSG_CHECK_DONE, pongs);
    assert_int_equal(m.check_done.id, 21);
    assert_string_equal(m.check_done.error, "");
    assert_int_equal(m.check_done.compared, 1);
    assert_true(m.check_done.differs); // the batch's logprobs are made up
    assert_int_equal(m.check_done.trajectory, 7);
    expect(w, peer, &m, MSG_TRACE_DONE, pongs);
    assert_true(m.trace_done.ok);
    assert_int_equal(m.trace_done.id, 22);
    assert_int_equal(m.trace_done.n_logprobs, segment.n_tokens);
}

static void test_client_over_wire(void **state)
{
    (void)state;
    struct wire *w = NULL;
    struct error err = {0};
    char endpoint[400];
    struct tiny_step batch;
    struct wire_peer peer;
    struct msg m;
    int pongs = 0;
    log_init("test", LOG_ERROR);
    tiny_step_init(&batch, 6, 0, 2, 400);
    snprintf(endpoint, sizeof endpoint, "ipc://%s/orch", run_dir);
    if (wire_bind(endpoint, NULL, &w, &err))
        fail_msg("%s", err.text);
    struct client_thread t = {.session = open_session(), .options = {endpoint, "0123abcd", 4, eventfd(0, 0)}};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_client, &t), 0);
    expect(w, &peer, &m, MSG_HELLO, &pongs);
    assert_int_equal(m.hello.role, ROLE_TRAINER);
    assert_int_equal(m.hello.restarts, 4);
    assert_int_equal(m.hello.version, -1);
    struct msg_welcome hi = welcome(1, 0, "", "", 0);
    hi.ping_interval_ms = 1000;
    hi.silence_ms = 5000;
    say(w, &peer, (struct msg){.type = MSG_WELCOME, .welcome = hi});
    expect(w, &peer, &m, MSG_STEP_DONE, &pongs);
    assert_int_equal(m.step_done.step, -1);
    char path[RUNCONFIG_PATH], hash[HASH_HEX];
    snprintf(path, sizeof path, "%s", m.step_done.path);
    snprintf(hash, sizeof hash, "%s", m.step_done.hash);
    ask_parity(w, &peer, &batch, path, hash, &pongs);
    struct msg_prepare p = step_of(&batch, 1, 0);
    p.checkpoint = true;
    for (int i = 0; i < 3; i++) // repeats of what is under way are dropped, or answered alike
        say(w, &peer, (struct msg){.type = MSG_PREPARE, .prepare = p});
    say(w, &peer, (struct msg){.type = MSG_PING, .ping = {.nonce = 77}});
    expect(w, &peer, &m, MSG_STEP_DONE, &pongs);
    assert_int_equal(m.step_done.step, 0);
    assert_true(m.step_done.n_metrics > 10);
    say(w, &peer, (struct msg){.type = MSG_COMMIT_ACK, .commit_ack = {1, 0, COMMIT_OK, ""}});
    expect(w, &peer, &m, MSG_CHECKPOINT, &pongs);
    assert_int_equal(m.checkpoint.step, 1);
    assert_true(file_exists(m.checkpoint.path));
    expect(w, &peer, &m, MSG_CHECKPOINT, &pongs); // not acknowledged: said again
    say(w, &peer, (struct msg){.type = MSG_CHECKPOINT, .checkpoint = {1, 1, "", "", 0, NULL}});
    say(w, &peer, (struct msg){.type = MSG_PING, .ping = {.nonce = 78}});
    if (pongs == 0)
        expect(w, &peer, &m, MSG_PONG, &pongs);
    // fenced: the client ends with "restart me"
    p = step_of(&batch, 1, 1);
    say(w, &peer, (struct msg){.type = MSG_PREPARE, .prepare = p});
    expect(w, &peer, &m, MSG_STEP_DONE, &pongs);
    say(w, &peer, (struct msg){.type = MSG_COMMIT_ACK, .commit_ack = {1, 1, COMMIT_FENCED, "epoch 2"}});
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(t.rc, STATUS_FENCED);
    // asked to stop: ends well, at once
    assert_int_equal(pthread_create(&thread, NULL, run_client, &t), 0);
    expect(w, &peer, &m, MSG_HELLO, &pongs);
    uint64_t one = 1;
    assert_int_equal(write(t.options.stop_fd, &one, sizeof one), sizeof one);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(t.rc, STATUS_OK);
    close(t.options.stop_fd);
    session_close(t.session);
    wire_release(w);
    wire_close(w);
    tiny_step_done(&batch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_first_run_and_restarts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_client_over_wire, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
