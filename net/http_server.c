// The HTTP server: libmicrohttpd in external-epoll mode. Its epoll descriptor sits in our loop; whenever that
// is readable or its time-out passes, MHD_run does what is to do, calling back on_head, on_access,
// on_completed. Runs on the loop's thread.
//
//   connection: accepted → (request line → head → body → handler → reply)* → closed
//                on_connection  on_uri    on_access ................ on_completed  on_connection
//
//  1. Every connection is in server->conns from accept to close; its deadline is set whenever the next move
//  is the client's.
//  2. A request is suspended in MHD exactly while r->suspended; only http_request_resume resumes.
//  3. MHD sees nothing but whole answers of on_access: a refused request's body is read and thrown away, up
//  to a bound.
#include "net/http_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "net/http_internal.h"
#include "net/url.h"

#define DISCARD_BYTES  (1 << 20) // of a chunked body over its limit, so that the client can read the 413
#define LISTEN_BACKLOG 4096

// ---- MHD's callbacks ----

static void on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http_server *s = cls;
    struct http_conn *c = *socket_context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        c = mem_must(1, sizeof(*c));
        c->server = s;
        c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        c->deadline_ms = loop_now_ms(s->loop) + s->config.request_timeout_ms;
        c->prev = s->conns.prev;
        c->next = &s->conns;
        c->prev->next = c->next->prev = c;
        s->n_conns++;
        *socket_context = c;
    } else if (c) {
        c->prev->next = c->next;
        c->next->prev = c->prev;
        s->n_conns--;
        free(c);
        *socket_context = NULL;
    }
}

static struct http_conn *conn_of(struct MHD_Connection *mhd)
{
    return MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
}

// The request line has been read; what this returns is the request's context from here on.
static void *on_uri(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    struct http_server *s = cls;
    struct http_request *r = http_request_new(s, uri);
    r->mhd = mhd;
    r->conn = conn_of(mhd);
    r->conn->request = r;
    r->conn->deadline_ms = loop_now_ms(s->loop) + s->config.request_timeout_ms;
    return r;
}

static enum MHD_Result take_body(struct http_request *r, const char *data, size_t *size)
{
    size_t n = *size, max = r->server->config.max_body_bytes;
    *size = 0;
    if (r->refusal) {
        r->discarded += n;
        return r->discarded > DISCARD_BYTES ? MHD_NO : MHD_YES;
    }
    if (n > max - r->body.len) {
        r->refusal = MHD_HTTP_CONTENT_TOO_LARGE;
        r->refusal_text = "body is over this server's limit";
        buf_done(&r->body);
        return MHD_YES;
    }
    buf_append(&r->body, data, n);
    return MHD_YES;
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                                 const char *version, const char *upload, size_t *upload_size, void **req_cls)
{
    (void)mhd;
    (void)url;
    (void)version;
    struct http_server *s = cls;
    struct http_request *r = *req_cls;
    if (!r->checked) { // head only; a refusal here keeps MHD from reading the body
        r->checked = true;
        http_request_check(r, method);
        return r->refusal ? http_request_send_refusal(r) : MHD_YES;
    }
    if (*upload_size) {
        return take_body(r, upload, upload_size);
    }
    if (r->refusal) {
        return http_request_send_refusal(r);
    }
    if (r->gone || r->aborted) {
        return MHD_NO;
    }
    if (!r->started) {
        r->started = true;
        r->conn->deadline_ms = 0;
        s->config.handler(s->config.ctx, r);
    }
    if (r->aborted) {
        return MHD_NO;
    }
    if (r->kind != HTTP_REPLY_NONE) {
        return http_request_send(r);
    }
    http_request_suspend(r);
    return MHD_YES;
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **req_cls,
                         enum MHD_RequestTerminationCode code)
{
    (void)mhd;
    (void)code;
    struct http_server *s = cls;
    struct http_request *r = *req_cls;
    *req_cls = NULL;
    if (!r) {
        return;
    }
    http_request_unwatch(r);
    r->conn->request = NULL;
    r->conn->deadline_ms = loop_now_ms(s->loop) + s->config.idle_timeout_ms;
    r->conn = NULL;
    r->mhd = NULL;
    r->server = NULL;
    if (!r->started || r->ended) {
        http_request_free(r);
    } else {
        http_request_lost(r);
    }
}

