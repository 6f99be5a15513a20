// The HTTP client: curl_multi, whose sockets and time-out sit in our loop. Runs on the loop's thread.
//
//   http_call_start ─► queued ──(slot free)──► in flight ──► done: on_done, handle back to the pool
//                        └─ QUEUE_TIMEOUT          └─ cancel: no callback
//
//  1. A call is in exactly one list: queued or flying; n_queued and n_flying count them.
//  2. libcurl is never entered from inside its own callbacks: a cancel inside on_data only marks the call,
//  which then
//     ends itself by a short write.
//  3. Finished transfers are collected (CURLMSG_DONE) in one place, collect(), after every entry into
//  libcurl.
#include "net/http_client.h"

#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "net/url.h"

#define SPARE_HANDLES  64  // easy handles kept for reuse
#define EXPIRE_TICK_MS 100 // how often a full client looks for calls that waited too long

struct http_call {
    struct http_call *prev, *next;
    struct http_client *client;
    CURL *easy; // NULL while queued
    struct curl_slist *headers;
    char *method, *url, *body;
    size_t body_len, max_reply_bytes;
    int64_t connect_timeout_ms, timeout_ms, queue_deadline_ms, started_ms;
    void (*on_done)(void *ctx, const struct http_result *result);
    void (*on_data)(void *ctx, const char *data, size_t n);
    void *ctx;
    struct buf reply;
    size_t received;
    bool too_large, forbidden, canceled, done;
    int open_errno; // why no socket could be had
    char message[CURL_ERROR_SIZE];
};

struct http_client {
    struct loop *loop;
    CURLM *multi;
    struct loop_timer *curl_timer;   // when libcurl wants to be called
    struct loop_timer *start_timer;  // "see to the queue on the next turn"
    struct http_call queued, flying; // heads of rings
    int n_queued, n_flying, max_in_flight, max_queued;
    char *ca_file;
    CURL *spare[SPARE_HANDLES];
    int n_spare;
    int n_canceled; // flying calls whose canceling waits for libcurl to return
    bool in_curl, collecting;
};

// A socket of libcurl's in our loop.
struct watch {
    struct http_client *client;
    struct loop_fd *fd_watch;
    curl_socket_t fd;
};

static const char *const outcome_names[] = {
#define X(name, text) #name,
    HTTP_OUTCOME_TABLE(X)
#undef X
};
static const char *const outcome_texts[] = {
#define X(name, text) text,
    HTTP_OUTCOME_TABLE(X)
#undef X
};

const char *http_outcome_name(enum http_outcome o)
{
    return outcome_names[o];
}

const char *http_outcome_text(enum http_outcome o)
{
    return outcome_texts[o];
}

// ---- lists ----

static void list_append(struct http_call *head, struct http_call *c)
{
    c->prev = head->prev;
    c->next = head;
    c->prev->next = head->prev = c;
}

static void list_remove(struct http_call *c)
{
    c->prev->next = c->next;
    c->next->prev = c->prev;
}

static void call_free(struct http_call *c)
{
    curl_slist_free_all(c->headers);
    free(c->method);
    free(c->url);
    free(c->body);
    buf_done(&c->reply);
    free(c);
}

// Takes a flying call off the wire and out of its list.
static void land(struct http_call *c)
{
    struct http_client *h = c->client;
    list_remove(c);
    h->n_flying--;
    curl_multi_remove_handle(h->multi, c->easy);
    if (h->n_spare < SPARE_HANDLES) {
        curl_easy_reset(c->easy);
        h->spare[h->n_spare++] = c->easy;
    } else {
        curl_easy_cleanup(c->easy);
    }
    c->easy = NULL;
}

// ---- libcurl's callbacks ----

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
    struct http_call *c = ctx;
    n *= size;
    if (c->canceled) {
        return 0;
    }
    c->received += n;
    if (c->received > c->max_reply_bytes) {
        c->too_large = true;
        return 0;
    }
    long status = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    if (c->on_data && status < 400) {
        c->client->in_curl = true;
        c->on_data(c->ctx, data, n);
        c->client->in_curl = false;
        return c->canceled ? 0 : n;
    }
    buf_append(&c->reply, data, n);
    return n;
}

