// The supervisor: see supervise.h. One thread, one event loop; talks to the orchestrator only by QUERY status, for progress.
#include "cli/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "ledger/reader.h"
#include "net/loop.h"

#define ARGS_MAX   (RUNCONFIG_ARGV + 12)
#define PAUSE_MIN  100
#define PAUSE_MAX  5000
#define STOP_GRACE 10000
#define LOG_TAIL   65536 // bytes looked at for the cause of an end

struct child {
    struct supervisor *s;
    char name[RUNCONFIG_NAME];
    char *argv[ARGS_MAX];
    int n_argv;
    bool is_orchestrator;
    struct loop_child *process;
    struct loop_timer *pause;
    int64_t pause_ms;
    int restarts;             // since the run's supervisor started
    int fruitless;            // of those, without a committed step in between
    int64_t steps_at_restart; // committed steps when it was last started
    char restarts_text[16];
    int64_t log_start; // bytes of its log that earlier incarnations wrote
    char log[RUNCONFIG_PATH + 128];
    char pid_file[RUNCONFIG_PATH + 128]; // of a task service, which says nothing of itself; else empty
};

struct supervisor {
    const char *run_dir;
    const struct run_config *config;
    struct loop *loop;
    struct child *children;
    int n_children;
    struct progress *progress;
    int lock_fd;
    int interrupts;
    bool ending; // children are being stopped
    bool done, stopped;
    enum status rc;     // why the run ended, when it failed
    struct error first; // cause of the first unasked end
    struct error err;
};

static enum status take_lock(struct supervisor *s, struct error *err)
{
    char path[RUNCONFIG_PATH + 32], pid[32];
    enum status rc = file_join(path, sizeof path, s->run_dir, "lock", err);
    if (rc)
        return rc;
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0)
        return error_errno(err, errno, "opening %s", path);
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return error_set(err, STATUS_BUSY,
                         "run %s is already being run by process %lld; `ooze status %s` shows it", s->run_dir,
                         (long long)run_owner(s->run_dir), s->run_dir);
    int n = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
    if (ftruncate(s->lock_fd, 0) < 0 || pwrite(s->lock_fd, pid, (size_t)n, 0) != n)
        return error_errno(err, errno, "writing %s", path);
    return STATUS_OK;
}

static int64_t committed_steps(struct supervisor *s)
{
    struct ledger *l;
    struct ledger_state state = {0};
    struct error none;
    if (ledger_open_readonly(s->run_dir, &l, &none))
        return 0; // not created yet
    if (ledger_state_read(l, &state, &none))
        state.committed_steps = 0;
    ledger_close(l);
    return state.committed_steps;
}

static void child_start(void *ctx);

static void stop_children(struct supervisor *s)
{
    s->ending = true;
    for (int i = 0; i < s->n_children; i++) {
        struct child *c = &s->children[i];
        loop_timer_stop(c->pause);
        if (c->process && loop_child_running(c->process))
            loop_child_kill(c->process, STOP_GRACE);
    }
}

static bool any_running(const struct supervisor *s)
{
    for (int i = 0; i < s->n_children; i++)
        if (s->children[i].process && loop_child_running(s->children[i].process))
            return true;
    return false;
}

static void end_if_empty(struct supervisor *s)
{
    if (s->ending && !any_running(s))
        loop_stop(s->loop);
}

// The cause of a log line: what stands behind cause=, unquoted; the whole line when it has none.
static void line_cause(const char *line, char *ret, size_t n)
{
    const char *from = strstr(line, " cause=\"");
    size_t len = 0;
    if (!from) {
        snprintf(ret, n, "%s", line);
        return;
    }
    for (from += strlen(" cause=\""); *from && *from != '"' && len + 1 < n; from++) {
        if (*from == '\\' && from[1])
            from++;
        ret[len++] = *from;
    }
    ret[len] = 0;
}

