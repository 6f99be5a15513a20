// net/service.h: a real service process: port file, routes, token, SIGTERM, wrong usage.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
// cmocka wants its four first
#include <cmocka.h>

#include "base/file.h"
#include "net/http_client.h"
#include "net/service.h"

static void on_health(void *ctx, struct http_request *r)
{
    json_t *j = json_pack("{s:s, s:s}", "status", "healthy", "note", (const char *)ctx);
    http_reply_json(r, 200, j);
    json_decref(j);
}

static const struct http_route routes[] = {{"GET", "/health", on_health}, {"POST", "/health", on_health}};

static pid_t start(char **argv)
{
    int argc = 0;
    while (argv[argc]) {
        argc++;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr)) {
            _exit(99);
        }
        _exit(service_main(argc, argv, "test", routes, 2, "note"));
    }
    return pid;
}

static int code_of(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct reply {
    struct loop *loop;
    int status;
    char body[256];
};

static void on_done(void *ctx, const struct http_result *res)
{
    struct reply *r = ctx;
    r->status = res->status;
    snprintf(r->body, sizeof(r->body), "%s", res->body);
    loop_stop(r->loop);
}

static void ask(int port, const char *method, const char *bearer, struct reply *r)
{
    struct error err;
    struct http_client *c;
    char url[64];
    snprintf(url, sizeof(url), "http://localhost:%d/health", port);
    struct http_call_spec spec = {
        .method = method, .url = url, .bearer = bearer, .on_done = on_done, .ctx = r};
    assert_int_equal(loop_open(&r->loop, &err), STATUS_OK);
    assert_int_equal(http_client_open(r->loop, NULL, &c, &err), STATUS_OK);
    assert_int_equal(http_call_start(c, &spec, NULL, &err), STATUS_OK);
    assert_true(loop_run_for(r->loop, 10000));
    http_client_close(c);
    loop_close(r->loop);
}

static void test_service(void **state)
{
    (void)state;
    char dir[] = "/tmp/ooze-service-XXXXXX", port_file[64], token_file[64], *data;
    size_t n;
    struct error err;
    assert_non_null(mkdtemp(dir));
    snprintf(port_file, sizeof(port_file), "%s/port", dir);
    snprintf(token_file, sizeof(token_file), "%s/token", dir);
    assert_int_equal(file_write_atomic(token_file, "secret\n", 7, 0600, &err), STATUS_OK);
    char *argv[] = {"service", "--port-file", port_file, "--token-file", token_file, NULL};
    pid_t pid = start(argv);
    for (int i = 0; i < 1000 && !file_exists(port_file); i++) {
        usleep(10000);
    }
    assert_int_equal(file_read(port_file, 16, &data, &n, &err), STATUS_OK);
    int port = atoi(data);
    assert_true(port > 0 && data[n - 1] == '\n');
    free(data);
    struct reply r = {0};
    ask(port, "GET", NULL, &r);
    assert_int_equal(r.status, 200);
    assert_string_equal(r.body, "{\"status\":\"healthy\",\"note\":\"note\"}");
    ask(port, "POST", NULL, &r);
    assert_int_equal(r.status, 401);
    ask(port, "POST", "secret", &r);
    assert_int_equal(r.status, 200);
    char port_text[16];
    snprintf(port_text, sizeof(port_text), "%d", port);
    char *same_port[] = {"service", "--port", port_text, NULL};
    assert_int_equal(code_of(start(same_port)), 1);
    kill(pid, SIGTERM);
    assert_int_equal(code_of(pid), 0);
    assert_int_equal(file_remove_tree(dir, &err), STATUS_OK);
}

static void test_usage(void **state)
{
    (void)state;
    char *bad[][4] = {{"s", "--port", "65536", NULL},
                      {"s", "--port", "x", NULL},
                      {"s", "--nonsense", NULL},
                      {"s", "stray", NULL},
                      {"s", "--port", NULL}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(code_of(start(bad[i])), 2);
    }
    char *help[] = {"s", "--help", NULL}, *no_token[] = {"s", "--token-file", "/no/such/file", NULL};
    assert_int_equal(code_of(start(help)), 0);
    assert_int_equal(code_of(start(no_token)), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_service), cmocka_unit_test(test_usage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