// The one place where the address is known before anything is sent to it.
static curl_socket_t on_open_socket(void *ctx, curlsocktype purpose, struct curl_sockaddr *a)
{
    (void)purpose;
    struct http_call *c = ctx;
    if (url_address_forbidden(&a->addr)) {
        c->forbidden = true;
        return CURL_SOCKET_BAD;
    }
    int fd = socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
    c->open_errno = fd < 0 ? errno : 0;
    return fd < 0 ? CURL_SOCKET_BAD : fd;
}

static void collect(struct http_client *h);

static void socket_ready(void *ctx, int events)
{
    struct watch *w = ctx;
    struct http_client *h = w->client;
    int running,
        flags = (events & LOOP_READ ? CURL_CSELECT_IN : 0) | (events & LOOP_WRITE ? CURL_CSELECT_OUT : 0);
    curl_multi_socket_action(h->multi, w->fd, flags, &running); // may free w
    collect(h);
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *ctx, void *socket_ctx)
{
    (void)easy;
    struct http_client *h = ctx;
    struct watch *w = socket_ctx;
    if (what == CURL_POLL_REMOVE) {
        if (w) {
            loop_fd_close(w->fd_watch);
            free(w);
            curl_multi_assign(h->multi, fd, NULL);
        }
        return 0;
    }
    int events = (what & CURL_POLL_IN ? LOOP_READ : 0) | (what & CURL_POLL_OUT ? LOOP_WRITE : 0);
    if (w) {
        loop_fd_set(w->fd_watch, events);
        return 0;
    }
    w = mem_must(1, sizeof(*w));
    w->client = h;
    w->fd = fd;
    if (loop_fd_open(h->loop, fd, events, socket_ready, w, &w->fd_watch, NULL) != STATUS_OK) {
        free(w);
        return -1;
    }
    curl_multi_assign(h->multi, fd, w);
    return 0;
}

static int on_timeout(CURLM *multi, long timeout_ms, void *ctx)
{
    (void)multi;
    struct http_client *h = ctx;
    if (timeout_ms < 0) {
        loop_timer_stop(h->curl_timer);
    } else {
        loop_timer_set(h->curl_timer, timeout_ms, 0);
    }
    return 0;
}

