// An orchestrator that is open and stands still: its loop does not run, its clock is the test's, and the test takes the messages in that
// arrive. Peers are wires of the test's own: of this host over ipc, of another one over tcp with the key of a name.
#ifndef TESTS_STILL_ORCH_H
#define TESTS_STILL_ORCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/runconfig.h"
#include "orchestrator/orch.h"
#include "proto/keys.h"
#include "proto/wire.h"

#define STILL_WAIT_MS    60000 // for what is on its way through libzmq's threads
#define STILL_RUN        "00112233445566778899aabbccddeeff"
#define STILL_SILENCE_MS 10000
#define STILL_LEASE_MS   600000

static struct {
    char dir[64], tcp[256];
    struct clock_fake clock;
    struct orch *o;
    struct keys server;
    uint64_t fences;
} still;

#define still_ok(call)                                                                                       \
    do {                                                                                                     \
        struct error err;                                                                                    \
        if ((call) != STATUS_OK)                                                                             \
            fail_msg("%s: %s", #call, err.text);                                                             \
    } while (0)

static inline void still_put(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", still.dir, name);
    still_ok(file_write_atomic(path, text, strlen(text), 0600, &err));
}

// test_setup of cmocka
static inline int still_open(void **state)
{
    static const char *const folders[] = {"weights", "checkpoints", "tasks", "keys"};
    char path[128], *listen;
    (void)state;
    memset(&still, 0, sizeof still);
    strcpy(still.dir, "/tmp/ooze-still-XXXXXX");
    assert_non_null(mkdtemp(still.dir));
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        snprintf(path, sizeof path, "%s/%s", still.dir, folders[i]);
        still_ok(file_mkdirs(path, 0700, &err));
    }
    still_put("config.yaml",
              "name: still\nseed: 7\n"
              "model: {hidden: 32, n_layers: 1, n_heads: 1, ffn: 32, max_position: 512}\n"
              "orchestrator: {listen: 'tcp://127.0.0.1:*', silence_ms: 10000, lease_ms: 600000}\n"
              "tasks:\n  - {name: pair, command: [never-started]}\n"
              "stages:\n  - {name: rl, kind: rl, steps: 10, groups_per_step: 3, group_size: 4}\n");
    still_put("id", STILL_RUN "\n");
    still_put("token", "secret\n");
    still_put("keys/allowed", "");
    still_ok(wire_keypair(still.server.public, still.server.secret, &err));
    snprintf(path, sizeof path, "%s/keys/server.key", still.dir);
    still_ok(keys_write(path, &still.server, &err));
    clock_fake_init(&still.clock, (int64_t)1000000 * 1000000000);
    const struct orch_options opt = {.run_dir = still.dir, .clock = &still.clock.clock};
    still_ok(orch_open(&opt, &still.o, &err));
    snprintf(path, sizeof path, "%s/orchestrator.listen", still.dir);
    still_ok(file_read(path, sizeof still.tcp, &listen, NULL, &err));
    snprintf(still.tcp, sizeof still.tcp, "%.*s", (int)strcspn(listen, "\n"), listen);
    free(listen);
    return 0;
}

static inline int still_close(void **state)
{
    (void)state;
    orch_close(still.o);
    return file_remove_tree(still.dir, NULL) == STATUS_OK ? 0 : -1;
}

// A process of this host.
static inline struct wire *still_local(const char *id)
{
    char address[500];
    struct wire *w;
    still_ok(run_socket(still.dir, "orch", address, sizeof address, &err));
    still_ok(wire_connect(address, id, NULL, &w, &err));
    return w;
}

// A process of another host, with a key of its own that is listed as `name`.
static inline struct wire *still_remote(const char *id, const char *name)
{
    struct keys k;
    char line[128];
    struct wire *w;
    still_ok(wire_keypair(k.public, k.secret, &err));
    snprintf(line, sizeof line, "%s %s\n", k.public, name);
    still_put("keys/allowed", line); // connections that stand are not asked again
    const struct wire_curve curve = {k.secret, k.public, still.server.public, NULL};
    still_ok(wire_connect(still.tcp, id, &curve, &w, &err));
    return w;
}

static inline void still_wait(struct wire *w)
{
    struct error err;
    if (!wire_pending(w) && wire_wait(w, STILL_WAIT_MS, &err) != STATUS_OK)
        fail_msg("%s", err.text);
}

// Says m and has the orchestrator take it in.
static inline void still_say(struct wire *w, const struct msg *m)
{
    struct wire_peer from;
    struct msg got;
    still_ok(wire_send(w, NULL, m, &err));
    still_wait(still.o->wire);
    still_ok(wire_recv(still.o->wire, &from, &got, &err));
    assert_int_equal(got.type, m->type);
    peers_on_message(still.o, &from, &got);
    wire_release(still.o->wire);
    assert_false(still.o->failed);
}

// The next message; its texts and arrays live until the next call.
static inline struct msg still_hear(struct wire *w)
{
    struct msg m;
    still_wait(w);
    still_ok(wire_recv(w, NULL, &m, &err));
    return m;
}

static inline struct msg still_expect(struct wire *w, enum msg_type type)
{
    struct msg m = still_hear(w);
    if (m.type != type)
        fail_msg("%s, not %s", msg_type_name(m.type), msg_type_name(type));
    return m;
}

// Nothing was said to the peer that it has not heard: what leaves now is the next thing it hears.
static inline void still_quiet(struct wire *w, struct peer *p)
{
    const struct msg m = {.type = MSG_PING, .ping = {.nonce = ++still.fences}};
    assert_true(peers_send(still.o, p, &m));
    assert_int_equal(still_expect(w, MSG_PING).ping.nonce, still.fences);
}

static inline struct msg still_hello(enum msg_role role, const char *name)
{
    return (struct msg){.type = MSG_HELLO,
                        .hello = {.role = role,
                                  .run = STILL_RUN,
                                  .name = name,
                                  .build = "test",
                                  .numerics_id = "ours",
                                  .pid = 1,
                                  .version = -1,
                                  .version_hash = "",
                                  .kv_tokens = 10000,
                                  .max_running = role == ROLE_ENGINE ? 8 : 0}};
}

static inline struct peer *still_peer(const char *name)
{
    for (int i = 0; i < PEERS_MAX; i++)
        if (still.o->peers.v[i].role && strcmp(still.o->peers.v[i].name, name) == 0)
            return &still.o->peers.v[i];
    return NULL;
}

// An engine of this host that holds the newest weights.
static inline struct wire *still_engine(const char *name)
{
    struct wire *w = still_local(name);
    struct msg h = still_hello(ROLE_ENGINE, name);
    h.hello.version = still.o->weights.version;
    h.hello.version_hash = still.o->weights.hash;
    still_say(w, &h);
    assert_true(still_expect(w, MSG_WELCOME).welcome.accepted);
    return w;
}

// Published weights, as far as the orchestrator can see.
static inline void still_weights(int64_t version)
{
    still.o->weights.version = version;
    snprintf(still.o->weights.path, sizeof still.o->weights.path, "%s/weights/%d", still.dir, (int)version);
    memset(still.o->weights.hash, 'a', HASH_HEX - 1);
}

static inline void still_pass(int64_t ms)
{
    clock_fake_advance_ms(&still.clock, ms);
}

#endif
