// net/loop.h: timers, descriptors, signals, posts, foreign queues.
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
// cmocka wants its four first
#include <cmocka.h>

#include "net/loop.h"

static struct loop *open_loop(void)
{
    struct loop *l;
    struct error err;
    assert_int_equal(loop_open(&l, &err), STATUS_OK);
    return l;
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

struct count {
    struct loop *loop;
    struct loop_timer *timer;
    int n, stop_at;
};

static void counted(void *ctx)
{
    struct count *c = ctx;
    if (++c->n == c->stop_at) {
        loop_stop(c->loop);
    }
}

static void test_timers(void **state)
{
    (void)state;
    struct loop *l = open_loop();
    struct count once = {.loop = l}, repeat = {.loop = l, .stop_at = 5}, stopped = {.loop = l},
                 after = {.loop = l};
    once.timer = loop_timer_open(l, counted, &once);
    repeat.timer = loop_timer_open(l, counted, &repeat);
    stopped.timer = loop_timer_open(l, counted, &stopped);
    loop_timer_set(once.timer, 5, 0);
    loop_timer_set(repeat.timer, 10, 10);
    loop_timer_set(stopped.timer, 1, 1);
    loop_timer_stop(stopped.timer);
    loop_after(l, 3, counted, &after);
    int64_t t0 = now_ms();
    assert_true(loop_run_for(l, 5000));
    assert_true(now_ms() - t0 >= 49);
    assert_int_equal(once.n, 1);
    assert_int_equal(repeat.n, 5);
    assert_int_equal(stopped.n, 0);
    assert_int_equal(after.n, 1);
    loop_timer_close(repeat.timer);
    loop_timer_set(once.timer, 1, 0); // a handle may be set again
    assert_false(loop_run_for(l, 30));
    assert_int_equal(once.n, 2);
    assert_int_equal(repeat.n, 5);
    loop_after(l, 100000, counted, &after); // loop_close frees what never fired
    loop_close(l);
    assert_int_equal(after.n, 1);
}

static void closes_itself(void *ctx)
{
    struct count *c = ctx;
    c->n++;
    loop_timer_close(c->timer);
}

static void test_close_inside(void **state)
{
    (void)state;
    struct loop *l = open_loop();
    struct count c = {.loop = l};
    c.timer = loop_timer_open(l, closes_itself, &c);
    loop_timer_set(c.timer, 1, 1);
    assert_false(loop_run_for(l, 30));
    assert_int_equal(c.n, 1);
    loop_timer_close(NULL);
    loop_close(l);
    loop_close(NULL);
}

struct fd_seen {
    struct loop *loop;
    int events;
};

static void fd_event(void *ctx, int events)
{
    struct fd_seen *f = ctx;
    f->events |= events;
    loop_stop(f->loop);
}

static void test_fd(void **state)
{
    (void)state;
    struct loop *l = open_loop();
    struct fd_seen seen = {.loop = l};
    struct loop_fd *w, *w2;
    struct error err;
    int sv[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
    assert_int_equal(loop_fd_open(l, sv[0], LOOP_READ, fd_event, &seen, &w, &err), STATUS_OK);
    assert_false(loop_run_for(l, 20));
    assert_int_equal(loop_fd_open(l, sv[0], LOOP_READ, fd_event, &seen, &w2, &err),
                     STATUS_IO); // one watch each
    assert_int_equal(write(sv[1], "x", 1), 1);
    assert_true(loop_run_for(l, 2000));
    assert_int_equal(seen.events, LOOP_READ);
    seen.events = 0;
    loop_fd_set(w, 0);
    assert_false(loop_run_for(l, 20));
    loop_fd_set(w, LOOP_WRITE);
    assert_true(loop_run_for(l, 2000));
    assert_int_equal(seen.events, LOOP_WRITE);
    seen.events = 0;
    loop_fd_set(w, LOOP_HANGUP);
    assert_false(loop_run_for(l, 20));
    close(sv[1]);
    assert_true(loop_run_for(l, 2000));
    assert_true(seen.events & LOOP_HANGUP);
    loop_fd_close(w);
    close(sv[0]);
    loop_close(l);
}

static void signal_event(void *ctx, int signum)
{
    struct count *c = ctx;
    c->n = signum;
    loop_stop(c->loop);
}

static void test_signal(void **state)
{
    (void)state;
    struct loop *l = open_loop();
    struct count c = {.loop = l};
    struct loop_signal *s;
    struct error err;
    assert_int_equal(loop_signal_open(l, SIGUSR1, signal_event, &c, &s, &err), STATUS_OK);
    kill(getpid(), SIGUSR1);
    assert_true(loop_run_for(l, 2000));
    assert_int_equal(c.n, SIGUSR1);
    loop_signal_close(s);
    assert_int_equal(loop_signal_open(l, 12345, signal_event, &c, &s, &err), STATUS_INVALID);
    loop_close(l);
}

enum { POSTERS = 4, POSTS_EACH = 5000 };
struct posts {
    struct loop *loop;
    int next[POSTERS], total;
    bool in_order;
};
struct posted {
    struct posts *posts;
    int thread, seq;
};

static void post_runs(void *ctx)
{
    struct posted *p = ctx;
    struct posts *all = p->posts;
    all->in_order = all->in_order && all->next[p->thread] == p->seq;
    all->next[p->thread]++;
    if (++all->total == POSTERS * POSTS_EACH) {
        loop_stop(all->loop);
    }
    free(p);
}

struct poster {
    struct posts *posts;
    int thread;
};

static void *post_thread(void *arg)
{
    struct poster *me = arg;
    for (int i = 0; i < POSTS_EACH; i++) {
        struct posted *p = malloc(sizeof(*p));
        *p = (struct posted){me->posts, me->thread, i};
        while (loop_post(me->posts->loop, post_runs, p) == STATUS_AGAIN) {
        }
    }
    return NULL;
}

static void test_post(void **state)
{
    (void)state;
    struct posts all = {.loop = open_loop(), .in_order = true};
    pthread_t t[POSTERS];
    struct poster me[POSTERS];
    for (int i = 0; i < POSTERS; i++) {
        me[i] = (struct poster){&all, i};
        pthread_create(&t[i], NULL, post_thread, &me[i]);
    }
    assert_true(loop_run_for(all.loop, 30000));
    for (int i = 0; i < POSTERS; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(all.next[i], POSTS_EACH);
    }
    assert_true(all.in_order);
    loop_close(all.loop);
}

static void test_post_bound(void **state)
{
    (void)state;
    struct count c = {.loop = open_loop(), .stop_at = LOOP_POSTS_MAX};
    for (int i = 0; i < LOOP_POSTS_MAX; i++) {
        assert_int_equal(loop_post(c.loop, counted, &c), STATUS_OK);
    }
    assert_int_equal(loop_post(c.loop, counted, &c), STATUS_AGAIN);
    assert_true(loop_run_for(c.loop, 5000));
    assert_int_equal(c.n, LOOP_POSTS_MAX);
    assert_int_equal(loop_post(c.loop, counted, &c), STATUS_OK);
    loop_close(c.loop);
}

// A queue like ZeroMQ's: its descriptor signals once per empty → non-empty edge, and asking for its state
// eats the edge.
struct fake_queue {
    struct loop *loop;
    int fd, waiting, pumped, max_per_pump, want;
    int timer_turns;
};

static int queue_pending(void *ctx)
{
    struct fake_queue *q = ctx;
    uint64_t eaten;
    if (read(q->fd, &eaten, sizeof(eaten)) < 0) {
        eaten = 0;
    }
    return q->waiting > 0;
}

static void queue_pump(void *ctx)
{
    struct fake_queue *q = ctx;
    for (int i = 0; i < q->max_per_pump && q->waiting; i++) {
        q->waiting--;
        q->pumped++;
    }
    if (q->pumped >= q->want) {
        loop_stop(q->loop);
    }
}

static void queue_fill(void *ctx) // with an edge, which pending eats before the poll sees it
{
    struct fake_queue *q = ctx;
    uint64_t one = 1;
    q->waiting += 1000;
    assert_int_equal(write(q->fd, &one, sizeof(one)), sizeof(one));
}

static void queue_fill_silently(void *ctx) // the edge was eaten by a send, as zmq_send does
{
    struct fake_queue *q = ctx;
    q->waiting += 1000;
}

static void queue_turn(void *ctx)
{
    struct fake_queue *q = ctx;
    q->timer_turns++;
}

static void test_pump(void **state)
{
    (void)state;
    struct loop *l = open_loop();
    struct fake_queue q = {.loop = l, .fd = eventfd(0, EFD_NONBLOCK), .max_per_pump = 10, .want = 2000};
    struct loop_pump *p;
    struct error err;
    assert_int_equal(loop_pump_open(l, q.fd, queue_pending, queue_pump, &q, &p, &err), STATUS_OK);
    assert_false(loop_run_for(l, 20));
    assert_int_equal(q.pumped, 0);
    loop_after(l, 5, queue_fill, &q);
    loop_after(l, 30, queue_fill_silently, &q);
    assert_true(loop_run_for(l, 5000));
    assert_int_equal(q.pumped, 2000);
    // while work waits, others get their turn: a timer posted with endless work still fires
    q.waiting = 1 << 30;
    q.want = 1 << 30;
    loop_after(l, 5, queue_turn, &q);
    assert_false(loop_run_for(l, 50));
    assert_int_equal(q.timer_turns, 1);
    // and without work the loop sleeps
    q.waiting = 0;
    struct rusage a, b;
    getrusage(RUSAGE_SELF, &a);
    assert_false(loop_run_for(l, 200));
    getrusage(RUSAGE_SELF, &b);
    assert_true((b.ru_utime.tv_sec - a.ru_utime.tv_sec) * 1000000 + b.ru_utime.tv_usec - a.ru_utime.tv_usec <
                100000);
    loop_pump_close(p);
    close(q.fd);
    loop_close(l);
}

static void test_close_leftovers(void **state)
{
    (void)state;
    struct loop *l = open_loop();
    struct fake_queue q = {.loop = l, .fd = eventfd(0, EFD_NONBLOCK)};
    struct count c = {.loop = l};
    struct fd_seen seen = {.loop = l};
    struct error err;
    struct loop_pump *p;
    struct loop_signal *s;
    struct loop_fd *w;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(loop_pump_open(l, q.fd, queue_pending, queue_pump, &q, &p, &err), STATUS_OK);
    assert_int_equal(loop_signal_open(l, SIGUSR2, signal_event, &c, &s, &err), STATUS_OK);
    assert_int_equal(loop_fd_open(l, fds[0], LOOP_READ, fd_event, &seen, &w, &err), STATUS_OK);
    loop_timer_set(loop_timer_open(l, counted, &c), 1, 1);
    loop_close(l);
    close(fds[0]);
    close(fds[1]);
    close(q.fd);
}

static void test_fd_limit(void **state)
{
    (void)state;
    struct error err;
    struct rlimit lim;
    getrlimit(RLIMIT_NOFILE, &lim);
    assert_int_equal(loop_need_fds((size_t)lim.rlim_max + 1, &err), STATUS_LIMIT);
    lim.rlim_cur = 100;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &lim), 0);
    assert_int_equal(loop_need_fds(200, &err), STATUS_OK);
    assert_int_equal(loop_need_fds(200, &err), STATUS_OK);
    getrlimit(RLIMIT_NOFILE, &lim);
    assert_true(lim.rlim_cur >= 400);
    loop_release_fds(400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_timers),   cmocka_unit_test(test_close_inside),
        cmocka_unit_test(test_fd),       cmocka_unit_test(test_signal),
        cmocka_unit_test(test_post),     cmocka_unit_test(test_post_bound),
        cmocka_unit_test(test_pump),     cmocka_unit_test(test_close_leftovers),
        cmocka_unit_test(test_fd_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
