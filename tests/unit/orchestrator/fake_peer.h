// What the fake engine and the fake trainer of the loop's tests share: their connection, what they do wrong, and a word for a broken
// protocol. Each fake is a process of its own.
#ifndef TESTS_FAKE_PEER_H
#define TESTS_FAKE_PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/runconfig.h"
#include "proto/wire.h"

#define BROKEN    99 // exit code of a fake that saw the protocol broken
#define SFT_STEPS 4
#define RL_STEPS  10
#define STEPS     (SFT_STEPS + RL_STEPS)
#define MAX_LAG   2
#define EOS       258
#define OTHER_EOS 262
#define KEPT      8192
#define SHARE     0.5 // of a checked step's trajectories
#define DRIFT_AT  3   // step of the rl stage whose check finds a difference

static char dir[256];
// What the fakes do wrong.
static enum {
    NO_FAULTS,
    LOSSES,
    OTHER_BITS,
    HANGS,
    LOST_ACK,
    OTHER_STOP,        // none: the model ends its turns with an id that the chat does not know
    DRIFT,             // a check finds a token outside 0, and engine-1 computes otherwise
    PASSING,           // the same, but nobody computes otherwise by then
    ODD_ENGINE,        // engine-0 computes otherwise from the start
    CHECK_DEATH,       // the trainer dies over a check, once
    CHECK_DEATHS,      // each time
    NO_WEIGHTS,        // the weights of every check are gone
    DRIFT_AND_HISTORY, // DRIFT, and a segment of that check has a history that contradicts itself
    ODD_HISTORY,       // only the latter
    OTHER_ISA          // engine-1 has another numerics_id; checks find small differences
} faults;

enum who { ORCH, TRAINER, ENGINE0, ENGINE1, TASK, OTHER, REGISTER, WHO_COUNT };
static pid_t pids[WHO_COUNT];
static int restarts_of[WHO_COUNT];

#define REQUIRE(cond)                                                                                        \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                                       \
            _exit(BROKEN);                                                                                   \
        }                                                                                                    \
    } while (0)

// ---- what engine and trainer share ---------------------------------------------------------------------------------------------------

static struct wire *join(const char *name, struct msg_hello *h, int restarts)
{
    char endpoint[512], address[500], id[64];
    struct error err;
    struct wire *w;
    REQUIRE(run_socket(dir, "orch", address, sizeof address, &err) == STATUS_OK);
    snprintf(endpoint, sizeof endpoint, "ipc://%s", address);
    snprintf(id, sizeof id, "%s-%d", name, (int)getpid());
    REQUIRE(wire_connect(endpoint, id, NULL, &w, &err) == STATUS_OK);
    *h = (struct msg_hello){.run = "00112233445566778899aabbccddeeff",
                            .name = name,
                            .build = "fake",
                            .numerics_id = "fake",
                            .pid = getpid(),
                            .version = -1,
                            .version_hash = "",
                            .restarts = restarts};
    return w;
}

static void say(struct wire *w, const struct msg *m)
{
    struct error err;
    for (int i = 0; i < 200; i++) {
        enum status rc = wire_send(w, NULL, m, &err);
        if (rc == STATUS_OK)
            return;
        if (rc != STATUS_AGAIN) {
            fprintf(stderr, "send %s: %s\n", msg_type_name(m->type), err.text);
            REQUIRE(rc == STATUS_AGAIN);
        }
        usleep(10000);
    }
    REQUIRE(!"queue full for two seconds");
}

// The next message; says HELLO every 200 ms until welcomed and after a second of silence.
static bool next(struct wire *w, struct msg_hello *h, bool *welcomed, int64_t *heard_ms, int64_t *said_ms,
                 struct msg *m)
{
    struct wire_peer from;
    struct error err;
    int64_t now = clock_mono_ms(clock_system());
    if (*welcomed && now - *heard_ms > 1000)
        *welcomed = false;
    if (!*welcomed && now - *said_ms > 200) {
        struct msg hello = {.type = MSG_HELLO, .hello = *h};
        say(w, &hello);
        *said_ms = now;
    }
    if (wire_recv(w, &from, m, &err) != STATUS_OK) {
        enum status rc = wire_wait(w, 20, &err);
        (void)rc;
        return false;
    }
    *heard_ms = now;
    if (m->type == MSG_WELCOME) {
        REQUIRE(m->welcome.accepted);
        *welcomed = true;
    }
    if (m->type == MSG_PING) {
        struct msg pong = {.type = MSG_PONG, .ping = {.nonce = m->ping.nonce, .version = h->version}};
        say(w, &pong);
    }
    return true;
}

// The trace of a forward pass: three layers of two ops, a digest of which is a function of ids, weights and place. The trainer runs
// one op more a layer.
static void answer_trace(struct wire *w, const struct msg_trace *t, bool trainer, const char *hash,
                         const char *refusal, int32_t odd_layer)
{
    struct msg_trace_op ops[12];
    uint64_t digests[12], all = hash64_seed(t->ids, (size_t)t->n_ids * 4, hash64(hash, 64));
    float logprobs[MSG_TRACE_IDS];
    struct msg m = {.type = MSG_TRACE_DONE,
                    .trace_done = {.epoch = t->epoch,
                                   .id = t->id,
                                   .version = t->version,
                                   .ok = !refusal[0],
                                   .error = refusal,
                                   .ops = ops,
                                   .digests = digests,
                                   .logprobs = logprobs}};
    for (int32_t layer = 0; !refusal[0] && layer < 3; layer++)
        for (int32_t k = 0; k < 3; k++) {
            static const char *const names[] = {"norm", "gemm", "keep"};
            int32_t i = m.trace_done.n_ops;
            if (k == 2 && !trainer)
                continue;
            ops[i] = (struct msg_trace_op){.layer = layer, .block = "mlp", .op = names[k]};
            digests[i] = all * (uint64_t)(3 * layer + k + 1) + (layer >= odd_layer && k == 1);
            m.trace_done.n_ops++;
        }
    m.trace_done.n_logprobs = refusal[0] ? 0 : t->n_ids;
    for (int32_t i = 0; i < m.trace_done.n_logprobs; i++)
        logprobs[i] = odd_layer < 3 && faults == OTHER_ISA ? -1.001f : -1;
    say(w, &m);
}

#endif