static void curl_time(void *ctx)
{
    struct http_client *h = ctx;
    int running;
    curl_multi_socket_action(h->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    collect(h);
}

// ---- results ----

static enum http_outcome outcome_of(const struct http_call *c, CURLcode code)
{
    if (c->too_large) {
        return HTTP_OUTCOME_TOO_LARGE;
    }
    if (c->forbidden) {
        return HTTP_OUTCOME_FORBIDDEN;
    }
    long os_errno = 0;
    switch (code) {
    case CURLE_OK:
        return HTTP_OUTCOME_OK;
    case CURLE_COULDNT_CONNECT:
        curl_easy_getinfo(c->easy, CURLINFO_OS_ERRNO, &os_errno);
        return c->open_errno           ? HTTP_OUTCOME_OTHER // our fault: out of descriptors
               : os_errno == ETIMEDOUT ? HTTP_OUTCOME_TIMEOUT
                                       : HTTP_OUTCOME_REFUSED;
    case CURLE_COULDNT_RESOLVE_HOST:
        return HTTP_OUTCOME_RESOLVE;
    case CURLE_FILESIZE_EXCEEDED:
        return HTTP_OUTCOME_TOO_LARGE;
    case CURLE_OPERATION_TIMEDOUT:
        return HTTP_OUTCOME_TIMEOUT;
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_PARTIAL_FILE:
        return HTTP_OUTCOME_CLOSED;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
        return HTTP_OUTCOME_TLS;
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_BAD_CONTENT_ENCODING:
    case CURLE_HTTP2:
        return HTTP_OUTCOME_PROTOCOL;
    default:
        return HTTP_OUTCOME_OTHER;
    }
}

// Tells the owner and forgets the call, which is in no list any more.
static void call_done(struct http_call *c, const struct http_result *res)
{
    c->done = true;
    if (!c->canceled) {
        c->on_done(c->ctx, res);
    }
    call_free(c);
}

static void finish(struct http_call *c, CURLcode code)
{
    struct http_client *h = c->client;
    struct http_result res = {.outcome = outcome_of(c, code), .content_type = "", .body = ""};
    char content_type[256] = "";
    char *type = NULL;
    long status = 0;
    res.elapsed_ms = loop_now_ms(h->loop) - c->started_ms;
    if (res.outcome == HTTP_OUTCOME_OK) {
        curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
        curl_easy_getinfo(c->easy, CURLINFO_CONTENT_TYPE, &type);
        strncpy(content_type, type ? type : "", sizeof(content_type) - 1);
        res.status = (int)status;
        res.content_type = content_type;
        res.body = c->reply.data ? c->reply.data : "";
        res.body_len = c->reply.len;
    } else {
        bool ours = c->too_large || c->forbidden || !c->message[0];
        res.message = ours ? http_outcome_text(res.outcome) : c->message;
    }
    h->n_canceled -= c->canceled;
    land(c);
    call_done(c, &res);
}

static void see_to_queue(struct http_client *h)
{
    if (h->n_canceled || (h->n_queued && h->n_flying < h->max_in_flight)) {
        loop_timer_set(h->start_timer, 0, 0);
    } else if (h->n_queued) {
        loop_timer_set(h->start_timer, EXPIRE_TICK_MS, 0);
    }
}

static void collect(struct http_client *h)
{
    if (h->collecting) {
        return; // the outer one goes on
    }
    h->collecting = true;
    CURLMsg *m;
    int left;
    while ((m = curl_multi_info_read(h->multi, &left))) {
        if (m->msg == CURLMSG_DONE) {
            struct http_call *c;
            CURLcode code = m->data.result;
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&c);
            finish(c, code);
        }
    }
    h->collecting = false;
    see_to_queue(h);
}

// ---- starting ----

static void set_up(struct http_call *c)
{
    CURL *e = c->easy;
    curl_easy_setopt(e, CURLOPT_PRIVATE, c);
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, c->message);
    curl_easy_setopt(e, CURLOPT_URL, c->url);
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_HTTP09_ALLOWED, 0L);
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(e, CURLOPT_PROXY, "");
    curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)c->connect_timeout_ms);
    curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)c->timeout_ms);
    curl_easy_setopt(e, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, c);
    curl_easy_setopt(e, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
    curl_easy_setopt(e, CURLOPT_OPENSOCKETDATA, c);
    curl_easy_setopt(e, CURLOPT_MAXFILESIZE_LARGE,
                     (curl_off_t)c->max_reply_bytes); // refused at its Content-Length
    if (c->client->ca_file) {
        curl_easy_setopt(e, CURLOPT_CAINFO, c->client->ca_file);
    }
    if (strcmp(c->method, "HEAD") == 0) {
        curl_easy_setopt(e, CURLOPT_NOBODY, 1L);
    } else if (c->body || strcmp(c->method, "POST") == 0) {
        curl_easy_setopt(e, CURLOPT_POST, 1L);
        curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)c->body_len);
        curl_easy_setopt(e, CURLOPT_POSTFIELDS, c->body ? c->body : "");
        curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, c->method);
    } else {
        curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, c->method);
    }
}

static void call_failed(struct http_call *c, enum http_outcome outcome)
{
    struct http_result res = {
        .outcome = outcome, .body = "", .content_type = "", .message = http_outcome_text(outcome)};
    call_done(c, &res);
}

