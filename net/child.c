// Child processes of a loop (declared in net/loop.h). fork and exec by hand, because libuv's spawn has no
// place for PR_SET_PDEATHSIG, and children must not outlive a killed parent. Runs on the loop's thread.
//
//   open → running ──(SIGCHLD, waitid)──► ended: group killed, output drained, reaped, on_exit
//             └─ kill: SIGTERM, timer → SIGKILL
//
//  1. A child is reaped only here, by its pid, so its pid and group id are ours until pid is set to 0.
//  2. Between fork and exec the child calls async-signal-safe functions only.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "net/loop_owned.h"

#define CHILD_READ_BYTES  65536
#define CHILD_DRAIN_BYTES (1 << 20) // at most this much is read after the end; a pipe holds 64 KiB

extern char **environ;

struct loop_child {
    struct loop_owned owned;
    pid_t pid;  // 0 once reaped
    bool busy;  // inside on_output
    bool freed; // closed while busy: whoever set busy frees
    struct loop_signal *sigchld;
    struct loop_timer *kill_timer;
    int out_fd; // read end of its output, -1 if not ours
    struct loop_fd *out_watch;
    void (*on_output)(void *ctx, const char *data, size_t n);
    void (*on_exit)(void *ctx, int exit_code, int term_signal);
    void *ctx;
};

// The environment of the child: ours with the additions in place of their namesakes. The strings are
// borrowed.
static char **merge_env(const char *const *add)
{
    size_t n = 0, n_add = 0;
    while (environ && environ[n]) {
        n++;
    }
    while (add && add[n_add]) {
        n_add++;
    }
    char **env = mem_must(n + n_add + 1, sizeof(*env));
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        bool replaced = false;
        for (size_t k = 0; k < n_add && !replaced; k++) {
            size_t name = strcspn(add[k], "=") + 1;
            replaced = strncmp(environ[i], add[k], name) == 0;
        }
        if (!replaced) {
            env[len++] = environ[i];
        }
    }
    for (size_t k = 0; k < n_add; k++) {
        env[len++] = (char *)(uintptr_t)add[k];
    }
    return env;
}

// ---- in the child ----

static void close_from(int first)
{
    if (close_range((unsigned)first, ~0u, 0) == 0) {
        return;
    }
    struct rlimit lim; // an old kernel or a sandbox without close_range
    int end = getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < 65536 ? (int)lim.rlim_cur : 65536;
    for (int fd = first; fd < end; fd++) {
        close(fd);
    }
}

