// A small HTTP service as one call: see net/service.h. The main thread runs the loop.
#include "net/service.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

struct service {
    struct loop *loop;
    const struct http_route *routes;
    size_t n_routes;
    void *ctx;
};

struct service_options {
    const char *host, *port_file, *token_file;
    int port;
};

static void on_request(void *ctx, struct http_request *r)
{
    struct service *s = ctx;
    http_route_dispatch(s->routes, s->n_routes, s->ctx, r);
}

static void on_signal(void *ctx, int signum)
{
    (void)signum;
    loop_stop(ctx);
}

// 0 = go on, else the exit code plus one.
static int parse_options(int argc, char **argv, const char *name, struct service_options *o)
{
    static const struct option longs[] = {{"host", required_argument, NULL, 'h'},
                                          {"port", required_argument, NULL, 'p'},
                                          {"port-file", required_argument, NULL, 'f'},
                                          {"token-file", required_argument, NULL, 't'},
                                          {"help", no_argument, NULL, '?'},
                                          {0}};
    int c;
    char *end;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'h':
            o->host = optarg;
            break;
        case 'f':
            o->port_file = optarg;
            break;
        case 't':
            o->token_file = optarg;
            break;
        case 'p': {
            long port = strtol(optarg, &end, 10);
            if (*end || end == optarg || port < 0 || port > 65535) {
                fprintf(stderr, "%s: --port %s: expected 0 to 65535\n", name, optarg);
                return 3;
            }
            o->port = (int)port;
            break;
        }
        default: {
            bool asked = optopt == 0 && optind > 1 && strcmp(argv[optind - 1], "--help") == 0;
            fprintf(asked ? stdout : stderr,
                    "usage: %s [--host ADDRESS] [--port N] [--port-file PATH] [--token-file PATH]\n",
                    argv[0]);
            return asked ? 1 : 3;
        }
        }
    }
    if (optind < argc) {
        fprintf(stderr, "%s: unexpected argument %s\n", name, argv[optind]);
        return 3;
    }
    return 0;
}

static enum status serve(struct service *s, const char *name, const struct service_options *o,
                         struct error *err)
{
    struct http_server *server = NULL;
    struct loop_signal *term, *intr;
    char *token = NULL, port_text[16];
    size_t token_len;
    enum status st = STATUS_OK;
    if (o->token_file) {
        st = file_read(o->token_file, 4096, &token, &token_len, err);
    }
    if (st == STATUS_OK) {
        if (token) {
            token[strcspn(token, "\r\n")] = 0;
        }
        struct http_server_config config = {
            .host = o->host, .port = o->port, .handler = on_request, .ctx = s, .token = token};
        st = http_server_open(s->loop, &config, &server, err);
    }
    free(token);
    if (st == STATUS_OK) {
        st = loop_signal_open(s->loop, SIGTERM, on_signal, s->loop, &term, err);
    }
    if (st == STATUS_OK) {
        st = loop_signal_open(s->loop, SIGINT, on_signal, s->loop, &intr, err);
    }
    if (st == STATUS_OK && o->port_file) {
        int n = snprintf(port_text, sizeof(port_text), "%d\n", http_server_port(server));
        st = file_write_atomic(o->port_file, port_text, (size_t)n, 0644, err);
    }
    if (st == STATUS_OK) {
        printf("%s listening on http://%s:%d\n", name, o->host, http_server_port(server));
        fflush(stdout);
        loop_run(s->loop);
    }
    http_server_close(server);
    return st;
}

int service_main(int argc, char **argv, const char *name, const struct http_route *routes, size_t n_routes,
                 void *ctx)
{
    struct service_options o = {.host = "127.0.0.1"};
    int code = parse_options(argc, argv, name, &o);
    if (code) {
        return code - 1;
    }
    struct service s = {.routes = routes, .n_routes = n_routes, .ctx = ctx};
    struct error err;
    signal(SIGPIPE, SIG_IGN);
    enum status st = loop_open(&s.loop, &err);
    if (st == STATUS_OK) {
        st = serve(&s, name, &o, &err);
        loop_close(s.loop);
    }
    if (st != STATUS_OK) {
        fprintf(stderr, "%s: %s\n", name, err.text);
        return 1;
    }
    return 0;
}
