// net/http_client.h against our own server in the same loop, and against raw sockets that misbehave.
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
// cmocka wants its four first
#include <cmocka.h>

#include "base/buf.h"
#include "base/mem.h"
#include "net/http_client.h"
#include "net/http_server.h"

struct world {
    struct loop *loop;
    struct http_server *server;
    struct http_client *client;
    int n_done, stop_at, n_handled, max_waiting, n_waiting, n_lost;
    struct http_request *waiting[4096];
};

static void on_echo(void *ctx, struct http_request *r)
{
    struct world *w = ctx;
    w->n_handled++;
    const char *key = http_request_header(r, "Idempotency-Key"), *auth = http_request_bearer(r),
               *type = http_request_header(r, "Content-Type"), *extra = http_request_header(r, "X-Extra");
    size_t n;
    const char *body = http_request_body(r, &n);
    char *text =
        mem_printf("%s key=%s auth=%s type=%s extra=%s body=%.*s", http_request_method(r), key ? key : "-",
                   auth ? auth : "-", type ? type : "-", extra ? extra : "-", (int)n, body);
    http_reply(r, 200, "text/plain", text, strlen(text));
    free(text);
}

static void request_lost(void *ctx, struct http_request *r)
{
    struct world *w = ctx;
    w->n_lost++;
    for (int i = 0; i < w->n_waiting; i++) {
        if (w->waiting[i] == r) {
            w->waiting[i] = w->waiting[--w->n_waiting];
        }
    }
    http_reply(r, 500, NULL, NULL, 0);
}

static void on_wait(void *ctx, struct http_request *r) // answered when as many as max_waiting are here
{
    struct world *w = ctx;
    http_request_on_disconnect(r, request_lost, w);
    w->waiting[w->n_waiting++] = r;
    if (w->n_waiting == w->max_waiting) {
        for (int i = 0; i < w->n_waiting; i++) {
            size_t n;
            const char *body = http_request_body(w->waiting[i], &n);
            http_reply(w->waiting[i], 200, "text/plain", body, n);
        }
        w->n_waiting = 0;
    }
}

static void on_big(void *ctx, struct http_request *r)
{
    (void)ctx;
    static char block[100000];
    memset(block, 'b', sizeof(block));
    if (http_request_query(r, "chunked")) {
        http_stream_begin(r, 200, "text/plain");
        assert_int_equal(http_stream_write(r, block, sizeof(block)), STATUS_OK);
        http_stream_end(r);
    } else {
        http_reply(r, 200, "text/plain", block, sizeof(block));
    }
}

static void next_event(void *ctx)
{
    struct http_request *r = ctx;
    int64_t i = (int64_t)(intptr_t)http_request_data(r);
    char text[32];
    int n = snprintf(text, sizeof(text), "%d", (int)i);
    assert_int_equal(http_stream_event(r, text, (size_t)n), STATUS_OK);
    http_request_set_data(r, (void *)(intptr_t)(i + 1));
    if (i == 4) {
        http_stream_end(r);
    } else {
        loop_after(http_request_loop(r), 10, next_event, r);
    }
}

static void on_events(void *ctx, struct http_request *r)
{
    (void)ctx;
    http_stream_begin(r, 200, "text/event-stream");
    next_event(r);
}

static void on_error(void *ctx, struct http_request *r)
{
    (void)ctx;
    http_reply_error(r, 503, NULL, "no \"room\"");
}

static void on_redirect(void *ctx, struct http_request *r)
{
    (void)ctx;
    http_reply_header(r, "Location", "/echo");
    http_reply(r, 302, NULL, NULL, 0);
}

static const struct http_route routes[] = {
    {"GET", "/echo", on_echo},     {"POST", "/echo", on_echo},  {"DELETE", "/echo", on_echo},
    {"PUT", "/echo", on_echo},     {"POST", "/wait", on_wait},  {"GET", "/big", on_big},
    {"GET", "/events", on_events}, {"GET", "/error", on_error}, {"GET", "/redirect", on_redirect},
};

static void on_request(void *ctx, struct http_request *r)
{
    http_route_dispatch(routes, sizeof(routes) / sizeof(routes[0]), ctx, r);
}

