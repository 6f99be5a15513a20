// CURVE keys on disk: RUN/keys/server.key and client.key of a join folder. Both are text, 0600: a word and a key a line,
// # starts a comment.
//   public KEY    own
//   secret KEY    own
//   server KEY    client.key only: the public key of the run's orchestrator
#ifndef PROTO_KEYS_H
#define PROTO_KEYS_H

#include <stdbool.h>

#include "base/status.h"

struct keys {
    char public[41], secret[41]; // Z85
    char server[41];             // "" in server.key
};

// A file that lacks one of the keys (server: only when want_server) is STATUS_INVALID.
enum status keys_read(const char *path, bool want_server, struct keys *ret, struct error *err) OOZE_MUST_USE;
enum status keys_write(const char *path, const struct keys *k, struct error *err) OOZE_MUST_USE;
// Forgets the secret.
void keys_wipe(struct keys *k);

#endif