static void reset_signals(void)
{
    for (int i = 1; i < NSIG; i++) {
        signal(i, SIG_DFL); // fails for SIGKILL and SIGSTOP, as it should
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

// Never returns; an error number goes through fail_fd, which a successful exec closes.
static void become(const struct loop_child_spec *spec, char **env, pid_t parent, int out_fd, int fail_fd)
{
    int in_fd;
    fail_fd = fcntl(fail_fd, F_DUPFD_CLOEXEC, 10); // out of the way of 0 to 3
    out_fd = out_fd < 0 ? -1 : fcntl(out_fd, F_DUPFD_CLOEXEC, 10);
    setpgid(0, 0);
    reset_signals();
    if (prctl(PR_SET_PDEATHSIG, SIGTERM)) {
        goto fail;
    }
    if (getppid() != parent) {
        _exit(127); // it died before we could ask for the signal
    }
    in_fd = spec->in_fd > 0 ? spec->in_fd : open("/dev/null", O_RDONLY);
    if (in_fd < 0 || dup2(in_fd, 0) < 0) {
        goto fail;
    }
    if (out_fd >= 0 && (dup2(out_fd, 1) < 0 || (!spec->out_only && dup2(out_fd, 2) < 0))) {
        goto fail;
    }
    if (dup2(fail_fd, 3) < 0) {
        goto fail;
    }
    fail_fd = 3;
    fcntl(3, F_SETFD, FD_CLOEXEC);
    close_from(4);
    if (spec->cwd && chdir(spec->cwd)) {
        goto fail;
    }
    execvpe(spec->argv[0], (char *const *)(uintptr_t)spec->argv, env);
fail:;
    int e = errno;
    if (write(fail_fd, &e, sizeof(e)) < 0) {
        _exit(126);
    }
    _exit(127);
}

// ---- in the parent ----

static void read_output(struct loop_child *c, size_t limit)
{
    static _Thread_local char data[CHILD_READ_BYTES];
    for (size_t total = 0; total < limit && c->out_fd >= 0;) {
        ssize_t n = read(c->out_fd, data, sizeof(data));
        if (n > 0) {
            total += (size_t)n;
            c->busy = true;
            c->on_output(c->ctx, data, (size_t)n);
            c->busy = false;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else {
            if (n == 0 || errno != EAGAIN) {
                loop_fd_close(c->out_watch);
                c->out_watch = NULL;
                close(c->out_fd);
                c->out_fd = -1;
            }
            return;
        }
    }
}

static void output_ready(void *ctx, int events)
{
    (void)events;
    struct loop_child *c = ctx;
    read_output(c, 1); // one read a turn
    if (c->freed) {
        free(c);
    }
}

// Gives back everything but the memory.
static void release(struct loop_child *c)
{
    loop_signal_close(c->sigchld);
    loop_timer_close(c->kill_timer);
    loop_fd_close(c->out_watch);
    c->sigchld = NULL;
    c->kill_timer = NULL;
    c->out_watch = NULL;
    if (c->out_fd >= 0) {
        close(c->out_fd);
        c->out_fd = -1;
    }
}

static void child_close(struct loop_owned *o)
{
    struct loop_child *c = (struct loop_child *)o;
    loop_disown(o);
    if (c->pid) {
        kill(-c->pid, SIGKILL);
        kill(c->pid, SIGKILL); // if it has not reached its setpgid
        while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    release(c);
    if (c->busy) {
        c->freed = true;
    } else {
        free(c);
    }
}

static void sigchld_came(void *ctx, int signum)
{
    (void)signum;
    struct loop_child *c = ctx;
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid == 0) {
        return; // another child's signal
    }
    kill(-c->pid, SIGKILL); // what it left behind; the unreaped leader still holds the group id
    int status;
    waitpid(c->pid, &status, 0);
    c->pid = 0;
    read_output(c, CHILD_DRAIN_BYTES);
    if (c->freed) {
        free(c);
        return;
    }
    release(c);
    if (c->on_exit) {
        c->on_exit(c->ctx, WIFEXITED(status) ? WEXITSTATUS(status) : -1,
                   WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    }
}

static void grace_over(void *ctx)
{
    struct loop_child *c = ctx;
    kill(-c->pid, SIGKILL);
}

// Waits for the exec: returns 0, or the error number the child reported.
static int wait_exec(int fail_fd)
{
    int e = 0;
    ssize_t n;
    do {
        n = read(fail_fd, &e, sizeof(e));
    } while (n < 0 && errno == EINTR);
    return n == 0 ? 0 : n == sizeof(e) ? e : EIO;
}

static enum status open_output(const struct loop_child_spec *spec, int *ret_read, int *ret_write,
                               struct error *err)
{
    if (spec->out_path) {
        int fd = open(spec->out_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (fd < 0) {
            return error_errno(err, errno, "output file %s", spec->out_path);
        }
        *ret_write = fd;
    } else if (spec->on_output) {
        int fds[2];
        if (pipe2(fds, O_CLOEXEC)) {
            return error_errno(err, errno, "pipe for the output of %s", spec->argv[0]);
        }
        *ret_read = fds[0];
        *ret_write = fds[1];
    }
    return STATUS_OK;
}

enum status loop_child_open(struct loop *l, const struct loop_child_spec *spec, struct loop_child **ret_child,
                            struct error *err)
{
    struct loop_child *c = mem_must(1, sizeof(*c));
    int out_write = -1, fail[2] = {-1, -1};
    c->out_fd = -1;
    c->on_output = spec->on_output;
    c->on_exit = spec->on_exit;
    c->ctx = spec->ctx;
    char **env = merge_env(spec->env);
    loop_own(l, &c->owned, child_close); // before its parts, so that loop_close meets the whole first
    c->kill_timer = loop_timer_open(l, grace_over, c);
    enum status s = loop_signal_open(l, SIGCHLD, sigchld_came, c, &c->sigchld, err);
    if (s != STATUS_OK) {
        goto out;
    }
    s = open_output(spec, &c->out_fd, &out_write, err);
    if (s != STATUS_OK) {
        goto out;
    }
    if (c->out_fd >= 0 &&
        (s = loop_fd_open(l, c->out_fd, LOOP_READ, output_ready, c, &c->out_watch, err)) != STATUS_OK) {
        goto out;
    }
    if (pipe2(fail, O_CLOEXEC)) {
        s = error_errno(err, errno, "pipe for starting %s", spec->argv[0]);
        goto out;
    }
    pid_t parent = getpid();
    c->pid = fork();
    if (c->pid == 0) {
        become(spec, env, parent, out_write, fail[1]);
    }
    if (c->pid < 0) {
        c->pid = 0;
        s = error_errno(err, errno, "starting %s", spec->argv[0]);
        goto out;
    }
    setpgid(c->pid, c->pid); // both sides set it, so that neither has to wait; fails after the exec, rightly
    close(fail[1]);
    fail[1] = -1;
    int e = wait_exec(fail[0]);
    if (e) {
        s = error_errno(err, e, "starting %s%s%s", spec->argv[0], spec->cwd ? " in " : "",
                        spec->cwd ? spec->cwd : "");
    }
out:
    free(env);
    for (int i = 0; i < 2; i++) {
        if (fail[i] >= 0) {
            close(fail[i]);
        }
    }
    if (out_write >= 0) {
        close(out_write);
    }
    if (s != STATUS_OK) {
        child_close(&c->owned);
        return s;
    }
    *ret_child = c;
    return STATUS_OK;
}

pid_t loop_child_pid(const struct loop_child *c)
{
    return c->pid;
}

bool loop_child_running(const struct loop_child *c)
{
    return c->pid != 0;
}

void loop_child_kill(struct loop_child *c, int64_t grace_ms)
{
    if (!c->pid) {
        return;
    }
    kill(-c->pid, grace_ms > 0 ? SIGTERM : SIGKILL);
    if (grace_ms > 0) {
        loop_timer_set(c->kill_timer, grace_ms, 0);
    }
}

void loop_child_close(struct loop_child *c)
{
    if (c) {
        child_close(&c->owned);
    }
}