static void expire_queued(struct http_client *h)
{
    int64_t now = loop_now_ms(h->loop);
    for (struct http_call *c = h->queued.next; c != &h->queued;) {
        if (now < c->queue_deadline_ms) {
            c = c->next;
            continue;
        }
        list_remove(c);
        h->n_queued--;
        call_failed(c, HTTP_OUTCOME_QUEUE_TIMEOUT);
        c = h->queued.next; // on_done may have started and canceled others
    }
}

// Cancels that came while libcurl was at work.
static void drop_canceled(struct http_client *h)
{
    for (struct http_call *c = h->flying.next, *next; h->n_canceled && c != &h->flying; c = next) {
        next = c->next;
        if (c->canceled) {
            h->n_canceled--;
            land(c);
            call_free(c);
        }
    }
}

static void take_off(struct http_client *h, struct http_call *c)
{
    list_remove(c);
    h->n_queued--;
    c->easy = h->n_spare ? h->spare[--h->n_spare] : curl_easy_init();
    if (!c->easy) {
        call_failed(c, HTTP_OUTCOME_OTHER);
        return;
    }
    set_up(c);
    c->started_ms = loop_now_ms(h->loop);
    list_append(&h->flying, c);
    h->n_flying++;
    if (curl_multi_add_handle(h->multi, c->easy) != CURLM_OK) {
        land(c);
        call_failed(c, HTTP_OUTCOME_OTHER);
    }
}

static void dispatch(void *ctx)
{
    struct http_client *h = ctx;
    drop_canceled(h);
    expire_queued(h);
    while (h->n_queued && h->n_flying < h->max_in_flight) {
        take_off(h, h->queued.next);
    }
    see_to_queue(h);
}

static bool has_line_break(const char *s)
{
    return s && strpbrk(s, "\r\n");
}

