// One request of the HTTP server: its parsed head, its checks, and its life between MHD and the handler.
// Runs on the loop's thread.
//
//   reading ─► refused ─────────────────────────────► freed by on_completed
//      └─► started (the handler's) ─► ended ─► sent ─► freed by on_completed
//              └─ client gone: http_request_lost ─► ended ─► freed, by whoever comes last
//
//  1. r->mhd, r->conn and r->server are valid together, until on_completed.
//  2. The hangup watch sits on a dup of MHD's socket: MHD does not look at suspended connections, and its
//  descriptor may be
//     closed under us.
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "net/http_internal.h"
#include "net/url.h"

void http_pairs_add(struct http_pairs *p, const char *name, size_t name_len, char *value)
{
    p->v = mem_grow(p->v, p->n + 1, sizeof(*p->v));
    p->v[p->n++] = (struct http_pair){mem_strndup(name, name_len), value};
}

const char *http_pairs_get(const struct http_pairs *p, const char *name, bool ignore_case)
{
    for (size_t i = 0; i < p->n; i++) {
        if ((ignore_case ? strcasecmp : strcmp)(p->v[i].name, name) == 0) {
            return p->v[i].value;
        }
    }
    return NULL;
}

static void pairs_done(struct http_pairs *p)
{
    for (size_t i = 0; i < p->n; i++) {
        free(p->v[i].name);
        free(p->v[i].value);
    }
    free(p->v);
    *p = (struct http_pairs){0};
}

struct http_request *http_request_new(struct http_server *s, const char *target)
{
    struct http_request *r = mem_must(1, sizeof(*r));
    r->loop = s->loop;
    r->server = s;
    r->dup_fd = -1;
    r->target = mem_strdup(target);
    r->path = mem_strndup(target, strcspn(target, "?"));
    return r;
}

void http_request_free(struct http_request *r)
{
    http_request_unwatch(r);
    pairs_done(&r->headers);
    pairs_done(&r->query);
    pairs_done(&r->captures);
    pairs_done(&r->extra);
    buf_done(&r->body);
    buf_done(&r->out);
    free(r->content_type);
    free(r->method);
    free(r->target);
    free(r->path);
    free(r);
}

// ---- checks of the head ----

static void refuse(struct http_request *r, int status, const char *text)
{
    if (!r->refusal) {
        r->refusal = status;
        r->refusal_text = text;
    }
}

static enum MHD_Result copy_header(void *cls, enum MHD_ValueKind kind, const char *name, const char *value)
{
    (void)kind;
    struct http_request *r = cls;
    http_pairs_add(&r->headers, name, strlen(name), mem_strdup(value ? value : ""));
    return MHD_YES;
}

// RFC 9110 token characters; a space before the colon is the classic smuggling shape.
static bool header_name_ok(const char *name)
{
    if (!*name) {
        return false;
    }
    for (; *name; name++) {
        unsigned char c = (unsigned char)*name;
        if (c >= 0x80 || (!isalnum(c) && !strchr("!#$%&'*+-.^_`|~", c))) {
            return false;
        }
    }
    return true;
}

static void check_framing(struct http_request *r)
{
    int n_framing = 0, n_host = 0;
    for (size_t i = 0; i < r->headers.n; i++) {
        const char *name = r->headers.v[i].name, *value = r->headers.v[i].value;
        if (!header_name_ok(name)) {
            refuse(r, 400, "malformed header name");
        }
        n_host += strcasecmp(name, "Host") == 0;
        if (strcasecmp(name, "Transfer-Encoding") == 0) {
            n_framing++;
            if (strcasecmp(value, "chunked") != 0) {
                refuse(r, 400, "the only transfer coding accepted is chunked");
            }
        } else if (strcasecmp(name, "Content-Length") == 0) {
            n_framing++;
            size_t digits = strspn(value, "0123456789");
            if (!digits || value[digits]) {
                refuse(r, 400, "malformed Content-Length");
            } else if (digits > 18 || strtoull(value, NULL, 10) > r->server->config.max_body_bytes) {
                refuse(r, 413, "body is over this server's limit");
            }
        }
    }
    if (n_framing > 1) { // also where only one of them is too large: framing comes first
        r->refusal = 400;
        r->refusal_text = "more than one of Content-Length and Transfer-Encoding";
    }
    if (n_host > 1) {
        refuse(r, 400, "more than one Host");
    }
}

