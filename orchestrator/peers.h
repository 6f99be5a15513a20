// Who is connected: engines and the trainer, each with its incarnation, its load and when it last spoke.
//
// Invariants
//   1. A peer enters by HELLO only. Strangers are not heard and get no PING, upon which they say HELLO.
//   2. One engine per name, one trainer: a newer incarnation replaces the older, whose jobs move on.
//   3. Silence beyond orchestrator.silence_ms = down: out of the routes until the next HELLO.
//   4. serial tells incarnations apart; what refers to a peer later on does so by serial.
//   5. What comes over tcp names a key (wire_peer.user). Its holder is the engine of that name and nothing else: it is heard as an
//      engine of another host, and neither queries nor words of a trainer are taken from it, nor the run's numerics_id.
#ifndef ORCHESTRATOR_PEERS_H
#define ORCHESTRATOR_PEERS_H

#include <stdbool.h>
#include <stdint.h>

#include "orchestrator/router.h"
#include "proto/wire.h"

#define PEERS_MAX  128
#define PEERS_NAME 64

struct peer {
    int32_t role; // enum msg_role, 0 = free slot
    uint32_t serial;
    bool up;
    bool remote; // engine of another host: gets no paths, fetches weights in chunks
    struct wire_peer wire;
    char name[PEERS_NAME];
    int64_t pid, restarts;
    int64_t seen_ms;
    int64_t hello_ms;     // last HELLO
    struct msg_ping load; // last PONG
    // engine
    uint64_t name_hash;
    int64_t version;                 // held, -1 = none
    int64_t announced;               // VERSION sent for, -1 = none
    int64_t retry_version, retry_ms; // after a failed load: this version is not announced again before
    int64_t kv_tokens, max_running;
    int64_t progress_ms; // last new tokens
    bool probed;         // compared with the trainer, or being so (check.h)
    struct job_list jobs;
};

struct peers {
    struct peer v[PEERS_MAX];
    uint32_t next_serial;
    int64_t next_ping_ms;
    uint64_t nonce;
};

struct peer *peers_by_serial(struct orch *o, uint32_t serial); // NULL when gone
struct peer *peers_trainer(struct orch *o);                    // NULL unless up
// False when it could not be sent now (queue full) or the peer is gone (it is then down).
bool peers_send(struct orch *o, struct peer *p, const struct msg *m);

void peers_on_message(struct orch *o, const struct wire_peer *from, const struct msg *m);
// Pings, silence, announcements that did not fit.
void peers_tick(struct orch *o);
// The newest published weights go to every engine that does not have them.
void peers_announce(struct orch *o);
int peers_engines_up(const struct orch *o);
int peers_engines_holding(const struct orch *o, int64_t version);

#endif
