// The door-keeper of CURVE sockets (ZeroMQ RFC 27, ZAP): a thread that lets in the client keys of a file and nobody
// else. CURVE by itself only proves that a client knows the server's key, which is no secret. Not for other rooms.
#ifndef PROTO_ZAP_H
#define PROTO_ZAP_H

#include "base/status.h"

struct zap;

// Starts the handler of the context `zmq_context`; at most one per context, before its CURVE sockets are bound.
// allow_file: Z85 public keys, one a line with the name of who holds it, # starts a comment; read anew at each handshake, so
// that keys can be added and withdrawn while the run goes on (for new connections). A file that cannot be read admits nobody.
// The name goes with every message of the connection (wire_peer.user); that of a key without one is the key.
enum status zap_open(void *zmq_context, const char *allow_file, struct zap **ret,
                     struct error *err) OOZE_MUST_USE;
// Joins the thread, which ends when the context is terminated: call after zmq_ctx_term.
void zap_close(struct zap *z);

#endif
