// HTTP/1.1 client (curl_multi driven by our loop): thousands of calls at once from one thread.
//
//  1. One thread: the loop's. on_done comes exactly once per started call, never from inside http_call_start,
//  and not
//     at all after http_call_cancel or http_client_close. The call's handle is valid until on_done returns.
//  2. At most max_in_flight calls are on the wire; behind them waits a FIFO of at most max_queued.
//  3. http and https only, no redirects, no proxies from the environment, and never to a link-local or
//  metadata
//     address, also when a name resolves to one.
#ifndef NET_HTTP_CLIENT_H
#define NET_HTTP_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "net/loop.h"

struct http_client;
struct http_call;

struct http_client_config { // zero = the default in brackets
    int max_in_flight;      // also the size of the connection cache [1024]
    int max_queued;         // [65536]
    const char *ca_file;    // certificates to trust instead of the system's, NULL = the system's
};

// What became of a call. name, text for people
#define HTTP_OUTCOME_TABLE(X)                                                                                \
    X(OK, "a reply arrived")                                                                                 \
    X(REFUSED, "connection refused")                                                                         \
    X(RESOLVE, "host name not found")                                                                        \
    X(TIMEOUT, "deadline passed")                                                                            \
    X(QUEUE_TIMEOUT, "never left our own queue before its deadline")                                         \
    X(CLOSED, "connection broke before the reply was complete")                                              \
    X(TOO_LARGE, "reply over its size limit")                                                                \
    X(TLS, "TLS failed")                                                                                     \
    X(FORBIDDEN, "address not allowed")                                                                      \
    X(PROTOCOL, "not a valid HTTP reply")                                                                    \
    X(OTHER, "transport failed")
enum http_outcome {
#define X(name, text) HTTP_OUTCOME_##name,
    HTTP_OUTCOME_TABLE(X)
#undef X
};
const char *http_outcome_name(enum http_outcome o);
const char *http_outcome_text(enum http_outcome o);

struct http_result { // pointers live until on_done returns
    enum http_outcome outcome;
    int status;       // HTTP status, any, when outcome is OK; else 0
    const char *body; // NUL-terminated, never NULL; empty when on_data took it
    size_t body_len;
    const char *content_type; // "" if none
    int64_t elapsed_ms;       // on the wire
    const char *message;      // for people, when outcome is not OK
};

struct http_call_spec {
    const char *method; // "GET", "POST", "DELETE", …
    const char *url;
    const void *body; // copied; NULL = none
    size_t body_len;
    const char *content_type;    // NULL = "application/json" when there is a body
    const char *bearer;          // Authorization: Bearer …; NULL = none
    const char *idempotency_key; // NULL = none
    const char *const *headers;  // more of them, "Name: value", NULL-terminated; NULL = none
    int64_t connect_timeout_ms;  // [5 s]
    int64_t timeout_ms;          // whole call from its start on the wire; as much again for the queue [60 s]
    size_t max_reply_bytes;      // [16 MiB]
    void (*on_done)(void *ctx, const struct http_result *result);
    // Optional: the body in pieces as it arrives, for streams; only for status < 400 (errors come whole in
    // on_done).
    void (*on_data)(void *ctx, const char *data, size_t n);
    void *ctx;
};

enum status http_client_open(struct loop *l, const struct http_client_config *config,
                             struct http_client **ret_client, struct error *err) OOZE_MUST_USE;
void http_client_close(struct http_client *c); // cancels everything; not from inside its callbacks

// STATUS_AGAIN: the queue is full. STATUS_INVALID, STATUS_REFUSED: see url_check. ret_call may be NULL.
enum status http_call_start(struct http_client *c, const struct http_call_spec *spec,
                            struct http_call **ret_call, struct error *err) OOZE_MUST_USE;
void http_call_cancel(struct http_call *call); // no callback follows; also fine inside on_data
int http_client_in_flight(const struct http_client *c);
int http_client_queued(const struct http_client *c);

#endif
