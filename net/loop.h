// One event loop per I/O thread (libuv inside): timers, file descriptors, signals, posts from other threads,
// foreign edge-triggered queues (ZeroMQ), child processes.
//
//  1. Everything here is called on the loop's own thread, except loop_post. A loop belongs to the thread that
//  opened
//     it and runs it; children die with that *thread* (PR_SET_PDEATHSIG), so let it be one that lives long.
//  2. Callbacks run inside loop_run, never inside the call that registered them.
//  3. A handle stays valid until its _close; a _close may be called inside its own callback, and no callback
//  of that
//     handle comes after it. _close(NULL) is fine.
//  4. loop_close closes what is left open; those handles are then gone, too. HTTP servers and clients are
//  closed before.
#ifndef NET_LOOP_H
#define NET_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/status.h"

struct loop;

enum status loop_open(struct loop **ret_loop, struct error *err) OOZE_MUST_USE;
void loop_close(struct loop *l);
// Runs until loop_stop.
void loop_run(struct loop *l);
// Runs for at most timeout_ms, or until loop_stop; true when it was stopped. For tests and short waits at
// exit.
bool loop_run_for(struct loop *l, int64_t timeout_ms);
void loop_stop(struct loop *l); // other threads: loop_post a function that stops
// Monotonic time of this turn of the loop.
int64_t loop_now_ms(const struct loop *l);
// Sets n descriptors of the process aside, raising the soft limit of open files where it is too low for all
// that was set aside; STATUS_LIMIT when the hard limit is lower. loop_release_fds takes it back. Any thread.
enum status loop_need_fds(size_t n, struct error *err) OOZE_MUST_USE;
void loop_release_fds(size_t n);

// ---- timers ----
struct loop_timer;
typedef void loop_fn(void *ctx);

struct loop_timer *loop_timer_open(struct loop *l, loop_fn *fn, void *ctx); // never NULL; not running yet
// First after delay_ms (0 = next turn), then every repeat_ms (0 = once). Replaces what was set before.
void loop_timer_set(struct loop_timer *t, int64_t delay_ms, int64_t repeat_ms);
void loop_timer_stop(struct loop_timer *t);
void loop_timer_close(struct loop_timer *t);
// Fire and forget, once; never if the loop closes first. What may need cancelling takes a timer.
void loop_after(struct loop *l, int64_t delay_ms, loop_fn *fn, void *ctx);

// ---- file descriptors ----
enum { LOOP_READ = 1, LOOP_WRITE = 2, LOOP_HANGUP = 4 }; // HANGUP: the peer closed (EPOLLRDHUP)
struct loop_fd;
// Level-triggered. events: what happened, or all that was asked for when the descriptor is broken (the next
// read or write says how). One watch per descriptor and loop; the descriptor stays the caller's and is closed
// after the watch.
typedef void loop_fd_fn(void *ctx, int events);
enum status loop_fd_open(struct loop *l, int fd, int events, loop_fd_fn *fn, void *ctx,
                         struct loop_fd **ret_watch, struct error *err) OOZE_MUST_USE;
void loop_fd_set(struct loop_fd *w, int events); // 0 = pause
void loop_fd_close(struct loop_fd *w);

// ---- signals ----
struct loop_signal;
typedef void loop_signal_fn(void *ctx, int signum);
enum status loop_signal_open(struct loop *l, int signum, loop_signal_fn *fn, void *ctx,
                             struct loop_signal **ret_signal, struct error *err) OOZE_MUST_USE;
void loop_signal_close(struct loop_signal *s);

// ---- posts ----
#define LOOP_POSTS_MAX 65536
// From any thread: fn(ctx) runs on the loop's thread, in the order of posting. STATUS_AGAIN when
// LOOP_POSTS_MAX wait already, STATUS_CANCELED when the loop is closing (posts not run by then never run).
// The loop must outlive the call.
enum status loop_post(struct loop *l, loop_fn *fn, void *ctx) OOZE_MUST_USE;

// ---- foreign queues with an edge-triggered descriptor (ZMQ_FD) ----
// pending(ctx) tells whether work waits (ZMQ_EVENTS & ZMQ_POLLIN or wanted POLLOUT); it is asked before every
// sleep, so an edge swallowed elsewhere is not lost. pump(ctx) does a bounded amount of it; as long as work
// is pending the loop polls without sleeping, and everything else gets its turn in between.
struct loop_pump;
enum status loop_pump_open(struct loop *l, int fd, int (*pending)(void *ctx), void (*pump)(void *ctx),
                           void *ctx, struct loop_pump **ret_pump, struct error *err) OOZE_MUST_USE;
void loop_pump_close(struct loop_pump *p);

// ---- child processes ----
struct loop_child_spec {
    const char *const *argv; // NULL-terminated; argv[0] without '/' is searched in PATH
    const char *const *env;  // "NAME=value", NULL-terminated, added to (or replacing in) ours; NULL = ours
    const char *cwd;         // NULL = ours
    const char *out_path;    // stdout and stderr are appended to this file (0600); NULL = inherited
    void (*on_output)(void *ctx, const char *data,
                      size_t n); // or, instead: called with what the child prints
    bool out_only;               // on_output gets stdout only; stderr is inherited
    int in_fd;                   // what the child reads as stdin; stays the caller's. 0 = /dev/null
    // Once, after the last on_output. exit_code is -1 when a signal (then in term_signal, else 0) ended the
    // child.
    void (*on_exit)(void *ctx, int exit_code, int term_signal);
    void *ctx;
};
struct loop_child;
// A child leads its own process group, has /dev/null or in_fd as stdin and no other descriptor of ours, gets SIGTERM
// when our thread dies, and takes what is left of its group with it when it ends. A program that cannot be
// started is an error here, not an exit code.
enum status loop_child_open(struct loop *l, const struct loop_child_spec *spec, struct loop_child **ret_child,
                            struct error *err) OOZE_MUST_USE;
pid_t loop_child_pid(const struct loop_child *c);
bool loop_child_running(const struct loop_child *c);
// SIGTERM to the group now, SIGKILL after grace_ms unless it ended (0 = SIGKILL at once). on_exit tells the
// end.
void loop_child_kill(struct loop_child *c, int64_t grace_ms);
// Ended or not: a running child is killed (SIGKILL) and reaped; no callback comes.
void loop_child_close(struct loop_child *c);

#endif
