// Fuzzes what HTTP peers send: the input goes as raw bytes into a running server (all checks, routes, JSON bodies), and
// as text through the URL parser, whose laws are asserted.
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "net/http_server.h"
#include "net/url.h"
#include "tests/fuzz/fuzz.h"

#define INPUT_MAX 65536

static void on_json(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *j;
    if (http_request_json(r, &j)) {
        http_reply_json(r, 200, j);
        json_decref(j);
    }
}

static void on_episode(void *ctx, struct http_request *r)
{
    (void)ctx;
    const char *id = http_request_capture(r, "id"), *q = http_request_query(r, "q");
    if (!id) {
        abort();
    }
    http_stream_begin(r, 200, "text/event-stream");
    if (http_stream_event(r, id, strlen(id)) != STATUS_OK ||
        (q && http_stream_event(r, q, strlen(q)) != STATUS_OK)) {
        abort(); // the queue is empty and the client there
    }
    http_stream_end(r);
}

static const struct http_route routes[] = {{"POST", "/json", on_json}, {"GET", "/episodes/{id}", on_episode}};

static void on_request(void *ctx, struct http_request *r)
{
    http_route_dispatch(routes, 2, ctx, r);
}

static void fuzz_server(const uint8_t *data, size_t n)
{
    static struct loop *loop;
    static struct http_server *server;
    struct error err;
    if (!server) {
        struct http_server_config config = {.handler = on_request, .max_body_bytes = 4096};
        if (loop_open(&loop, &err) != STATUS_OK ||
            http_server_open(loop, &config, &server, &err) != STATUS_OK) {
            abort();
        }
    }
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)http_server_port(server))};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct linger reset = {.l_onoff = 1}; // no TIME_WAIT: there are many inputs
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a))) {
        abort();
    }
    (void)!send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(fd, SHUT_WR);
    for (int i = 0; i < 10 && (i < 3 || http_server_connections(server)); i++) {
        loop_run_for(loop, 0); // loopback: what was sent is there already
    }
    close(fd);
    for (int i = 0; i < 2000 && http_server_connections(server); i++) {
        loop_run_for(loop, 1);
    }
    if (http_server_connections(server)) {
        abort(); // a client that is gone must not keep a connection
    }
}

static void fuzz_url(const uint8_t *data, size_t n)
{
    struct url u;
    char *text = mem_strndup((const char *)data, n), *back;
    if (url_parse(text, &u, NULL) == STATUS_OK) {
        if (!u.host[0] || u.path[0] != '/' || u.port < 1 || u.port > 65535 || strpbrk(u.path, " \r\n#")) {
            abort();
        }
    }
    (void)!url_check(text, NULL);
    struct buf b = {0};
    url_put_segment(&b, text, strlen(text));
    if (text[0]) { // what is encoded comes back
        if (url_decode(b.data, b.len, false, &back, NULL) != STATUS_OK || strcmp(back, text) != 0) {
            abort();
        }
        free(back);
    }
    if (url_decode(text, strlen(text), true, &back, NULL) == STATUS_OK) {
        free(back);
    }
    buf_done(&b);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n <= INPUT_MAX) {
        fuzz_url(data, n);
        fuzz_server(data, n);
    }
    return 0;
}
