// Children of a loop (net/loop.h): output, exit codes, killing, death with the parent.
#include <errno.h>
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

#include "base/buf.h"
#include "base/file.h"
#include "net/loop.h"

struct watch {
    struct loop *loop;
    struct loop_child *child;
    struct buf out;
    int exits, code, signal;
    bool close_on_output, close_on_exit;
};

static void on_output(void *ctx, const char *data, size_t n)
{
    struct watch *w = ctx;
    assert_int_equal(w->exits, 0);
    buf_append(&w->out, data, n);
    if (w->close_on_output) {
        loop_child_close(w->child);
        w->child = NULL;
        loop_stop(w->loop);
    }
}

static void on_exit_code(void *ctx, int code, int term_signal)
{
    struct watch *w = ctx;
    w->exits++;
    w->code = code;
    w->signal = term_signal;
    if (w->close_on_exit) {
        loop_child_close(w->child);
    }
    loop_stop(w->loop);
}

static void start_sh(struct watch *w, const char *script)
{
    const char *const argv[] = {"sh", "-c", script, NULL};
    const char *const env[] = {"OOZE_TEST_A=42", "HOME=/nowhere", NULL};
    struct loop_child_spec spec = {
        .argv = argv, .env = env, .cwd = "/", .on_output = on_output, .on_exit = on_exit_code, .ctx = w};
    struct error err;
    if (!w->loop) {
        assert_int_equal(loop_open(&w->loop, &err), STATUS_OK);
    }
    assert_int_equal(loop_child_open(w->loop, &spec, &w->child, &err), STATUS_OK);
}

static void finish(struct watch *w)
{
    loop_child_close(w->child);
    loop_close(w->loop);
    buf_done(&w->out);
}

static void test_output_and_exit(void **state)
{
    (void)state;
    struct watch w = {0};
    start_sh(&w, "echo $OOZE_TEST_A $HOME $PWD; echo err >&2; cat; ls /proc/self/fd | wc -l; exit 7");
    assert_true(loop_child_running(w.child));
    assert_true(loop_run_for(w.loop, 10000));
    assert_int_equal(w.exits, 1);
    assert_int_equal(w.code, 7);
    assert_int_equal(w.signal, 0);
    assert_false(loop_child_running(w.child));
    assert_string_equal(w.out.data, "42 /nowhere /\nerr\n4\n"); // 0 1 2 and the folder ls reads
    loop_child_kill(w.child, 100);                              // of an ended child: nothing happens
    finish(&w);
}

// A descriptor of ours as its stdin; what it says on stderr does not come with its output.
static void test_input(void **state)
{
    (void)state;
    struct watch w = {0};
    struct error err;
    int fds[2];
    const char *const argv[] = {"sh", "-c", "read a; echo got $a; echo err >/dev/stderr; cat", NULL};
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(loop_open(&w.loop, &err), STATUS_OK);
    const struct loop_child_spec spec = {.argv = argv,
                                         .on_output = on_output,
                                         .out_only = true,
                                         .in_fd = fds[0],
                                         .on_exit = on_exit_code,
                                         .ctx = &w};
    assert_int_equal(loop_child_open(w.loop, &spec, &w.child, &err), STATUS_OK);
    close(fds[0]);
    assert_int_equal(write(fds[1], "one\ntwo\n", 8), 8);
    close(fds[1]);
    assert_true(loop_run_for(w.loop, 10000));
    assert_int_equal(w.code, 0);
    assert_string_equal(w.out.data, "got one\ntwo\n");
    finish(&w);
}

static void test_large_output(void **state)
{
    (void)state;
    struct watch w = {0};
    start_sh(&w, "head -c 3000000 /dev/zero");
    assert_true(loop_run_for(w.loop, 20000));
    assert_int_equal(w.code, 0);
    assert_int_equal(w.out.len, 3000000);
    w.close_on_exit = true;
    finish(&w);
}

static void test_output_file(void **state)
{
    (void)state;
    char dir[] = "/tmp/ooze-child-XXXXXX", path[64], *data;
    size_t n;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/log", dir);
    struct watch w = {.close_on_exit = true};
    struct error err;
    assert_int_equal(loop_open(&w.loop, &err), STATUS_OK);
    for (int i = 0; i < 2; i++) {
        const char *const argv[] = {"/bin/sh", "-c", "echo line; echo more >&2", NULL};
        struct loop_child_spec spec = {.argv = argv, .out_path = path, .on_exit = on_exit_code, .ctx = &w};
        assert_int_equal(loop_child_open(w.loop, &spec, &w.child, &err), STATUS_OK);
        assert_true(loop_run_for(w.loop, 10000));
    }
    assert_int_equal(file_read(path, 1000, &data, &n, &err), STATUS_OK);
    assert_string_equal(data, "line\nmore\nline\nmore\n");
    free(data);
    assert_int_equal(file_remove_tree(dir, &err), STATUS_OK);
    loop_close(w.loop);
}

