// Benchmark programs as children: see bench_child.h. One thread; each wait is a turn of the loop with a deadline.
//
// Invariants
//   1. At most one complete line waits in `lines`: a child speaks only when asked, and a second line is read as the next answer.
//   2. After the child has ended its last lines are still answered; then STATUS_PEER.
//   3. `owes` from the start, and from "run", to the answer: only a child that owes nothing reads its stdin, so only that is asked to quit.
#include "cli/bench_child.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

#define LINE_MAX_BYTES (1 << 20)
#define QUIT_MS        5000

struct bench_child {
    struct loop *loop;
    char name[64];
    struct loop_child *process;
    int in; // write end of its stdin
    struct buf lines;
    const bool *stop;
    bool ended, flooded, owes;
    int code, sig;
};

static void on_output(void *ctx, const char *data, size_t n)
{
    struct bench_child *c = ctx;
    if (c->lines.len + n > LINE_MAX_BYTES)
        c->flooded = true;
    else
        buf_append(&c->lines, data, n);
    loop_stop(c->loop);
}

static void on_exit_of_child(void *ctx, int code, int sig)
{
    struct bench_child *c = ctx;
    c->ended = true;
    c->code = code;
    c->sig = sig;
    loop_stop(c->loop);
}

enum status bench_child_open(struct loop *l, const char *name, const char *const *argv, const bool *stop,
                             struct bench_child **ret, struct error *err)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC))
        return error_errno(err, errno, "pipe to %s", name);
    struct bench_child *c = mem_must(1, sizeof *c);
    c->loop = l;
    c->stop = stop;
    c->owes = true;
    c->in = fds[1];
    snprintf(c->name, sizeof c->name, "%s", name);
    const struct loop_child_spec spec = {.argv = argv,
                                         .on_output = on_output,
                                         .out_only = true,
                                         .in_fd = fds[0],
                                         .on_exit = on_exit_of_child,
                                         .ctx = c};
    enum status rc = loop_child_open(l, &spec, &c->process, err);
    close(fds[0]);
    if (rc) {
        close(c->in);
        free(c);
        return rc;
    }
    *ret = c;
    return STATUS_OK;
}

static bool say(struct bench_child *c, const char *line)
{
    size_t n = strlen(line);
    return write(c->in, line, n) == (ssize_t)n; // a few bytes: whole or not at all
}

// Takes the first line that is JSON out of `lines`; false: there is none yet.
static bool take_line(struct bench_child *c, char **ret)
{
    for (;;) {
        char *end = c->lines.len ? memchr(c->lines.data, '\n', c->lines.len) : NULL;
        if (!end)
            return false;
        size_t n = (size_t)(end - c->lines.data);
        char *line = mem_must(n + 1, 1);
        memcpy(line, c->lines.data, n);
        buf_consume(&c->lines, n + 1);
        if (line[0] == '{') {
            *ret = line;
            return true;
        }
        fprintf(stderr, "%s: %s\n", c->name, line);
        free(line);
    }
}

static enum status ended(const struct bench_child *c, struct error *err)
{
    if (c->sig)
        return error_set(err, STATUS_PEER, "%s was ended by signal %d (%s)", c->name, c->sig,
                         strsignal(c->sig));
    return error_set(err, STATUS_PEER, "%s ended with code %d without an answer", c->name, c->code);
}

enum status bench_child_answer(struct bench_child *c, int64_t timeout_ms, json_t **ret, struct error *err)
{
    char *line;
    const char *why;
    json_t *j;
    int64_t deadline = clock_mono_ms(clock_system()) + timeout_ms;
    while (!take_line(c, &line)) {
        if (c->flooded)
            return error_set(err, STATUS_PEER, "%s wrote over %d bytes without an answer", c->name,
                             LINE_MAX_BYTES);
        if (c->ended)
            return ended(c, err);
        if (*c->stop)
            return error_set(err, STATUS_CANCELED, "interrupted");
        int64_t left = deadline - clock_mono_ms(clock_system());
        if (left <= 0)
            return error_set(err, STATUS_TIMEOUT, "%s did not answer within %lld s", c->name,
                             (long long)(timeout_ms / 1000));
        loop_run_for(c->loop, left);
    }
    c->owes = false;
    enum status rc = json_parse(line, strlen(line), c->name, &j, err);
    free(line);
    if (rc)
        return rc;
    rc = json_get_string(j, "error", false, NULL, c->name, &why, err);
    if (!rc && why)
        rc = error_set(err, STATUS_PEER, "%s: %s", c->name, why);
    if (rc)
        json_decref(j);
    else
        *ret = j;
    return rc;
}

enum status bench_child_run(struct bench_child *c, int64_t timeout_ms, json_t **ret, struct error *err)
{
    json_t *j;
    double value;
    if (!c->ended && !say(c, "run\n") && errno != EPIPE)
        return error_errno(err, errno, "asking %s for a run", c->name);
    c->owes = true;
    enum status rc = bench_child_answer(c, timeout_ms, &j, err);
    if (rc)
        return rc;
    rc = json_get_real(j, "value", true, 0, 0, HUGE_VAL, c->name, &value, err);
    if (!rc && value <= 0)
        rc = error_set(err, STATUS_PEER, "%s answered with the value 0", c->name);
    if (rc)
        json_decref(j);
    else
        *ret = j;
    return rc;
}

double bench_child_cpu(const struct bench_child *c)
{
    clockid_t clock;
    struct timespec t;
    if (c->ended || clock_getcpuclockid(loop_child_pid(c->process), &clock) || clock_gettime(clock, &t))
        return 0;
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void bench_child_close(struct bench_child *c)
{
    if (!c)
        return;
    if (!c->ended && !c->owes && say(c, "quit\n")) {
        close(c->in);
        c->in = -1;
        int64_t deadline = clock_mono_ms(clock_system()) + QUIT_MS;
        for (int64_t left; !c->ended && (left = deadline - clock_mono_ms(clock_system())) > 0;)
            loop_run_for(c->loop, left);
    }
    loop_child_close(c->process);
    if (c->in >= 0)
        close(c->in);
    buf_done(&c->lines);
    free(c);
}