static void world_open(struct world *w, int max_in_flight, int max_queued)
{
    struct error err;
    struct http_server_config config = {.handler = on_request, .ctx = w, .max_connections = 4000};
    struct http_client_config client = {.max_in_flight = max_in_flight, .max_queued = max_queued};
    assert_int_equal(loop_open(&w->loop, &err), STATUS_OK);
    assert_int_equal(http_server_open(w->loop, &config, &w->server, &err), STATUS_OK);
    assert_int_equal(http_client_open(w->loop, &client, &w->client, &err), STATUS_OK);
}

static void world_close(struct world *w)
{
    http_client_close(w->client);
    http_server_close(w->server);
    loop_close(w->loop);
}

struct got {
    struct world *world;
    int n;
    enum http_outcome outcome;
    int status, want_index;
    struct buf body, pieces;
    int n_pieces;
    char type[64], message[256];
    struct http_call *call, *cancel_other;
    bool cancel_in_data;
};

static void got_done(void *ctx, const struct http_result *res)
{
    struct got *g = ctx;
    g->n++;
    g->outcome = res->outcome;
    g->status = res->status;
    buf_clear(&g->body);
    buf_append(&g->body, res->body, res->body_len);
    snprintf(g->type, sizeof(g->type), "%s", res->content_type);
    snprintf(g->message, sizeof(g->message), "%s", res->message ? res->message : "");
    http_call_cancel(g->call); // of a call that is done: nothing happens
    if (++g->world->n_done == g->world->stop_at) {
        loop_stop(g->world->loop);
    }
}

static void got_data(void *ctx, const char *data, size_t n)
{
    struct got *g = ctx;
    buf_append(&g->pieces, data, n);
    g->n_pieces++;
    if (g->cancel_in_data) {
        http_call_cancel(g->cancel_other);
        http_call_cancel(g->call);
        loop_stop(g->world->loop);
    }
}

static struct http_call *start(struct world *w, struct http_call_spec spec, const char *path, struct got *g)
{
    char *url = mem_printf("http://127.0.0.1:%d%s", http_server_port(w->server), path);
    struct error err;
    spec.method = spec.method ? spec.method : "GET";
    spec.url = spec.url ? spec.url : url;
    spec.on_done = got_done;
    spec.ctx = g;
    g->world = w;
    struct http_call *call;
    enum status s = http_call_start(w->client, &spec, &call, &err);
    if (s != STATUS_OK) {
        fail_msg("%s", err.text);
    }
    free(url);
    return g->call = call;
}

static void run_one(struct world *w, struct http_call_spec spec, const char *path, struct got *g)
{
    w->n_done = 0;
    w->stop_at = 1;
    start(w, spec, path, g);
    assert_int_equal(w->n_done, 0); // never from inside the start
    assert_true(loop_run_for(w->loop, 15000));
}

static void got_free(struct got *g)
{
    buf_done(&g->body);
    buf_done(&g->pieces);
}

static void test_methods_and_headers(void **state)
{
    (void)state;
    struct world w = {0};
    struct got g = {0};
    world_open(&w, 0, 0);
    run_one(&w, (struct http_call_spec){0}, "/echo", &g);
    assert_string_equal(g.body.data, "GET key=- auth=- type=- extra=- body=");
    assert_string_equal(g.type, "text/plain");
    const char *const extra[] = {"X-Extra: e", NULL};
    run_one(&w,
            (struct http_call_spec){.method = "POST",
                                    .body = "{}",
                                    .body_len = 2,
                                    .bearer = "tok",
                                    .idempotency_key = "t-1-2",
                                    .headers = extra},
            "/echo", &g);
    assert_string_equal(g.body.data, "POST key=t-1-2 auth=tok type=application/json extra=e body={}");
    run_one(&w,
            (struct http_call_spec){.method = "PUT", .body = "x", .body_len = 1, .content_type = "text/x"},
            "/echo", &g);
    assert_string_equal(g.body.data, "PUT key=- auth=- type=text/x extra=- body=x");
    run_one(&w, (struct http_call_spec){.method = "DELETE"}, "/echo", &g);
    assert_string_equal(g.body.data, "DELETE key=- auth=- type=- extra=- body=");
    run_one(&w, (struct http_call_spec){.method = "POST"}, "/echo", &g);
    assert_string_equal(g.body.data, "POST key=- auth=- type=- extra=- body=");
    run_one(&w, (struct http_call_spec){0}, "/error", &g);
    assert_int_equal(g.outcome, HTTP_OUTCOME_OK);
    assert_int_equal(g.status, 503);
    assert_string_equal(g.body.data,
                        "{\"error\":{\"message\":\"no "
                        "\\\"room\\\"\",\"type\":\"server_error\",\"param\":null,\"code\":null}}");
    run_one(&w, (struct http_call_spec){0}, "/redirect", &g);
    assert_int_equal(g.status, 302); // not followed
    got_free(&g);
    world_close(&w);
}