// "host", "host:port" or "[v6]:port" names this machine.
static bool authority_is_loopback(const char *authority)
{
    bool v6 = authority[0] == '[';
    size_t n = strcspn(authority + v6, v6 ? "]" : ":");
    char *name = mem_strndup(authority + v6, n);
    bool yes = url_host_is_loopback(name);
    free(name);
    return yes;
}

// On a loopback bind the Host must name this machine, or a web page could reach us through a name of its own
// that resolves to 127.0.0.1. (The host we are bound to is one of these names then.)
static void check_host(struct http_request *r)
{
    const char *host = http_pairs_get(&r->headers, "Host", true);
    if (!r->server->loopback || !host) {
        return; // MHD refuses an HTTP/1.1 request without Host
    }
    if (!authority_is_loopback(host)) {
        refuse(r, 421, "this server does not answer for that Host");
    }
}

// A page of any site may also POST to 127.0.0.1 outright: a simple request is sent before the browser asks whether
// it may, and its Host is ours. Browsers say in Origin whose page it was ("null" where that has no name); other
// clients have no Origin.
static void check_origin(struct http_request *r)
{
    for (size_t i = 0; r->server->loopback && i < r->headers.n; i++) {
        if (strcasecmp(r->headers.v[i].name, "Origin") != 0) {
            continue;
        }
        const char *scheme_end = strstr(r->headers.v[i].value, "://");
        if (!scheme_end || !authority_is_loopback(scheme_end + 3)) {
            refuse(r, 403, "pages of other sites may not call this server");
        }
    }
}

static void parse_query(struct http_request *r, const char *q)
{
    while (*q) {
        size_t n = strcspn(q, "&"), name_len = strcspn(q, "=&");
        char *name, *value;
        if (n && r->query.n == HTTP_QUERY_MAX) {
            refuse(r, 400, "too many query parameters");
            return;
        }
        if (n) {
            size_t at = name_len < n ? name_len + 1 : n;
            if (url_decode(q, name_len, true, &name, NULL) != STATUS_OK) {
                refuse(r, 400, "broken percent escape in the query");
                return;
            }
            if (url_decode(q + at, n - at, true, &value, NULL) != STATUS_OK) {
                free(name);
                refuse(r, 400, "broken percent escape in the query");
                return;
            }
            http_pairs_add(&r->query, name, strlen(name), value);
            free(name);
        }
        q += n + (q[n] == '&');
    }
}

static void check_target(struct http_request *r)
{
    char *decoded;
    for (const char *c = r->target; *c; c++) {
        if ((unsigned char)*c <= ' ' || *c == 0x7f || *c == '#') {
            refuse(r, 400, "malformed request target");
        }
    }
    if (r->path[0] != '/') {
        refuse(r, 400, "the request target must be a path");
    }
    if (url_decode(r->path, strlen(r->path), false, &decoded, NULL) != STATUS_OK) {
        refuse(r, 400, "broken percent escape in the path");
    } else {
        free(decoded);
    }
    size_t path_len = strlen(r->path);
    parse_query(r, r->target + path_len + (r->target[path_len] == '?'));
}

static void check_token(struct http_request *r)
{
    const char *token = r->server->config.token;
    if (!token || !strcmp(r->method, "GET") || !strcmp(r->method, "HEAD") || !strcmp(r->method, "OPTIONS")) {
        return;
    }
    if (!http_bearer_matches(http_request_header(r, "Authorization"), token)) {
        refuse(r, 401, "this call needs this server's bearer token");
    }
}

void http_request_check(struct http_request *r, const char *method)
{
    r->method = mem_strdup(method);
    MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, copy_header, r);
    check_framing(r);
    check_host(r);
    check_origin(r);
    check_target(r);
    check_token(r);
}

// ---- life ----

