// Inside the HTTP API: POST /generate, its calls under way and their replies. Owner: the I/O thread.
#ifndef ROLLOUT_HTTP_GENERATE_H
#define ROLLOUT_HTTP_GENERATE_H

#include "net/http_server.h"
#include "rollout/http_api.h"

struct generate;

struct generate *generate_open(struct worker *w, const struct model_config *m);
// The server is closed already: requests still open are ended into the void.
void generate_close(struct generate *g);
void generate_request(struct generate *g, struct http_request *r);
void generate_output(struct generate *g, const struct outputs *o, const struct output *item);
// Cancels the jobs of one rid (NULL = of all). Returns how many calls that were.
int generate_abort(struct generate *g, const char *rid);
int generate_calls(const struct generate *g);

#endif