static void test_two_thousand_at_once(void **state)
{
    (void)state;
    enum { N = 2000 };
    struct world w = {.max_waiting = N, .stop_at = N};
    world_open(&w, N, 0);
    struct got *g = calloc(N, sizeof(*g));
    for (int round = 0; round < 2; round++) { // fresh connections, then kept-alive ones
        w.n_done = 0;
        for (int i = 0; i < N; i++) {
            char body[32];
            int n = snprintf(body, sizeof(body), "call %d of %d", i, round);
            start(&w,
                  (struct http_call_spec){
                      .method = "POST", .body = body, .body_len = (size_t)n, .timeout_ms = 60000},
                  "/wait", &g[i]);
        }
        assert_true(loop_run_for(w.loop, 60000));
        for (int i = 0; i < N; i++) {
            char body[32];
            snprintf(body, sizeof(body), "call %d of %d", i, round);
            assert_int_equal(g[i].n, round + 1);
            assert_int_equal(g[i].outcome, HTTP_OUTCOME_OK);
            assert_string_equal(g[i].body.data, body);
        }
    }
    assert_int_equal(http_server_connections(w.server), N); // the second round opened none
    for (int i = 0; i < N; i++) {
        got_free(&g[i]);
    }
    free(g);
    world_close(&w);
}

static void test_bounds_and_order(void **state)
{
    (void)state;
    struct world w = {.max_waiting = 2, .stop_at = 6};
    world_open(&w, 2, 4);
    struct got g[7] = {0};
    // nothing leaves before the loop runs, so the queue holds four; the fifth is refused
    for (int i = 0; i < 4; i++) {
        start(&w, (struct http_call_spec){.method = "POST"}, "/wait", &g[i]);
    }
    struct error err;
    struct http_call_spec spec = {
        .method = "GET", .url = "http://127.0.0.1:1/", .on_done = got_done, .ctx = &g[6]};
    assert_int_equal(http_call_start(w.client, &spec, NULL, &err), STATUS_AGAIN);
    assert_int_equal(http_client_queued(w.client), 4);
    w.max_waiting = 100; // hold them
    assert_false(loop_run_for(w.loop, 200));
    assert_int_equal(http_client_in_flight(w.client), 2);
    assert_int_equal(http_client_queued(w.client), 2);
    assert_int_equal(w.n_waiting, 2);
    for (int i = 4; i < 6; i++) {
        start(&w, (struct http_call_spec){.method = "POST"}, "/wait", &g[i]);
    }
    http_call_cancel(g[2].call); // out of the queue
    http_call_cancel(g[0].call); // off the wire: its place goes to the next
    assert_false(loop_run_for(w.loop, 300));
    assert_int_equal(w.n_lost, 1); // the server saw it go
    assert_int_equal(http_client_in_flight(w.client), 2);
    w.max_waiting = 2;
    w.stop_at = 4;
    for (int i = 0; i < 2; i++) { // answer what waits; the rest answers itself in pairs
        http_reply(w.waiting[i], 200, NULL, NULL, 0);
    }
    w.n_waiting = 0;
    assert_true(loop_run_for(w.loop, 15000));
    static const int want[] = {0, 1, 0, 1, 1, 1, 0};
    for (int i = 0; i < 7; i++) {
        assert_int_equal(g[i].n, want[i]);
        got_free(&g[i]);
    }
    world_close(&w);
}

