// HTTP/1.1 server (libmicrohttpd driven by our loop): whole requests in, replies now, later, or in pieces.
//
//  1. One thread: the loop's. Handlers do not block.
//  2. A request given to the handler is the handler's until it is ended by exactly one http_reply*,
//  http_stream_end,
//     also after its client went away or the server closed (the reply then goes nowhere). Ended requests are
//     gone.
//  3. Bounded: connections, head and body bytes, time to send a request, idle time, bytes waiting in a
//  stream.
//  4. Refused before any handler sees it (400): two Content-Length or Transfer-Encoding headers or both, a
//  transfer
//     coding other than chunked, a header name with a space, a target not starting with '/', broken percent
//     escapes; 413 a body over the limit; 401 a wrong token; on a loopback bind also 421 a Host other than ours and 403 an
//     Origin of another host.
#ifndef NET_HTTP_SERVER_H
#define NET_HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "base/status.h"
#include "net/loop.h"

struct http_server;
struct http_request;
typedef void http_handler(void *ctx, struct http_request *r);

struct http_server_config { // zero = the default in brackets
    const char *host;       // address or name to bind ["127.0.0.1"]
    int port;               // 0 = any free one, see http_server_port
    http_handler *handler;
    void *ctx;
    const char
        *token; // when set, methods other than GET, HEAD and OPTIONS need "Authorization: Bearer token"
    size_t max_body_bytes; // [16 MiB]
    int max_connections;   // [1024]; more wait in the kernel's backlog
    int64_t
        request_timeout_ms;  // from the connection (or the request line) to the last byte of the body [30 s]
    int64_t idle_timeout_ms; // kept-alive without a request, or a client that does not read [75 s]
    size_t max_stream_bytes; // queued per stream before http_stream_write says AGAIN [1 MiB]
};

// STATUS_BUSY when the port is taken.
enum status http_server_open(struct loop *l, const struct http_server_config *config,
                             struct http_server **ret_server, struct error *err) OOZE_MUST_USE;
int http_server_port(const struct http_server *s);
// Bound to an address that only this host can reach: what needs no token here may need one elsewhere.
bool http_server_loopback(const struct http_server *s);
int http_server_connections(const struct http_server *s);
// Stops listening, drops connections; on_disconnect is called for requests not ended yet. Not from inside a
// handler.
void http_server_close(struct http_server *s);

// ---- reading a request: all strings live until the request is ended ----
const char *http_request_method(const struct http_request *r);
const char *
http_request_path(const struct http_request *r); // as sent, still percent-encoded, without the query
const char *http_request_query(const struct http_request *r, const char *name);  // decoded; NULL if absent
const char *http_request_header(const struct http_request *r, const char *name); // NULL if absent
const char *http_request_body(const struct http_request *r, size_t *ret_n);      // NUL-terminated, never NULL
// The body as a JSON object; on failure a 400 has been sent and false comes back: just return then.
// json_decref it.
bool http_request_json(struct http_request *r, json_t **ret_object);
const char *http_request_capture(const struct http_request *r,
                                 const char *name); // {name} of the route, decoded
struct loop *http_request_loop(const struct http_request *r);
// The caller's note on a request.
void http_request_set_data(struct http_request *r, void *data);
void *http_request_data(const struct http_request *r);
// fn is called at most once, when the client is gone before the request is ended. The request must still be
// ended, inside fn or later.
void http_request_on_disconnect(struct http_request *r, http_handler *fn, void *ctx);
bool http_request_gone(const struct http_request *r);

// Compares "Bearer <token>" in constant time; false for NULL.
bool http_bearer_matches(const char *authorization, const char *token);
// The text after "Bearer ", NULL if there is none.
const char *http_request_bearer(const struct http_request *r);

// ---- whole replies: end the request ----
// Adds a header to the reply to come; before http_reply* or http_stream_begin.
void http_reply_header(struct http_request *r, const char *name, const char *value);
void http_reply(struct http_request *r, int status, const char *content_type, const void *body, size_t n);
void http_reply_json(struct http_request *r, int status, const json_t *j); // j stays the caller's
// {"error":{"message":…,"type":type,"param":null,"code":null}}; type NULL = chosen by status
// ("invalid_request_error", …)
void http_reply_error(struct http_request *r, int status, const char *type, const char *fmt, ...)
    OOZE_PRINTF(4, 5);

// ---- replies in pieces (server-sent events) ----
void http_stream_begin(struct http_request *r, int status, const char *content_type);
// STATUS_OK: all taken. STATUS_AGAIN: over max_stream_bytes with it, nothing taken (an empty queue takes any
// piece). STATUS_CANCELED: the client is gone.
enum status http_stream_write(struct http_request *r, const void *data, size_t n) OOZE_MUST_USE;
// "data: <text>\n\n"; text without line breaks (JSON has none).
enum status http_stream_event(struct http_request *r, const char *text, size_t n) OOZE_MUST_USE;
// fn is called each time the queue falls to half its limit after a STATUS_AGAIN.
void http_stream_on_drain(struct http_request *r, http_handler *fn, void *ctx);
void http_stream_end(struct http_request *r); // after what is queued; ends the request
void http_stream_abort(
    struct http_request *r); // breaks the connection off, so that the client sees an error; ends the request

// ---- routes ----
struct http_route {
    const char *method;  // "GET" also serves HEAD
    const char *pattern; // "/episodes/{id}/step": a {name} is one whole segment
    http_handler *fn;
};
#define HTTP_CAPTURES_MAX 8
// Calls the first route that matches; else replies 404, or 405 with Allow when only the method differs.
void http_route_dispatch(const struct http_route *routes, size_t n_routes, void *ctx, struct http_request *r);

#endif