static enum status check_spec(const struct http_call_spec *spec, struct error *err)
{
    enum status s = url_check(spec->url, err);
    if (s != STATUS_OK) {
        return s;
    }
    size_t n = strlen(spec->method);
    if (n == 0 || strspn(spec->method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != n) {
        return error_set(err, STATUS_INVALID, "HTTP method \"%s\": expected capital letters", spec->method);
    }
    bool broken = has_line_break(spec->bearer) || has_line_break(spec->idempotency_key) ||
                  has_line_break(spec->content_type);
    for (size_t i = 0; spec->headers && spec->headers[i]; i++) {
        broken = broken || has_line_break(spec->headers[i]);
    }
    if (broken) {
        return error_set(err, STATUS_INVALID, "HTTP call to %s: a header value holds a line break",
                         spec->url);
    }
    return STATUS_OK;
}

static struct curl_slist *add_header(struct curl_slist *list, const char *start, const char *value)
{
    char *line = mem_printf("%s %s", start, value);
    list = curl_slist_append(list, line);
    free(line);
    return list;
}

static struct curl_slist *make_headers(const struct http_call_spec *spec)
{
    struct curl_slist *list = curl_slist_append(NULL, "Expect:"); // no round trip before bodies
    if (spec->body) {
        list =
            add_header(list, "Content-Type:", spec->content_type ? spec->content_type : "application/json");
    } else if (strcmp(spec->method, "POST") == 0) {
        list = curl_slist_append(list, "Content-Type:");
    }
    if (spec->bearer) {
        list = add_header(list, "Authorization: Bearer", spec->bearer);
    }
    if (spec->idempotency_key) {
        list = add_header(list, "Idempotency-Key:", spec->idempotency_key);
    }
    for (size_t i = 0; spec->headers && spec->headers[i]; i++) {
        list = curl_slist_append(list, spec->headers[i]);
    }
    return list;
}

enum status http_call_start(struct http_client *h, const struct http_call_spec *spec,
                            struct http_call **ret_call, struct error *err)
{
    enum status s = check_spec(spec, err);
    if (s != STATUS_OK) {
        return s;
    }
    if (h->n_queued >= h->max_queued) {
        return error_set(err, STATUS_AGAIN, "HTTP call to %s: %d calls wait already", spec->url, h->n_queued);
    }
    struct http_call *c = mem_must(1, sizeof(*c));
    c->client = h;
    c->method = mem_strdup(spec->method);
    c->url = mem_strdup(spec->url);
    if (spec->body) {
        c->body = mem_must(spec->body_len + 1, 1);
        memcpy(c->body, spec->body, spec->body_len);
        c->body_len = spec->body_len;
    }
    c->headers = make_headers(spec);
    c->connect_timeout_ms = spec->connect_timeout_ms ? spec->connect_timeout_ms : 5000;
    c->timeout_ms = spec->timeout_ms ? spec->timeout_ms : 60000;
    c->max_reply_bytes = spec->max_reply_bytes ? spec->max_reply_bytes : (size_t)16 << 20;
    c->queue_deadline_ms = loop_now_ms(h->loop) + c->timeout_ms;
    c->on_done = spec->on_done;
    c->on_data = spec->on_data;
    c->ctx = spec->ctx;
    list_append(&h->queued, c);
    h->n_queued++;
    see_to_queue(h);
    if (ret_call) {
        *ret_call = c;
    }
    return STATUS_OK;
}

void http_call_cancel(struct http_call *c)
{
    if (!c || c->done || c->canceled) {
        return;
    }
    struct http_client *h = c->client;
    if (!c->easy) {
        list_remove(c);
        h->n_queued--;
        call_free(c);
    } else if (h->in_curl) {
        c->canceled = true;
        h->n_canceled++;
        see_to_queue(h);
    } else {
        land(c);
        call_free(c);
        see_to_queue(h);
    }
}

int http_client_in_flight(const struct http_client *h)
{
    return h->n_flying;
}

int http_client_queued(const struct http_client *h)
{
    return h->n_queued;
}

// ---- opening and closing ----

static void init_curl(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

enum status http_client_open(struct loop *l, const struct http_client_config *config,
                             struct http_client **ret_client, struct error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static const struct http_client_config none;
    config = config ? config : &none;
    pthread_once(&once, init_curl);
    int max_in_flight = config->max_in_flight ? config->max_in_flight : 1024;
    enum status s = loop_need_fds((size_t)max_in_flight, err);
    if (s != STATUS_OK) {
        return s;
    }
    CURLM *multi = curl_multi_init();
    if (!multi) {
        loop_release_fds((size_t)max_in_flight);
        return error_set(err, STATUS_NOMEM, "HTTP client: libcurl did not start");
    }
    struct http_client *h = mem_must(1, sizeof(*h));
    h->loop = l;
    h->multi = multi;
    h->max_in_flight = max_in_flight;
    h->max_queued = config->max_queued ? config->max_queued : 65536;
    h->ca_file = config->ca_file ? mem_strdup(config->ca_file) : NULL;
    h->queued.prev = h->queued.next = &h->queued;
    h->flying.prev = h->flying.next = &h->flying;
    h->curl_timer = loop_timer_open(l, curl_time, h);
    h->start_timer = loop_timer_open(l, dispatch, h);
    curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, h);
    curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timeout);
    curl_multi_setopt(multi, CURLMOPT_TIMERDATA, h);
    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long)max_in_flight);
    curl_multi_setopt(multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
    *ret_client = h;
    return STATUS_OK;
}

void http_client_close(struct http_client *h)
{
    if (!h) {
        return;
    }
    while (h->queued.next != &h->queued) {
        struct http_call *c = h->queued.next;
        list_remove(c);
        call_free(c);
    }
    while (h->flying.next != &h->flying) {
        struct http_call *c = h->flying.next;
        land(c);
        call_free(c);
    }
    for (int i = 0; i < h->n_spare; i++) {
        curl_easy_cleanup(h->spare[i]);
    }
    curl_multi_cleanup(h->multi); // may still call on_socket
    loop_timer_close(h->curl_timer);
    loop_timer_close(h->start_timer);
    loop_release_fds((size_t)h->max_in_flight);
    free(h->ca_file);
    free(h);
}