static void test_deadlines(void **state)
{
    (void)state;
    struct world w = {.max_waiting = 100, .stop_at = 2};
    world_open(&w, 1, 0);
    struct got slow = {0}, queued = {0};
    start(&w, (struct http_call_spec){.method = "POST", .timeout_ms = 600}, "/wait", &slow);
    start(&w, (struct http_call_spec){.method = "POST", .timeout_ms = 200}, "/wait", &queued);
    assert_true(loop_run_for(w.loop, 15000));
    assert_int_equal(slow.outcome, HTTP_OUTCOME_TIMEOUT);
    assert_int_equal(slow.status, 0);
    assert_int_equal(queued.outcome, HTTP_OUTCOME_QUEUE_TIMEOUT);
    assert_false(loop_run_for(w.loop, 300));
    assert_int_equal(w.n_lost, 1);
    got_free(&slow);
    got_free(&queued);
    world_close(&w);
}

static void test_size_limit(void **state)
{
    (void)state;
    struct world w = {0};
    struct got g = {0};
    world_open(&w, 0, 0);
    run_one(&w, (struct http_call_spec){.max_reply_bytes = 100000}, "/big", &g);
    assert_int_equal(g.outcome, HTTP_OUTCOME_OK);
    assert_int_equal(g.body.len, 100000);
    run_one(&w, (struct http_call_spec){.max_reply_bytes = 99999}, "/big", &g);
    assert_int_equal(g.outcome, HTTP_OUTCOME_TOO_LARGE);
    assert_int_equal(g.body.len, 0);
    run_one(&w, (struct http_call_spec){.max_reply_bytes = 99999}, "/big?chunked=1", &g);
    assert_int_equal(g.outcome, HTTP_OUTCOME_TOO_LARGE);
    run_one(&w, (struct http_call_spec){0}, "/big?chunked=1", &g);
    assert_int_equal(g.body.len, 100000);
    got_free(&g);
    world_close(&w);
}

static void test_streams(void **state)
{
    (void)state;
    struct world w = {0};
    struct got g = {0}, other = {0};
    world_open(&w, 0, 0);
    run_one(&w, (struct http_call_spec){.on_data = got_data}, "/events", &g);
    assert_string_equal(g.pieces.data, "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n");
    assert_true(g.n_pieces >= 3);
    assert_int_equal(g.body.len, 0);
    buf_clear(&g.pieces);
    run_one(&w, (struct http_call_spec){.on_data = got_data}, "/error", &g); // errors come whole
    assert_int_equal(g.pieces.len, 0);
    assert_true(g.body.len > 0);
    // canceling oneself and another inside on_data
    w.max_waiting = 100;
    w.n_done = 0;
    int before = g.n;
    g.cancel_other = start(&w, (struct http_call_spec){.method = "POST"}, "/wait", &other);
    assert_false(loop_run_for(w.loop, 100));
    g.cancel_in_data = true;
    start(&w, (struct http_call_spec){.on_data = got_data}, "/big?chunked=1", &g);
    assert_true(loop_run_for(w.loop, 15000));
    assert_false(loop_run_for(w.loop, 200));
    assert_int_equal(w.n_done, 0);
    assert_int_equal(g.n, before);
    assert_int_equal(other.n, 0);
    assert_int_equal(w.n_lost, 1);
    assert_int_equal(http_client_in_flight(w.client), 0);
    got_free(&g);
    got_free(&other);
    world_close(&w);
}

static int listen_any(int *ret_port)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t n = sizeof(a);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(fd, 8), 0);
    getsockname(fd, (struct sockaddr *)&a, &n);
    *ret_port = ntohs(a.sin_port);
    return fd;
}

struct liar { // answers each connection with fixed bytes once it has been asked something
    struct loop *loop;
    int fd, peer;
    struct loop_fd *peer_watch;
    const char *reply;
};

static void liar_asked(void *ctx, int events)
{
    (void)events;
    struct liar *l = ctx;
    char data[4096];
    assert_true(recv(l->peer, data, sizeof(data), 0) >= 0);
    assert_int_equal(send(l->peer, l->reply, strlen(l->reply), MSG_NOSIGNAL), (ssize_t)strlen(l->reply));
    loop_fd_close(l->peer_watch);
    close(l->peer);
}

static void liar_ready(void *ctx, int events)
{
    (void)events;
    struct liar *l = ctx;
    struct error err;
    l->peer = accept(l->fd, NULL, NULL);
    assert_true(l->peer >= 0);
    assert_int_equal(loop_fd_open(l->loop, l->peer, LOOP_READ, liar_asked, l, &l->peer_watch, &err),
                     STATUS_OK);
}