// What the child's last line of level=error gives as its cause; lines of earlier incarnations do not count.
static void last_error(const struct child *c, char *ret, size_t n)
{
    struct stat log;
    ret[0] = 0;
    int fd = open(c->log, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    char *text = mem_must(LOG_TAIL + 1, 1);
    int64_t size = fstat(fd, &log) == 0 ? (int64_t)log.st_size : 0;
    int64_t from = c->log_start <= size ? c->log_start : 0; // somebody has cut it
    ssize_t got = pread(fd, text, LOG_TAIL, size - from > LOG_TAIL ? size - LOG_TAIL : from);
    text[got > 0 ? got : 0] = 0;
    close(fd);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (strstr(line, "level=error") || strstr(line, "ERROR: AddressSanitizer") ||
            strstr(line, "runtime error"))
            line_cause(line, ret, n);
    free(text);
}

static void child_exited(void *ctx, int code, int sig)
{
    struct child *c = ctx;
    struct supervisor *s = c->s;
    char why[128], cause[600];
    loop_child_close(c->process);
    c->process = NULL;
    if (s->ending) {
        end_if_empty(s);
        return;
    }
    if (c->is_orchestrator && code == 0) {
        s->done = true;
        stop_children(s);
        end_if_empty(s);
        return;
    }
    if (sig)
        snprintf(why, sizeof why, "was ended by signal %d (%s)", sig, strsignal(sig));
    else
        snprintf(why, sizeof why, "ended with code %d", code);
    last_error(c, cause, sizeof cause);
    if (s->first.status == STATUS_OK)
        error_set(&s->first, STATUS_PEER, "%s %s%s%s (log: %s)", c->name, why, cause[0] ? ": " : "", cause,
                  c->log);
    // 2 of anyone and 1 of the orchestrator are final: it has said why, and would say it again. (1 also ends a run on a hash conflict.)
    bool final = code == 2 || (c->is_orchestrator && code == 1);
    int64_t steps = committed_steps(s);
    c->fruitless = steps > c->steps_at_restart ? 1 : c->fruitless + 1;
    c->restarts++;
    if (final || c->fruitless > s->config->orchestrator.max_restarts) {
        if (final)
            s->rc = error_set(&s->err, STATUS_PEER, "%s %s%s%s (log: %s)", c->name, why, cause[0] ? ": " : "",
                              cause, c->log);
        else
            s->rc =
                error_set(&s->err, STATUS_PEER,
                          "%s %s, restarted %d times without a committed step in between; first cause: %s",
                          c->name, why, c->fruitless - 1, s->first.text);
        stop_children(s);
        end_if_empty(s);
        return;
    }
    progress_note(s->progress, "%s %s; starting it again (restart %d)", c->name, why, c->restarts);
    c->pause_ms = c->fruitless <= 1 ? PAUSE_MIN : c->pause_ms * 2 > PAUSE_MAX ? PAUSE_MAX : c->pause_ms * 2;
    loop_timer_set(c->pause, c->pause_ms, 0);
}

// For `ooze status`: "PID RESTARTS".
static void note_pid(const struct child *c)
{
    char text[48];
    struct error err;
    int n = snprintf(text, sizeof text, "%lld %d\n", (long long)loop_child_pid(c->process), c->restarts);
    if (c->pid_file[0] && file_write_atomic(c->pid_file, text, (size_t)n, 0600, &err))
        progress_note(c->s->progress, "%s", err.text);
}

static void child_start(void *ctx)
{
    struct child *c = ctx;
    struct supervisor *s = c->s;
    struct error err;
    if (s->ending)
        return;
    snprintf(c->restarts_text, sizeof c->restarts_text, "%d", c->restarts);
    c->steps_at_restart = committed_steps(s);
    struct stat log;
    c->log_start = stat(c->log, &log) == 0 ? (int64_t)log.st_size : 0;
    const struct loop_child_spec spec = {
        .argv = (const char *const *)c->argv,
        .out_path = c->log,
        .on_exit = child_exited,
        .ctx = c,
    };
    if (loop_child_open(s->loop, &spec, &c->process, &err)) {
        s->rc = error_set(&s->err, err.status, "starting %s: %s", c->name, err.text);
        stop_children(s);
        loop_stop(s->loop);
        return;
    }
    note_pid(c);
}

static struct child *add_child(struct supervisor *s, const char *name)
{
    struct child *c = &s->children[s->n_children++];
    c->s = s;
    c->pause_ms = PAUSE_MIN;
    c->pause = loop_timer_open(s->loop, child_start, c);
    snprintf(c->name, sizeof c->name, "%s", name);
    snprintf(c->log, sizeof c->log, "%s/logs/%s.log", s->run_dir, name);
    return c;
}

static enum status add_program(struct supervisor *s, const char *name, const char *program, bool named,
                               struct error *err)
{
    char path[RUNCONFIG_PATH];
    struct child *c = add_child(s, name);
    enum status rc = program_path(program, path, sizeof path, err);
    if (rc)
        return rc;
    const char *const args[] = {
        path, "--run", s->run_dir, "--restarts", c->restarts_text, named ? "--name" : NULL, name};
    for (size_t i = 0; i < sizeof args / sizeof args[0] && args[i]; i++)
        c->argv[c->n_argv++] = args[i] == c->restarts_text ? c->restarts_text : mem_strdup(args[i]);
    c->is_orchestrator = !strcmp(name, "orchestrator");
    return STATUS_OK;
}

static void add_task(struct supervisor *s, const struct run_task *t)
{
    char file[RUNCONFIG_PATH + 128], name[RUNCONFIG_NAME + 8];
    snprintf(name, sizeof name, "task-%.50s", t->name);
    struct child *c = add_child(s, name);
    // A plain name is one of our own programs if there is one of that name, else searched in PATH.
    struct error none;
    bool ours = !strchr(t->command[0], '/') && !program_path(t->command[0], file, sizeof file, &none);
    for (int64_t i = 0; i < t->n_command; i++)
        c->argv[c->n_argv++] = mem_strdup(i == 0 && ours ? file : t->command[i]);
    snprintf(file, sizeof file, "%s/tasks/%s.port", s->run_dir, t->name);
    const char *const args[] = {"--port", "0", "--port-file", file};
    for (size_t i = 0; i < sizeof args / sizeof args[0]; i++)
        c->argv[c->n_argv++] = mem_strdup(args[i]);
    unlink(file); // of an earlier process: whoever reads it now waits for the new one
    snprintf(c->pid_file, sizeof c->pid_file, "%s/tasks/%s.pid", s->run_dir, t->name);
}

static enum status add_children(struct supervisor *s, struct error *err)
{
    enum status rc;
    const struct run_config *c = s->config;
    s->children = mem_must((size_t)(2 + c->rollout.engines + c->n_tasks), sizeof *s->children);
    for (int64_t i = 0; i < c->n_tasks; i++)
        if (c->tasks[i].n_command)
            add_task(s, &c->tasks[i]);
    if ((rc = add_program(s, "orchestrator", "ooze-orchestrator", false, err)) ||
        (rc = add_program(s, "trainer", "ooze-trainer", false, err)))
        return rc;
    for (int64_t i = 0; i < c->rollout.engines; i++) {
        char name[32];
        snprintf(name, sizeof name, "engine-%d", (int)i);
        if ((rc = add_program(s, name, "ooze-rollout", true, err)))
            return rc;
    }
    return STATUS_OK;
}

static void on_interrupt(void *ctx, int signum)
{
    struct supervisor *s = ctx;
    (void)signum;
    if (s->ending)
        return;
    s->interrupts++;
    for (int i = 0; i < s->n_children; i++) {
        struct child *c = &s->children[i];
        if (c->is_orchestrator && c->process && loop_child_running(c->process)) {
            progress_note(
                s->progress,
                s->interrupts == 1
                    ? "draining: running work finishes and a checkpoint is written; Ctrl-C again stops now"
                    : "stopping now; `ooze resume` goes on from the last durable state");
            kill(loop_child_pid(c->process), SIGTERM);
            if (s->interrupts == 1)
                return;
        }
    }
    // Second time, or no orchestrator to drain.
    s->rc = error_set(&s->err, STATUS_CANCELED, "stopped; `ooze resume %s` goes on", s->run_dir);
    stop_children(s);
    end_if_empty(s);
}

static bool state_is_stopped(struct supervisor *s)
{
    struct ledger *l;
    struct error none;
    char *state = NULL;
    if (ledger_open_readonly(s->run_dir, &l, &none))
        return false;
    bool stopped = !ledger_meta_get(l, "state", &state, &none) && !strcmp(state, "stopped");
    free(state);
    ledger_close(l);
    return stopped;
}

static void close_all(struct supervisor *s)
{
    for (int i = 0; i < s->n_children; i++) {
        struct child *c = &s->children[i];
        loop_child_close(c->process);
        loop_timer_close(c->pause);
        for (int j = 0; j < c->n_argv; j++)
            if (c->argv[j] != c->restarts_text)
                free(c->argv[j]);
    }
    free(s->children);
    if (s->lock_fd >= 0)
        close(s->lock_fd);
}

enum status supervise_run(const char *run_dir, const struct run_config *config, bool quiet, bool *ret_stopped,
                          struct error *err)
{
    struct supervisor s = {.run_dir = run_dir, .config = config, .lock_fd = -1};
    struct loop_signal *interrupt = NULL, *terminate = NULL;
    enum status rc = take_lock(&s, err);
    if (rc)
        goto out;
    if ((rc = loop_open(&s.loop, err)) || (rc = progress_open(s.loop, run_dir, quiet, &s.progress, err)) ||
        (rc = loop_signal_open(s.loop, SIGINT, on_interrupt, &s, &interrupt, err)) ||
        (rc = loop_signal_open(s.loop, SIGTERM, on_interrupt, &s, &terminate, err)) ||
        (rc = add_children(&s, err)))
        goto out;
    for (int i = 0; i < s.n_children; i++)
        loop_timer_set(s.children[i].pause, 0, 0);
    loop_run(s.loop);
    rc = s.rc;
    if (rc && err)
        *err = s.err;
    *ret_stopped = !rc && s.done && state_is_stopped(&s);
out:
    progress_close(s.progress);
    loop_signal_close(interrupt);
    loop_signal_close(terminate);
    close_all(&s);
    loop_close(s.loop);
    return rc;
}
