// The wire: ZeroMQ ROUTER (orchestrator) and DEALER (everyone else) sockets that carry struct msg. The only
// door to zmq.h.
//
// Invariants
//   1. One thread owns a wire. ZMQ_HEARTBEAT_IVL is never set (it can abort the process); liveness is our own
//   PING/PONG.
//   2. High-water marks are finite. A send that finds the peer's queue full returns STATUS_AGAIN and keeps
//   nothing.
//   3. A frame that does not decode is counted (wire_garbage) and dropped; it never ends the process or the
//   connection.
//   4. ipc:// sockets live in a 0700 folder. Off the host: CURVE with a ZAP allow-list of client public keys.
#ifndef PROTO_WIRE_H
#define PROTO_WIRE_H

#include "proto/msg.h"

struct wire;

#define WIRE_PEER_MAX 64
#define WIRE_USER_MAX 63
struct wire_peer {             // a connection on a ROUTER
    uint8_t id[WIRE_PEER_MAX]; // routing id: what the other side calls itself, which proves nothing
    int32_t n;
    // Whose key it showed, by the name on the list; "" without CURVE, that is from this host.
    char user[WIRE_USER_MAX + 1];
};

struct wire_curve {         // NULL = no CURVE (ipc only; tcp without CURVE is refused except on loopback)
    const char *secret_key; // Z85, 40 characters: own
    const char *public_key; // own
    const char *server_key; // DEALER: the server's public key
    const char *allow_file; // ROUTER: file of client public keys, one a line: KEY NAME (zap.h)
};

// Endpoints are "ipc:///PATH" (or just "/PATH", as run_socket gives it) and "tcp://HOST:PORT"; CURVE is used on tcp only.
// ROUTER bound to endpoint ("ipc:///…", "tcp://127.0.0.1:*"). The bound address is readable by wire_address.
enum status wire_bind(const char *endpoint, const struct wire_curve *curve, struct wire **ret,
                      struct error *err) OOZE_MUST_USE;
// Adds a further endpoint to a ROUTER.
enum status wire_bind_more(struct wire *w, const char *endpoint, struct error *err) OOZE_MUST_USE;
// DEALER connected to endpoint; reconnects by itself. name becomes the routing id (unique per process:
// include the pid).
enum status wire_connect(const char *endpoint, const char *name, const struct wire_curve *curve,
                         struct wire **ret, struct error *err) OOZE_MUST_USE;
void wire_close(struct wire *w); // lingers at most 1 s

const char *wire_address(const struct wire *w);

// peer: ROUTER only (NULL on a DEALER). STATUS_AGAIN: queue full, retry later; STATUS_PEER: that peer is
// gone.
enum status wire_send(struct wire *w, const struct wire_peer *peer, const struct msg *m,
                      struct error *err) OOZE_MUST_USE;

// Receives one message if there is one: STATUS_OK, or STATUS_AGAIN when the queue is empty. The message's
// arrays live until wire_release(w) or the next wire_recv. Garbage is skipped (and counted) inside.
enum status wire_recv(struct wire *w, struct wire_peer *ret_peer, struct msg *ret,
                      struct error *err) OOZE_MUST_USE;
void wire_release(struct wire *w);
// Waits for input up to timeout_ms (-1 = for ever): for threads without an event loop. STATUS_TIMEOUT when
// none came, or when a signal cut the wait short.
enum status wire_wait(struct wire *w, int timeout_ms, struct error *err) OOZE_MUST_USE;

// The same for room in the queue of a DEALER that answered STATUS_AGAIN.
enum status wire_wait_room(struct wire *w, int timeout_ms, struct error *err) OOZE_MUST_USE;
// wire_close lingers at most so long, instead of 1 s.
void wire_linger(struct wire *w, int ms);

uint64_t wire_garbage(const struct wire *w); // frames dropped so far

// For net/loop.h: the edge-triggered fd, "is there input now" and, of a DEALER, "would a message be taken now" (ZMQ_EVENTS).
int wire_fd(const struct wire *w);
int wire_pending(void *w);
bool wire_has_room(const struct wire *w);

// CURVE key pair for `ooze keys`.
enum status wire_keypair(char ret_public[41], char ret_secret[41], struct error *err) OOZE_MUST_USE;

#endif