static void test_bad_peers(void **state)
{
    (void)state;
    static const struct {
        const char *reply;
        enum http_outcome outcome;
    } cases[] = {
        {"", HTTP_OUTCOME_CLOSED},
        {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", HTTP_OUTCOME_CLOSED},
        {"SSH-2.0-whatever\r\n", HTTP_OUTCOME_PROTOCOL},
        {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", HTTP_OUTCOME_OK},
    };
    struct world w = {0};
    struct got g = {0};
    struct error err;
    char url[64];
    world_open(&w, 0, 0);
    struct liar liar = {.loop = w.loop};
    int port;
    liar.fd = listen_any(&port);
    struct loop_fd *watch;
    assert_int_equal(loop_fd_open(w.loop, liar.fd, LOOP_READ, liar_ready, &liar, &watch, &err), STATUS_OK);
    snprintf(url, sizeof(url), "http://127.0.0.1:%d/", port);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        liar.reply = cases[i].reply;
        run_one(&w, (struct http_call_spec){.url = url}, "", &g);
        if (g.outcome != cases[i].outcome) {
            fail_msg("case %zu: %s (%s)", i, http_outcome_name(g.outcome), g.message);
        }
        assert_true(g.outcome == HTTP_OUTCOME_OK || g.message[0]);
    }
    liar.reply = "not TLS at all\r\n\r\n";
    snprintf(url, sizeof(url), "https://127.0.0.1:%d/", port);
    run_one(&w, (struct http_call_spec){.url = url}, "", &g);
    assert_int_equal(g.outcome, HTTP_OUTCOME_TLS);
    loop_fd_close(watch);
    close(liar.fd);
    snprintf(url, sizeof(url), "http://127.0.0.1:%d/", port); // nobody listens any more
    run_one(&w, (struct http_call_spec){.url = url}, "", &g);
    assert_int_equal(g.outcome, HTTP_OUTCOME_REFUSED);
    run_one(&w, (struct http_call_spec){.url = "http://no-such-host.invalid/", .connect_timeout_ms = 3000},
            "", &g);
    assert_true(g.outcome == HTTP_OUTCOME_RESOLVE || g.outcome == HTTP_OUTCOME_TIMEOUT);
    got_free(&g);
    world_close(&w);
}

static void test_refused_specs(void **state)
{
    (void)state;
    struct world w = {0};
    struct error err;
    world_open(&w, 0, 0);
    struct http_call_spec ok = {.method = "GET", .url = "http://127.0.0.1:1/", .on_done = got_done}, s;
    static const char *const split[] = {"X: y\r\nZ: w", NULL};
    s = ok, s.url = "ftp://h/";
    assert_int_equal(http_call_start(w.client, &s, NULL, &err), STATUS_UNSUPPORTED);
    s = ok, s.url = "http://169.254.169.254/";
    assert_int_equal(http_call_start(w.client, &s, NULL, &err), STATUS_REFUSED);
    s = ok, s.method = "GET /x HTTP/1.1\r\n";
    assert_int_equal(http_call_start(w.client, &s, NULL, &err), STATUS_INVALID);
    s = ok, s.bearer = "a\r\nX: y";
    assert_int_equal(http_call_start(w.client, &s, NULL, &err), STATUS_INVALID);
    s = ok, s.headers = split;
    assert_int_equal(http_call_start(w.client, &s, NULL, &err), STATUS_INVALID);
    assert_int_equal(http_client_queued(w.client), 0);
    world_close(&w);
}

static void test_close_with_calls_under_way(void **state)
{
    (void)state;
    struct world w = {.max_waiting = 100};
    struct got g[6] = {0};
    world_open(&w, 3, 0);
    for (int i = 0; i < 6; i++) {
        start(&w, (struct http_call_spec){.method = "POST"}, "/wait", &g[i]);
    }
    assert_false(loop_run_for(w.loop, 100));
    assert_int_equal(w.n_waiting, 3);
    world_close(&w);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(g[i].n, 0);
        got_free(&g[i]);
    }
    assert_int_equal(w.n_lost, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_methods_and_headers),
        cmocka_unit_test(test_two_thousand_at_once),
        cmocka_unit_test(test_bounds_and_order),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_size_limit),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_bad_peers),
        cmocka_unit_test(test_refused_specs),
        cmocka_unit_test(test_close_with_calls_under_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
