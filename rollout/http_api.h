// The engine's native HTTP API, token ids only, after SGLang's ("The engine's HTTP API" of protocols.md).
//
//   POST /generate                    GET /health  GET /get_weight_version  GET /metrics
//   POST /pause_generation  POST /continue_generation  POST /abort_request  POST /flush_cache  POST /update_weights_from_disk
//
// Streams (stream: true) are server-sent events; each event holds the ids that are new since the last one, in the shape of a whole
// reply, the last event also the finish_reason; then "data: [DONE]".
// Calls that change the engine for others (pause, continue, flush, update weights, abort everything) need the token where there is
// one; /generate and aborting one's own rid do not. On an address that other hosts reach there must be a token, and every POST
// needs it. An engine of a run has its weights from the trainer and its jobs from the orchestrator (contract 4): nobody else may
// update the ones or end all of the others, token or not.
//
// Owner: the I/O thread.
#ifndef ROLLOUT_HTTP_API_H
#define ROLLOUT_HTTP_API_H

#include "rollout/worker.h"

struct http_api;

// Jobs of the HTTP API have this bit; those of the orchestrator do not.
#define HTTP_JOB_BIT ((uint64_t)1 << 63)

struct http_api_config {
    struct loop *loop;
    struct worker *worker;
    struct model_config model;
    const char *host;  // NULL = 127.0.0.1
    int port;          // 0 = any free one
    const char *token; // NULL = none
    bool in_run;       // an engine of a run; token is the run's
    const char *name;  // for /metrics: engine="name"
};

// STATUS_REFUSED: no token, and a host that is not loopback.
enum status http_api_open(const struct http_api_config *c, struct http_api **ret,
                          struct error *err) OOZE_MUST_USE;
void http_api_close(struct http_api *a);
int http_api_port(const struct http_api *a);

// The worker's callbacks, passed on: outputs of jobs with HTTP_JOB_BIT (others are skipped), and every finished load.
void http_api_outputs(struct http_api *a, const struct outputs *o);
void http_api_loaded(struct http_api *a, const struct worker_loaded *l);

#endif