static void on_mhd_log(void *cls, const char *fmt, va_list ap)
{
    (void)cls; // broken clients are not our log's business, and libraries do not log
    (void)fmt;
    (void)ap;
}

// ---- driving it ----

static void run_daemon(struct http_server *s)
{
    bool full;
    do { // a full MHD stops listening, and looks whether it may go on only at the start of a run
        full = s->n_conns >= s->config.max_connections;
        s->resumed = false;
        MHD_run(s->daemon);
        full = full || s->n_conns >= s->config.max_connections;
    } while (full && s->n_conns < s->config.max_connections);
    MHD_UNSIGNED_LONG_LONG timeout;
    if (s->resumed) { // by a handler during the run, whose end MHD does not look at that
        loop_timer_set(s->run_timer, 0, 0);
    } else if (MHD_get_timeout(s->daemon, &timeout) == MHD_YES) {
        loop_timer_set(s->run_timer, (int64_t)timeout, 0);
    } else {
        loop_timer_stop(s->run_timer);
    }
}

static void daemon_ready(void *ctx, int events)
{
    (void)events;
    run_daemon(ctx);
}

static void daemon_timer(void *ctx)
{
    run_daemon(ctx);
}

// Cuts off clients that owe us bytes for too long. MHD notices the shut socket and closes it.
static void sweep(void *ctx)
{
    struct http_server *s = ctx;
    int64_t now = loop_now_ms(s->loop);
    for (struct http_conn *c = s->conns.next; c != &s->conns; c = c->next) {
        if (c->deadline_ms && now >= c->deadline_ms) {
            c->deadline_ms = 0;
            shutdown(c->fd, SHUT_RDWR);
        }
    }
}

// ---- opening and closing ----

static enum status listen_on(const char *host, int port, int *ret_fd, int *ret_port, struct error *err)
{
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_ADDRCONFIG, .ai_socktype = SOCK_STREAM}, *list;
    char service[8];
    snprintf(service, sizeof(service), "%d", port);
    int e = getaddrinfo(host, service, &hints, &list);
    if (e) {
        hints.ai_flags = AI_PASSIVE; // a machine without any address but loopback
        e = getaddrinfo(host, service, &hints, &list);
    }
    if (e) {
        return error_set(err, STATUS_INVALID, "HTTP server: host \"%s\": %s", host, gai_strerror(e));
    }
    int saved = 0, fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
        bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, LISTEN_BACKLOG)) {
        saved = errno;
    }
    freeaddrinfo(list);
    struct sockaddr_storage a;
    socklen_t len = sizeof(a);
    if (!saved && getsockname(fd, (struct sockaddr *)&a, &len)) {
        saved = errno;
    }
    if (saved) {
        if (fd >= 0) {
            close(fd);
        }
        if (saved == EADDRINUSE) {
            return error_set(err, STATUS_BUSY, "HTTP server: port %d of %s is in use: choose another or 0",
                             port, host);
        }
        return error_errno(err, saved, "HTTP server: listening on %s port %d", host, port);
    }
    *ret_fd = fd;
    *ret_port = ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                              : ((struct sockaddr_in *)&a)->sin_port);
    return STATUS_OK;
}