static void test_cannot_start(void **state)
{
    (void)state;
    struct watch w = {0};
    struct error err;
    assert_int_equal(loop_open(&w.loop, &err), STATUS_OK);
    const char *const argv[] = {"ooze-no-such-program", NULL};
    struct loop_child_spec spec = {.argv = argv, .on_exit = on_exit_code, .ctx = &w};
    assert_int_equal(loop_child_open(w.loop, &spec, &w.child, &err), STATUS_NOTFOUND);
    assert_non_null(strstr(err.text, "ooze-no-such-program"));
    const char *const sh[] = {"sh", "-c", "true", NULL};
    spec = (struct loop_child_spec){.argv = sh, .cwd = "/no/such/folder", .ctx = &w};
    assert_int_equal(loop_child_open(w.loop, &spec, &w.child, &err), STATUS_NOTFOUND);
    spec = (struct loop_child_spec){.argv = sh, .out_path = "/no/such/folder/log", .ctx = &w};
    assert_int_equal(loop_child_open(w.loop, &spec, &w.child, &err), STATUS_NOTFOUND);
    assert_false(loop_run_for(w.loop, 30));
    assert_int_equal(w.exits, 0);
    loop_close(w.loop);
}

static void test_kill(void **state)
{
    (void)state;
    struct watch w = {0};
    start_sh(&w, "sleep 1000");
    loop_child_kill(w.child, 60000);
    assert_true(loop_run_for(w.loop, 10000));
    assert_int_equal(w.code, -1);
    assert_int_equal(w.signal, SIGTERM);
    assert_int_equal(w.exits, 1);
    loop_child_close(w.child);
    w.exits = 0;
    start_sh(&w, "trap '' TERM; echo ready; while :; do sleep 0.01; done");
    assert_false(loop_run_for(w.loop, 200));
    assert_string_equal(w.out.data, "ready\n");
    loop_child_kill(w.child, 100);
    assert_true(loop_run_for(w.loop, 10000));
    assert_int_equal(w.signal, SIGKILL);
    assert_int_equal(w.exits, 1);
    finish(&w);
}

static bool gone_soon(pid_t pid)
{
    for (int i = 0; i < 500; i++) {
        char path[64], state = 'X';
        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        FILE *f = fopen(path, "r");
        if (f) {
            if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1) {
                state = 'X';
            }
            fclose(f);
        }
        if (state == 'X' || state == 'Z') { // reaping is init's business
            return true;
        }
        usleep(10000);
    }
    return false;
}

static void test_group_dies(void **state)
{
    (void)state;
    struct watch w = {0};
    start_sh(&w, "sleep 1000 & echo $!"); // the sleep keeps the pipe open
    assert_true(loop_run_for(w.loop, 10000));
    assert_int_equal(w.code, 0);
    pid_t left = (pid_t)atoi(w.out.data);
    assert_true(left > 1);
    assert_true(gone_soon(left));
    finish(&w);
}

static void test_close_running(void **state)
{
    (void)state;
    struct watch w = {0};
    start_sh(&w, "echo $$; exec sleep 1000");
    w.close_on_output = true;
    assert_true(loop_run_for(w.loop, 10000));
    assert_int_equal(kill((pid_t)atoi(w.out.data), 0), -1); // killed and reaped inside close
    assert_int_equal(errno, ESRCH);
    assert_false(loop_run_for(w.loop, 30));
    assert_int_equal(w.exits, 0);
    w.close_on_output = false;
    start_sh(&w, "exec sleep 1000");
    pid_t pid = loop_child_pid(w.child);
    loop_close(w.loop); // takes the child along
    assert_int_equal(kill(pid, 0), -1);
    buf_done(&w.out);
}

static void test_dies_with_parent(void **state)
{
    (void)state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    pid_t parent = fork();
    if (parent == 0) { // a process of its own that is killed without a chance to clean up
        struct watch w = {0};
        start_sh(&w, "exec sleep 1000");
        pid_t pid = loop_child_pid(w.child);
        if (write(fds[1], &pid, sizeof(pid)) != sizeof(pid)) {
            _exit(1);
        }
        pause();
        _exit(0);
    }
    pid_t pid = 0;
    assert_int_equal(read(fds[0], &pid, sizeof(pid)), sizeof(pid));
    assert_int_equal(kill(pid, 0), 0);
    kill(parent, SIGKILL);
    waitpid(parent, NULL, 0);
    assert_true(gone_soon(pid));
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_output_and_exit),  cmocka_unit_test(test_input),
        cmocka_unit_test(test_large_output),     cmocka_unit_test(test_output_file),
        cmocka_unit_test(test_cannot_start),     cmocka_unit_test(test_kill),
        cmocka_unit_test(test_group_dies),       cmocka_unit_test(test_close_running),
        cmocka_unit_test(test_dies_with_parent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
