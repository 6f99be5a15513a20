// proto/wire.h over ipc and tcp loopback: both ways, CURVE and its list of keys, full queues, lost peers, garbage, size.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
// cmocka wants the four above first
#include <cmocka.h>
#include <zmq.h> // what no wire sends is sent by hand

#include "base/clock.h"
#include "base/file.h"
#include "proto/wire.h"

#define WAIT_MS 10000

static char dir[256], ipc[300];
static struct error err;

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/ooze-wire-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(ipc, sizeof(ipc), "ipc://%s/sock/o", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return file_remove_tree(dir, NULL) == STATUS_OK ? 0 : -1;
}

#define OK(call)                                                                                             \
    do {                                                                                                     \
        if ((call) != STATUS_OK)                                                                             \
            fail_msg("%s: %s", #call, err.text);                                                             \
    } while (0)

static void receive(struct wire *w, struct wire_peer *peer, struct msg *m)
{
    int64_t end = clock_mono_ms(clock_system()) + WAIT_MS;
    for (;;) {
        enum status rc = wire_recv(w, peer, m, &err);
        if (rc == STATUS_OK)
            return;
        assert_int_equal(rc, STATUS_AGAIN);
        assert_true(clock_mono_ms(clock_system()) < end);
        (void)!wire_wait(w, 100, &err);
    }
}

static bool silent(struct wire *w, int ms)
{
    struct msg m;
    (void)!wire_wait(w, ms, &err);
    enum status rc = wire_recv(w, NULL, &m, &err);
    if (rc != STATUS_AGAIN)
        print_error("%s: %s\n", status_name(rc), rc == STATUS_OK ? msg_type_name(m.type) : err.text);
    return rc == STATUS_AGAIN;
}

static const struct msg hello = {.type = MSG_HELLO,
                                 .hello = {.role = ROLE_ENGINE, .name = "engine-0", .version = -1}};

static struct msg cancel(uint64_t job)
{
    return (struct msg){.type = MSG_CANCEL, .cancel = {job}};
}

// HELLO one way, a message back: the pair talks.
static void converse(struct wire *server, struct wire *client, struct wire_peer *peer)
{
    struct msg m, c = cancel(77);
    OK(wire_send(client, NULL, &hello, &err));
    receive(server, peer, &m);
    assert_int_equal(m.type, MSG_HELLO);
    assert_string_equal(m.hello.name, "engine-0");
    OK(wire_send(server, peer, &c, &err));
    receive(client, NULL, &m);
    assert_int_equal(m.type, MSG_CANCEL);
    assert_true(m.cancel.job == 77);
    wire_release(client);
    wire_release(server);
}

static void test_ipc(void **state)
{
    (void)state;
    struct wire *s, *c;
    struct wire_peer peer;
    struct stat st;
    char sock[300];
    OK(wire_bind(ipc, NULL, &s, &err));
    assert_string_equal(wire_address(s), ipc);
    snprintf(sock, sizeof(sock), "%s/sock", dir);
    assert_int_equal(stat(sock, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    OK(wire_connect(ipc + strlen("ipc://"), "engine-0.1", NULL, &c, &err)); // the bare path works too
    converse(s, c, &peer);
    assert_int_equal(peer.n, 10);
    assert_memory_equal(peer.id, "engine-0.1", 10);
    assert_int_equal(wire_recv(s, &peer, &(struct msg){0}, &err), STATUS_AGAIN);
    assert_int_equal(wire_wait(s, 1, &err), STATUS_TIMEOUT);
    assert_false(wire_pending(s));
    assert_true(wire_fd(s) >= 0);
    // a second endpoint on the same wire
    struct wire *d;
    OK(wire_bind_more(s, "tcp://127.0.0.1:*", &err));
    OK(wire_connect(wire_address(s), "engine-1.1", NULL, &d, &err));
    converse(s, d, &peer);
    assert_memory_equal(peer.id, "engine-1.1", 10);
    wire_close(d);
    wire_close(c);
    wire_close(s);
}

static void test_endpoints_refused(void **state)
{
    (void)state;
    struct wire *w;
    char open[300], endpoint[400];
    assert_int_equal(wire_bind("tcp://0.0.0.0:*", NULL, &w, &err), STATUS_REFUSED);
    assert_int_equal(wire_bind("tcp://*:*", NULL, &w, &err), STATUS_REFUSED);
    assert_int_equal(wire_connect("tcp://192.0.2.1:9", "x", NULL, &w, &err), STATUS_REFUSED);
    assert_int_equal(wire_bind("inproc://x", NULL, &w, &err), STATUS_INVALID);
    assert_int_equal(wire_bind("ipc://*", NULL, &w, &err), STATUS_INVALID);
    assert_int_equal(wire_bind("tcp://127.0.0.1:port", NULL, &w, &err), STATUS_INVALID);
    assert_int_equal(wire_connect(ipc, "", NULL, &w, &err), STATUS_INVALID);
    snprintf(open, sizeof(open), "%s/open", dir);
    assert_int_equal(mkdir(open, 0755), 0);
    snprintf(endpoint, sizeof(endpoint), "ipc://%s/o", open);
    assert_int_equal(wire_bind(endpoint, NULL, &w, &err), STATUS_REFUSED);
    struct wire *first;
    OK(wire_bind("tcp://127.0.0.1:*", NULL, &first, &err));
    assert_int_equal(wire_bind(wire_address(first), NULL, &w, &err), STATUS_BUSY); // port in use
    assert_non_null(strstr(err.text, wire_address(first)));
    wire_close(first);
    const struct wire_curve bad = {.secret_key = "short", .public_key = "short", .allow_file = "x"};
    assert_int_equal(wire_bind("tcp://127.0.0.1:*", &bad, &w, &err), STATUS_INVALID);
    wire_close(NULL);
}

struct keys {
    char public[41], secret[41];
};

static void test_curve(void **state)
{
    (void)state;
    struct keys server, friend, stranger;
    char allow[300], text[200];
    struct wire *s, *c;
    struct wire_peer peer;
    OK(wire_keypair(server.public, server.secret, &err));
    OK(wire_keypair(friend.public, friend.secret, &err));
    OK(wire_keypair(stranger.public, stranger.secret, &err));
    snprintf(allow, sizeof(allow), "%s/allow", dir);
    snprintf(text, sizeof(text), "# engines\n  %s  \n", friend.public);
    OK(file_write_atomic(allow, text, strlen(text), 0600, &err));
    const struct wire_curve as_server = {server.secret, server.public, NULL, allow};
    const struct wire_curve as_friend = {friend.secret, friend.public, server.public, NULL};
    const struct wire_curve as_stranger = {stranger.secret, stranger.public, server.public, NULL};
    OK(wire_bind("tcp://127.0.0.1:*", &as_server, &s, &err));
    OK(wire_connect(wire_address(s), "friend", &as_friend, &c, &err));
    converse(s, c, &peer);
    assert_string_equal(peer.user, friend.public); // it has no other name
    wire_close(c);
    OK(wire_connect(wire_address(s), "stranger", &as_stranger, &c, &err));
    OK(wire_send(c, NULL, &hello, &err));
    assert_true(silent(s, 500));
    wire_close(c);
    // admitted at its next connection once its key is on the list: the server needs no new start
    snprintf(text, sizeof(text), "%s engine-f\n%s\t engine-s \n", friend.public, stranger.public);
    OK(file_write_atomic(allow, text, strlen(text), 0600, &err));
    OK(wire_connect(wire_address(s), "engine-f", &as_stranger, &c, &err));
    converse(s, c, &peer);
    assert_memory_equal(peer.id, "engine-f", 8); // what it calls itself
    assert_string_equal(peer.user, "engine-s");  // whose key it is
    wire_close(c);
    static const char *const no_names[] = {
        "# a comment", "0123456789012345678901234567890123456789012345678901234567890123", "caf\xC3"};
    for (size_t i = 0; i < sizeof(no_names) / sizeof(no_names[0]); i++) {
        snprintf(text, sizeof(text), "%s engine-f\n%s %s\n", friend.public, stranger.public, no_names[i]);
        OK(file_write_atomic(allow, text, strlen(text), 0600, &err));
        OK(wire_connect(wire_address(s), "stranger", &as_stranger, &c, &err));
        converse(s, c, &peer);
        assert_string_equal(peer.user, stranger.public);
        wire_close(c);
    }
    // without keys, and with the wrong server key
    OK(wire_connect(wire_address(s), "plain", NULL, &c, &err));
    OK(wire_send(c, NULL, &hello, &err));
    assert_true(silent(s, 300));
    wire_close(c);
    const struct wire_curve fooled = {friend.secret, friend.public, stranger.public, NULL};
    OK(wire_connect(wire_address(s), "fooled", &fooled, &c, &err));
    OK(wire_send(c, NULL, &hello, &err));
    assert_true(silent(s, 300));
    wire_close(c);
    wire_close(s);
}

// One ROUTER, an ipc endpoint that the folder guards and a tcp one that CURVE guards.
static void test_curve_beside_ipc(void **state)
{
    (void)state;
    struct keys server, friend;
    char allow[300], tcp[300];
    struct wire *s, *local, *remote, *plain;
    struct wire_peer peer;
    OK(wire_keypair(server.public, server.secret, &err));
    OK(wire_keypair(friend.public, friend.secret, &err));
    snprintf(allow, sizeof(allow), "%s/allow2", dir);
    OK(file_write_atomic(allow, friend.public, 40, 0600, &err));
    const struct wire_curve as_server = {server.secret, server.public, NULL, allow};
    const struct wire_curve as_friend = {friend.secret, friend.public, server.public, NULL};
    OK(wire_bind("tcp://127.0.0.1:*", &as_server, &s, &err));
    snprintf(tcp, sizeof(tcp), "%s", wire_address(s));
    OK(wire_bind_more(s, ipc, &err));
    OK(wire_connect(ipc, "local", NULL, &local, &err));
    OK(wire_connect(tcp, "remote", &as_friend, &remote, &err));
    converse(s, local, &peer);
    assert_string_equal(peer.user, "");
    converse(s, remote, &peer);
    assert_string_equal(peer.user, friend.public);
    converse(s, local, &peer);
    assert_string_equal(peer.user, "");
    OK(wire_connect(tcp, "plain", NULL, &plain, &err));
    OK(wire_send(plain, NULL, &hello, &err));
    assert_true(silent(s, 300));
    wire_close(plain);
    wire_close(remote);
    wire_close(local);
    wire_close(s);
}

static void test_full_queue(void **state)
{
    (void)state;
    struct wire *s, *c;
    struct wire_peer peer;
    OK(wire_bind(ipc, NULL, &s, &err));
    OK(wire_connect(ipc, "slow", NULL, &c, &err));
    converse(s, c, &peer);
    uint8_t *bytes = calloc(1, 1 << 16);
    struct msg m = {.type = MSG_CHUNK_DATA, .chunk_data = {.total = 1 << 16, .n = 1 << 16, .data = bytes}};
    int sent = 0;
    enum status rc = STATUS_OK;
    while (rc == STATUS_OK && sent < 100000)
        if ((rc = wire_send(s, &peer, &m, &err)) == STATUS_OK)
            sent++;
    assert_int_equal(rc, STATUS_AGAIN);
    // nothing half-sent: everything accepted arrives whole and in order, and then there is room again
    for (int i = 0; i < sent; i++) {
        receive(c, NULL, &m);
        assert_int_equal(m.type, MSG_CHUNK_DATA);
        assert_int_equal(m.chunk_data.n, 1 << 16);
    }
    assert_true(wire_garbage(c) == 0);
    struct msg last = cancel(5);
    OK(wire_send(s, &peer, &last, &err));
    receive(c, NULL, &m);
    assert_int_equal(m.type, MSG_CANCEL);
    wire_close(c);
    wire_close(s);
    free(bytes);
}

// The same from the DEALER's side, which can ask for room and wait for it.
static void test_room(void **state)
{
    (void)state;
    struct wire *s, *c;
    struct wire_peer peer;
    OK(wire_bind(ipc, NULL, &s, &err));
    OK(wire_connect(ipc, "eager", NULL, &c, &err));
    converse(s, c, &peer);
    assert_true(wire_has_room(c));
    uint8_t *bytes = calloc(1, 1 << 16);
    struct msg m = {.type = MSG_CHUNK_DATA, .chunk_data = {.total = 1 << 16, .n = 1 << 16, .data = bytes}};
    int sent = 0;
    enum status rc = STATUS_OK;
    while (rc == STATUS_OK && sent < 100000)
        if ((rc = wire_send(c, NULL, &m, &err)) == STATUS_OK)
            sent++;
        else if (rc == STATUS_AGAIN && wire_wait_room(c, 100, &err) == STATUS_OK)
            rc = STATUS_OK; // the I/O threads were still passing on
    assert_int_equal(rc, STATUS_AGAIN);
    assert_false(wire_has_room(c));
    for (int i = 0; i < sent; i++)
        receive(s, &peer, &m);
    OK(wire_wait_room(c, WAIT_MS, &err));
    assert_true(wire_has_room(c));
    m = cancel(6);
    OK(wire_send(c, NULL, &m, &err));
    receive(s, &peer, &m);
    assert_int_equal(m.type, MSG_CANCEL);
    wire_close(s);

    // Nobody is there any more: the end waits for as long as was said, not for a second.
    m = cancel(7);
    OK(wire_send(c, NULL, &m, &err));
    wire_linger(c, 0);
    int64_t t0 = clock_mono_ms(clock_system());
    wire_close(c);
    assert_true(clock_mono_ms(clock_system()) - t0 < 900);
    free(bytes);
}

static void test_peer_gone(void **state)
{
    (void)state;
    struct wire *s, *c;
    struct wire_peer peer;
    struct msg m = cancel(1), got;
    OK(wire_bind(ipc, NULL, &s, &err));
    OK(wire_connect(ipc, "short-lived", NULL, &c, &err));
    converse(s, c, &peer);
    wire_close(c);
    enum status rc = STATUS_OK;
    for (int i = 0; i < 1000 && rc == STATUS_OK; i++) {
        (void)!wire_wait(s, 10, &err);
        rc = wire_send(s, &peer, &m, &err);
    }
    assert_int_equal(rc, STATUS_PEER);
    assert_int_equal(wire_send(s, NULL, &m, &err), STATUS_INVALID);
    // the same name comes back
    OK(wire_connect(ipc, "short-lived", NULL, &c, &err));
    OK(wire_send(c, NULL, &hello, &err));
    receive(s, &peer, &got);
    OK(wire_send(s, &peer, &m, &err));
    receive(c, NULL, &got);
    wire_close(c);
    wire_close(s);
}

static void test_garbage(void **state)
{
    (void)state;
    struct wire *s, *c;
    struct wire_peer peer;
    struct msg m;
    OK(wire_bind(ipc, NULL, &s, &err));
    OK(wire_connect(ipc, "good", NULL, &c, &err));
    void *context = zmq_ctx_new(), *raw = zmq_socket(context, ZMQ_DEALER);
    assert_int_equal(zmq_connect(raw, ipc), 0);
    assert_int_equal(zmq_send(raw, "noise", 5, 0), 5);
    assert_int_equal(zmq_send(raw, "", 0, 0), 0);
    for (int i = 0; i < 50; i++) // more parts than any message has
        assert_int_equal(zmq_send(raw, "x", 1, i < 49 ? ZMQ_SNDMORE : 0), 1);
    assert_int_equal(zmq_send(raw, "\x08\x01", 2, 0), 2); // a version and no message
    for (int i = 0; i < 200 && wire_garbage(s) < 4; i++) {
        (void)!wire_wait(s, 50, &err);
        assert_int_equal(wire_recv(s, &peer, &m, &err), STATUS_AGAIN);
    }
    assert_true(wire_garbage(s) == 4);
    converse(s, c, &peer); // and life goes on
    zmq_close(raw);
    zmq_ctx_term(context);
    wire_close(c);
    wire_close(s);
}

static void test_big_prepare(void **state)
{
    (void)state;
    struct wire *s, *c;
    struct wire_peer peer;
    const int64_t n = 3 << 20; // 17 bytes a token
    struct msg_member members[3];
    int32_t *ids = malloc((size_t)n * 4), *versions = malloc((size_t)n * 4);
    float *logprobs = malloc((size_t)n * 4), *temperatures = malloc((size_t)n * 4);
    uint8_t *mask = malloc((size_t)n);
    for (int64_t i = 0; i < n; i++) {
        ids[i] = (int32_t)i;
        mask[i] = i & 1;
        versions[i] = mask[i] ? 9 : -1;
        logprobs[i] = mask[i] ? -(float)i / (float)n : 0;
        temperatures[i] = mask[i] ? 0.5f : 1;
    }
    for (int i = 0; i < 3; i++)
        members[i] = (struct msg_member){.trajectory = (uint64_t)i, .n_tokens = 1 << 20, .multiplicity = 1};
    struct msg m = {.type = MSG_PREPARE,
                    .prepare = {.step = 9,
                                .updates = 1,
                                .n_members = 3,
                                .members = members,
                                .n_tokens = n,
                                .ids = ids,
                                .mask = mask,
                                .logprobs = logprobs,
                                .versions = versions,
                                .temperatures = temperatures}};
    struct msg got;
    OK(wire_bind(ipc, NULL, &s, &err));
    OK(wire_connect(ipc, "trainer", NULL, &c, &err));
    converse(s, c, &peer);
    OK(wire_send(s, &peer, &m, &err));
    receive(c, NULL, &got);
    assert_int_equal(got.prepare.n_tokens, n);
    assert_memory_equal(got.prepare.ids, ids, (size_t)n * 4);
    assert_memory_equal(got.prepare.mask, mask, (size_t)n);
    assert_memory_equal(got.prepare.logprobs, logprobs, (size_t)n * 4);
    assert_memory_equal(got.prepare.versions, versions, (size_t)n * 4);
    assert_memory_equal(got.prepare.temperatures, temperatures, (size_t)n * 4);
    wire_close(c);
    wire_close(s);
    free(ids);
    free(versions);
    free(logprobs);
    free(temperatures);
    free(mask);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ipc),         cmocka_unit_test(test_endpoints_refused),
        cmocka_unit_test(test_curve),       cmocka_unit_test(test_curve_beside_ipc),
        cmocka_unit_test(test_full_queue),  cmocka_unit_test(test_room),
        cmocka_unit_test(test_peer_gone),   cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_big_prepare),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