static void client_hung_up(void *ctx, int events)
{
    (void)events;
    struct http_request *r = ctx;
    http_request_unwatch(r);
    http_request_lost(r);
    http_request_resume(r); // MHD then finds the connection refused by on_access or ended by the stream
}

void http_request_suspend(struct http_request *r)
{
    MHD_suspend_connection(r->mhd);
    r->suspended = true;
    if (r->dup_fd >= 0) {
        return;
    }
    r->dup_fd = fcntl(r->conn->fd, F_DUPFD_CLOEXEC, 0);
    if (r->dup_fd >= 0 &&
        loop_fd_open(r->loop, r->dup_fd, LOOP_HANGUP, client_hung_up, r, &r->hangup, NULL) != STATUS_OK) {
        close(r->dup_fd); // then we learn of it when we write
        r->dup_fd = -1;
    }
}

void http_request_unwatch(struct http_request *r)
{
    loop_fd_close(r->hangup);
    r->hangup = NULL;
    if (r->dup_fd >= 0) {
        close(r->dup_fd);
        r->dup_fd = -1;
    }
}

void http_request_resume(struct http_request *r)
{
    if (r->suspended) {
        r->suspended = false;
        r->server->resumed = true;
        MHD_resume_connection(r->mhd);
        loop_timer_set(r->server->run_timer, 0, 0);
    }
}

void http_request_lost(struct http_request *r)
{
    if (r->gone) {
        return;
    }
    r->gone = true;
    if (r->on_disconnect && !r->ended) {
        r->on_disconnect(r->disconnect_ctx, r);
    }
}

// ---- reading ----

const char *http_request_method(const struct http_request *r)
{
    return r->method;
}

const char *http_request_path(const struct http_request *r)
{
    return r->path;
}

const char *http_request_query(const struct http_request *r, const char *name)
{
    return http_pairs_get(&r->query, name, false);
}

const char *http_request_header(const struct http_request *r, const char *name)
{
    return http_pairs_get(&r->headers, name, true);
}

const char *http_request_body(const struct http_request *r, size_t *ret_n)
{
    if (ret_n) {
        *ret_n = r->body.len;
    }
    return r->body.data ? r->body.data : "";
}

bool http_request_json(struct http_request *r, json_t **ret_object)
{
    struct error err;
    json_t *j;
    if (json_parse(r->body.data ? r->body.data : "", r->body.len, "request body", &j, &err) != STATUS_OK) {
        http_reply_error(r, 400, NULL, "%s", err.text);
        return false;
    }
    if (!json_is_object(j)) {
        json_decref(j);
        http_reply_error(r, 400, NULL, "request body: expected a JSON object");
        return false;
    }
    *ret_object = j;
    return true;
}

const char *http_request_capture(const struct http_request *r, const char *name)
{
    return http_pairs_get(&r->captures, name, false);
}

struct loop *http_request_loop(const struct http_request *r)
{
    return r->loop;
}

void http_request_set_data(struct http_request *r, void *data)
{
    r->data = data;
}

void *http_request_data(const struct http_request *r)
{
    return r->data;
}

void http_request_on_disconnect(struct http_request *r, http_handler *fn, void *ctx)
{
    r->on_disconnect = fn;
    r->disconnect_ctx = ctx;
}

bool http_request_gone(const struct http_request *r)
{
    return r->gone;
}

static const char *bearer_of(const char *authorization)
{
    if (!authorization || strncasecmp(authorization, "Bearer ", 7) != 0) {
        return NULL;
    }
    return authorization + 7 + strspn(authorization + 7, " ");
}

bool http_bearer_matches(const char *authorization, const char *token)
{
    const char *given = bearer_of(authorization);
    if (!given || !token) {
        return false;
    }
    // The time depends on the length of what was given only, never on where it first differs.
    size_t n = strlen(given), n_token = strlen(token);
    volatile unsigned char diff = n != n_token || n_token == 0;
    for (size_t i = 0; i < n; i++) {
        diff |= (unsigned char)(given[i] ^ token[n_token ? i % n_token : 0]);
    }
    return diff == 0;
}

const char *http_request_bearer(const struct http_request *r)
{
    return bearer_of(http_request_header(r, "Authorization"));
}