static void apply_defaults(struct http_server_config *c)
{
    c->host = mem_strdup(c->host ? c->host : "127.0.0.1");
    c->token = c->token ? mem_strdup(c->token) : NULL;
    c->max_body_bytes = c->max_body_bytes ? c->max_body_bytes : (size_t)16 << 20;
    c->max_connections = c->max_connections ? c->max_connections : 1024;
    c->request_timeout_ms = c->request_timeout_ms ? c->request_timeout_ms : 30000;
    c->idle_timeout_ms = c->idle_timeout_ms ? c->idle_timeout_ms : 75000;
    c->max_stream_bytes = c->max_stream_bytes ? c->max_stream_bytes : (size_t)1 << 20;
}

static enum status start_daemon(struct http_server *s, int fd, struct error *err)
{
    unsigned idle_s = (unsigned)((s->config.idle_timeout_ms + 999) / 1000);
    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_access, s,
        MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL, // first: it catches complaints about the others
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)s->config.max_connections,
        MHD_OPTION_CONNECTION_TIMEOUT, idle_s, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, s, MHD_OPTION_NOTIFY_COMPLETED, on_completed, s, MHD_OPTION_URI_LOG_CALLBACK, on_uri,
        s, MHD_OPTION_END);
    if (!s->daemon) {
        close(fd);
        return error_set(err, STATUS_IO, "HTTP server: libmicrohttpd did not start");
    }
    int epoll_fd = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    return loop_fd_open(s->loop, epoll_fd, LOOP_READ, daemon_ready, s, &s->watch, err);
}

enum status http_server_open(struct loop *l, const struct http_server_config *config,
                             struct http_server **ret_server, struct error *err)
{
    struct http_server *s = mem_must(1, sizeof(*s));
    s->config = *config;
    s->loop = l;
    s->conns.prev = s->conns.next = &s->conns;
    apply_defaults(&s->config);
    s->loopback = url_host_is_loopback(s->config.host);
    s->run_timer = loop_timer_open(l, daemon_timer, s);
    s->sweep_timer = loop_timer_open(l, sweep, s);
    int fd = -1;
    // two descriptors a connection: MHD's and the watch of a suspended one
    enum status st = loop_need_fds(2 * (size_t)s->config.max_connections, err);
    s->fds_reserved = st == STATUS_OK;
    if (st == STATUS_OK) {
        st = listen_on(s->config.host, s->config.port, &fd, &s->port, err);
    }
    if (st == STATUS_OK) {
        st = start_daemon(s, fd, err);
    }
    if (st != STATUS_OK) {
        http_server_close(s);
        return st;
    }
    int64_t tick = s->config.request_timeout_ms < s->config.idle_timeout_ms ? s->config.request_timeout_ms
                                                                            : s->config.idle_timeout_ms;
    tick = tick / 8 < 10 ? 10 : tick / 8 > 1000 ? 1000 : tick / 8;
    loop_timer_set(s->sweep_timer, tick, tick);
    *ret_server = s;
    return STATUS_OK;
}

int http_server_port(const struct http_server *s)
{
    return s->port;
}

bool http_server_loopback(const struct http_server *s)
{
    return s->loopback;
}

int http_server_connections(const struct http_server *s)
{
    return s->n_conns;
}

void http_server_close(struct http_server *s)
{
    if (!s) {
        return;
    }
    loop_fd_close(s->watch);
    for (struct http_conn *c = s->conns.next; c != &s->conns; c = c->next) {
        struct http_request *r = c->request;
        if (r && r->started && !r->ended) {
            http_request_lost(r); // MHD still has it, so it stays
        }
        if (r && r->suspended) {
            r->aborted = true;
            http_request_resume(r); // MHD aborts the process when stopped with suspended connections
        }
    }
    if (s->daemon) {
        MHD_stop_daemon(s->daemon); // closes the listening socket, calls on_completed for what is left
    }
    if (s->fds_reserved) {
        loop_release_fds(2 * (size_t)s->config.max_connections);
    }
    loop_timer_close(s->run_timer);
    loop_timer_close(s->sweep_timer);
    free((char *)(uintptr_t)s->config.host);
    free((char *)(uintptr_t)s->config.token);
    free(s);
}
