// The job stream against a fake orchestrator: wire_bind here, the client and its engine on the same loop.
#include "tests/isa.h"
#include "tiny.h"

#include <pthread.h>
#include <unistd.h>

#include "base/file.h"
#include "rollout/client.h"

enum { JOBS = 16 };

struct side {
    struct loop *loop;
    struct worker *worker;
    struct client *client;
    struct wire *wire; // the orchestrator's
    char dir[64], endpoint[128];
    char refused[256];
    struct wire_peer engine;
    // what the orchestrator heard
    int n_hello, n_pong, n_loaded, n_chunks;
    struct msg_hello hello;
    struct msg_ping pong;
    struct msg_loaded loaded;
    int n_traces;
    struct msg_trace_done trace; // arrays not kept
    char trace_error[256], first_op[32], last_op[32];
    int64_t served_bytes;
    struct got jobs[JOBS]; // by job id
    int32_t offsets[JOBS]; // of the last TOKENS
    int messages[JOBS];
    int n_bye;
    bool stop_reading; // leaves the queue alone
    const char *weights_file;
};

static void on_outputs(void *ctx, const struct outputs *o)
{
    struct side *s = ctx;
    client_outputs(s->client, o);
}

static void on_loaded(void *ctx, const struct worker_loaded *l)
{
    struct side *s = ctx;
    client_loaded(s->client, l);
}

static void on_traced(void *ctx, const struct worker_trace *t)
{
    struct side *s = ctx;
    client_traced(s->client, t);
}

static void on_failed(void *ctx, const struct error *err)
{
    (void)ctx;
    fail_msg("%s", err->text);
}

static void on_refused(void *ctx, const char *reason)
{
    struct side *s = ctx;
    snprintf(s->refused, sizeof s->refused, "%s", reason);
}

static void side_open(struct side *s)
{
    *s = (struct side){0};
    strcpy(s->dir, "/tmp/ooze-client-XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    snprintf(s->endpoint, sizeof s->endpoint, "ipc://%s/orch", s->dir);
    must(wire_bind(s->endpoint, NULL, &s->wire, err));
    must(loop_open(&s->loop, err));
    const struct worker_config w = {.isa = test_isa(),
                                    .threads = 1,
                                    .model = tiny_config(),
                                    .dtype = DT_BF16,
                                    .engine = {.kv_tokens = 4096},
                                    .loop = s->loop,
                                    .on_outputs = on_outputs,
                                    .on_loaded = on_loaded,
                                    .on_traced = on_traced,
                                    .on_failed = on_failed,
                                    .ctx = s};
    must(worker_open(&w, &s->worker, err));
    const struct client_config c = {.loop = s->loop,
                                    .worker = s->worker,
                                    .endpoint = s->endpoint,
                                    .run = "run-1",
                                    .name = "engine-0",
                                    .restarts = 2,
                                    .flush_tokens = 5,
                                    .fetch_dir = s->dir,
                                    .on_refused = on_refused,
                                    .ctx = s};
    must(client_open(&c, &s->client, err));
}

static void side_close(struct side *s)
{
    client_close(s->client);
    worker_close(s->worker);
    loop_close(s->loop);
    wire_close(s->wire);
    must(file_remove_tree(s->dir, err));
}

static void send(struct side *s, const struct msg *m)
{
    must(wire_send(s->wire, &s->engine, m, err));
}

static void hear_tokens(struct side *s, const struct msg_tokens *t)
{
    assert_true(t->job < JOBS);
    struct got *g = &s->jobs[t->job];
    s->messages[t->job]++;
    s->offsets[t->job] = t->offset;
    assert_true(t->offset <= g->n); // no holes
    for (int32_t i = 0; i < t->n; i++) {
        int32_t at = t->offset + i;
        if (at < g->n) { // said again: must be the same
            assert_int_equal(g->ids[at], t->ids[i]);
            assert_memory_equal(&g->logprobs[at], &t->logprobs[i], 4);
        }
        g->ids[at] = t->ids[i];
        g->logprobs[at] = t->logprobs[i];
    }
    int32_t covered = t->offset;
    for (int32_t i = 0; i < t->n_spans; i++) {
        assert_int_equal(t->spans[i].start, covered);
        covered = t->spans[i].end;
        g->spans[i] = t->spans[i];
    }
    g->n_spans = t->n_spans;
    assert_int_equal(covered, t->offset + t->n);
    g->n = covered > g->n ? covered : g->n;
    g->finish = t->finish;
    snprintf(g->error, sizeof g->error, "%s", t->error);
}

static void serve_chunk(struct side *s, const struct msg_chunk_request *q)
{
    struct file_map map;
    must(file_map_open(s->weights_file, false, &map, err));
    int64_t n = (int64_t)map.len - q->offset < q->bytes ? (int64_t)map.len - q->offset : q->bytes;
    n = n < 10000 ? n : 10000; // short answers are legal: the rest is asked for again
    if (s->n_chunks++ == 1) {
        file_map_close(&map);
        return; // this one is lost
    }
    struct msg m = {.type = MSG_CHUNK_DATA};
    m.chunk_data = (struct msg_chunk_data){.version = q->version,
                                           .offset = q->offset,
                                           .total = (int64_t)map.len,
                                           .n = n,
                                           .data = map.data + q->offset};
    s->served_bytes += n;
    send(s, &m);
    file_map_close(&map);
}

static void hear(struct side *s)
{
    struct msg m;
    struct error err;
    while (!s->stop_reading && s->n_bye == 0 && wire_recv(s->wire, &s->engine, &m, &err) == STATUS_OK) {
        switch (m.type) {
        case MSG_HELLO:
            s->hello = m.hello;
            s->n_hello++;
            assert_string_equal(m.hello.run, "run-1");
            assert_string_equal(m.hello.name, "engine-0");
            assert_int_equal(m.hello.restarts, 2);
            assert_true(*m.hello.numerics_id);
            break;
        case MSG_PONG:
            s->pong = m.ping;
            s->n_pong++;
            break;
        case MSG_LOADED:
            s->loaded = m.loaded;
            s->n_loaded++;
            break;
        case MSG_TOKEN_DATA:
            hear_tokens(s, &m.tokens);
            break;
        case MSG_TRACE_DONE:
            s->trace = m.trace_done;
            snprintf(s->trace_error, sizeof s->trace_error, "%s", m.trace_done.error);
            if (m.trace_done.n_ops > 0) {
                snprintf(s->first_op, sizeof s->first_op, "%s", m.trace_done.ops[0].op);
                snprintf(s->last_op, sizeof s->last_op, "%s", m.trace_done.ops[m.trace_done.n_ops - 1].op);
            }
            s->n_traces++;
            break;
        case MSG_CHUNK_REQUEST:
            serve_chunk(s, &m.chunk_request);
            break;
        case MSG_BYE:
            assert_false(m.bye.failed);
            s->n_bye++;
            break;
        default:
            fail_msg("unexpected %s", msg_type_name(m.type));
        }
        wire_release(s->wire);
    }
}

// Runs both sides until *what >= want.
static void wait_at(struct side *s, const int *what, int want, int line)
{
    for (int i = 0; i < 2000 && *what < want; i++) {
        loop_run_for(s->loop, 5);
        hear(s);
    }
    if (*what < want)
        fail_msg("line %d: %d, not %d", line, *what, want);
}
#define wait_int(s, what, want) wait_at(s, what, want, __LINE__)

static void run_for(struct side *s, int ms)
{
    for (int i = 0; i < ms / 5; i++) {
        loop_run_for(s->loop, 5);
        hear(s);
    }
}

static void welcome_with(struct side *s, int64_t epoch, const char *run, int64_t ping_ms)
{
    struct msg m = {.type = MSG_WELCOME};
    m.welcome = (struct msg_welcome){.run = run,
                                     .orchestrator_epoch = epoch,
                                     .accepted = true,
                                     .reason = "",
                                     .ping_interval_ms = ping_ms,
                                     .silence_ms = 2000,
                                     .checkpoint = "",
                                     .checkpoint_hash = "",
                                     .version = -1,
                                     .version_path = "",
                                     .version_hash = ""};
    send(s, &m);
}

static void welcome(struct side *s, int64_t epoch, const char *run)
{
    welcome_with(s, epoch, run, 200);
}

static void ping(struct side *s, uint64_t nonce)
{
    struct msg m = {.type = MSG_PING};
    m.ping.nonce = nonce;
    send(s, &m);
}

static void ack(struct side *s, uint64_t job, int32_t durable_to)
{
    struct msg m = {.type = MSG_ACK};
    m.ack = (struct msg_ack){job, durable_to};
    send(s, &m);
}

static void send_job(struct side *s, uint64_t id, int64_t epoch, int32_t max_new, int64_t min_version)
{
    int32_t ids[40];
    tiny_prompt(id, ids, 40);
    struct msg m = {.type = MSG_JOB};
    m.job = tiny_job(id, ids, 40, max_new).msg;
    m.job.orchestrator_epoch = epoch;
    m.job.min_version = min_version;
    send(s, &m);
}

static void write_weights(struct side *s, uint64_t seed, int64_t version, char path[128], char hash[HASH_HEX])
{
    struct model_config c = tiny_config();
    struct layout l;
    must(layout_open(&c, &l, err));
    float *master = mem_alloc((size_t)l.total * sizeof(float));
    layout_init_random(&l, &c, seed, master);
    int64_t bytes;
    snprintf(path, 128, "%s/w-%d.safetensors", s->dir, (int)version);
    must(weights_file_write(path, NULL, &l, master, DT_BF16, version, false, hash, &bytes, err));
    mem_free(master);
    layout_done(&l);
}

static void announce(struct side *s, int64_t version, const char *path, const char *hash)
{
    struct msg m = {.type = MSG_VERSION};
    m.version = (struct msg_version){.version = version, .path = path, .hash = hash, .bytes = 0};
    send(s, &m);
}

static void start(struct side *s)
{
    char path[128], hash[HASH_HEX];
    side_open(s);
    wait_int(s, &s->n_hello, 1);
    assert_int_equal(s->hello.version, -1);
    welcome(s, 1, "run-1");
    write_weights(s, 40, 0, path, hash);
    announce(s, 0, path, hash);
    wait_int(s, &s->n_loaded, 1);
    assert_true(s->loaded.ok);
    assert_int_equal(s->loaded.version, 0);
}

static void test_jobs(void **state)
{
    (void)state;
    struct side *s = mem_must(1, sizeof *s);
    start(s);
    for (uint64_t j = 1; j <= 8; j++)
        send_job(s, j, 1, 23, 0);
    for (uint64_t j = 1; j <= 8; j++)
        wait_int(s, &s->jobs[j].finish, FINISH_LENGTH);
    struct client_stats stats;
    client_stats(s->client, &stats);
    assert_int_equal(stats.jobs, 8);
    assert_int_equal(stats.kept_tokens, 8 * 23); // nothing is forgotten before it is acknowledged
    assert_true(s->messages[1] >= 2);            // tokens left as they were made

    // A repeated JOB: not sampled again, said again from what is durable on.
    ack(s, 3, 10);
    int before = s->messages[3];
    send_job(s, 3, 1, 23, 0);
    wait_int(s, &s->messages[3], before + 1);
    assert_int_equal(s->offsets[3], 10);
    for (uint64_t j = 1; j <= 8; j++)
        ack(s, j, 23);
    run_for(s, 50);
    client_stats(s->client, &stats);
    assert_int_equal(stats.jobs, 0);
    assert_int_equal(stats.kept_tokens, 0);

    ping(s, 77);
    wait_int(s, &s->n_pong, 1);
    assert_int_equal(s->pong.nonce, 77);
    assert_int_equal(s->pong.generated_tokens, 8 * 23);
    assert_int_equal(s->pong.version, 0);

    // The answer to whatever is said of a job that is given up is CANCEL: neither an unknown one nor a finished one is spoken of
    // again, and the finished one is forgotten.
    struct msg m = {.type = MSG_CANCEL};
    m.cancel.job = 9;
    send(s, &m);
    send_job(s, 10, 1, 10, 0);
    wait_int(s, &s->jobs[10].finish, FINISH_LENGTH);
    assert_int_equal(s->messages[9], 0);
    client_stats(s->client, &stats);
    int jobs = stats.jobs, messages = s->messages[10];
    m.cancel.job = 10;
    send(s, &m);
    run_for(s, 100);
    client_stats(s->client, &stats);
    assert_int_equal(stats.jobs, jobs - 1);
    assert_int_equal(s->messages[10], messages);
    int32_t ids[] = {TINY_VOCAB};
    m.type = MSG_JOB;
    m.job = tiny_job(11, ids, 1, 5).msg;
    m.job.orchestrator_epoch = 1;
    send(s, &m);
    wait_int(s, &s->jobs[11].finish, FINISH_ERROR);
    assert_non_null(strstr(s->jobs[11].error, "vocabulary"));
    side_close(s);
    free(s);
}

static void test_versions(void **state)
{
    (void)state;
    struct side *s = mem_must(1, sizeof *s);
    start(s);
    char path[128], hash[HASH_HEX], broken[HASH_HEX];
    send_job(s, 1, 1, 400, 0);
    send_job(s, 2, 1, 20, 1); // waits for version 1
    run_for(s, 30);
    // Said again because nothing is heard of it: it goes on waiting, and there is nothing to repeat.
    send_job(s, 2, 1, 20, 1);
    run_for(s, 30);
    assert_int_equal(s->messages[2], 0);
    assert_int_equal(s->jobs[2].n, 0);
    write_weights(s, 41, 1, path, hash);
    strcpy(broken, hash);
    broken[0] = broken[0] == '0' ? '1' : '0';
    announce(s, 1, path, broken); // not the weights that were meant
    wait_int(s, &s->n_loaded, 2);
    assert_false(s->loaded.ok);
    announce(s, 1, path, hash);
    wait_int(s, &s->n_loaded, 3);
    assert_true(s->loaded.ok);
    assert_true(s->loaded.load_ms > 0 && s->loaded.stall_ms >= 0); // the swap is not part of the load
    wait_int(s, &s->jobs[1].finish, FINISH_LENGTH);
    wait_int(s, &s->jobs[2].finish, FINISH_LENGTH);
    assert_int_equal(s->jobs[1].n, 400);
    assert_int_equal(s->jobs[2].spans[0].version, 1);
    assert_int_equal(s->jobs[2].n, 20);
    ping(s, 1);
    wait_int(s, &s->n_pong, 1);
    assert_int_equal(s->pong.generated_tokens, 420); // each once

    announce(s, 0, path, hash); // older: ignored
    announce(s, 1, path, hash); // held: said again
    wait_int(s, &s->n_loaded, 4);
    run_for(s, 30);
    assert_int_equal(s->n_loaded, 4);

    // Another host's file comes in chunks; one that is lost is asked for again.
    char hidden[160];
    write_weights(s, 42, 2, path, hash);
    snprintf(hidden, sizeof hidden, "%s.moved", path);
    assert_int_equal(rename(path, hidden), 0);
    s->weights_file = hidden;
    announce(s, 2, "", hash);
    wait_int(s, &s->n_loaded, 5);
    assert_true(s->loaded.ok);
    assert_int_equal(s->loaded.version, 2);
    side_close(s);
    free(s);
}

static void test_reconnect_and_epochs(void **state)
{
    (void)state;
    struct side *s = mem_must(1, sizeof *s);
    start(s);
    send_job(s, 1, 1, 60, 0);
    wait_int(s, &s->jobs[1].finish, FINISH_LENGTH);
    ack(s, 1, 20);

    // The orchestrator is gone and comes back at the same address: silence makes the engine say HELLO, and what was not
    // acknowledged comes again.
    wire_close(s->wire);
    must(wire_bind(s->endpoint, NULL, &s->wire, err));
    int hellos = s->n_hello, before = s->messages[1];
    wait_int(s, &s->n_hello, hellos + 1);
    assert_int_equal(s->hello.version, 0);
    welcome(s, 1, "run-1");
    wait_int(s, &s->messages[1], before + 1);
    assert_int_equal(s->offsets[1], 20);
    ack(s, 1, 60);

    // A newer epoch: what the old one asked for is aborted and forgotten; its late messages are ignored.
    send_job(s, 2, 1, 400, 5); // would wait for ever
    run_for(s, 30);
    struct client_stats stats;
    client_stats(s->client, &stats);
    assert_int_equal(stats.jobs, 1);
    welcome(s, 2, "run-1");
    send_job(s, 3, 1, 10, 0);
    send_job(s, 4, 2, 10, 0);
    wait_int(s, &s->jobs[4].finish, FINISH_LENGTH);
    client_stats(s->client, &stats);
    assert_int_equal(stats.jobs, 1);
    assert_int_equal(stats.orchestrator_epoch, 2);
    assert_int_equal(s->jobs[3].n, 0);
    struct worker_stats w;
    worker_stats(s->worker, &w);
    assert_int_equal(w.engine.waiting, 0);

    // CANCEL ends a job with what it has.
    send_job(s, 5, 2, 450, 0);
    while (s->jobs[5].n < 10)
        run_for(s, 5);
    struct msg m = {.type = MSG_CANCEL};
    m.cancel.job = 5;
    send(s, &m);
    wait_int(s, &s->jobs[5].finish, FINISH_LENGTH);
    assert_true(s->jobs[5].finish == FINISH_ABORT || s->jobs[5].n == 450);

    welcome(s, 3, "run-2");
    for (int i = 0; i < 100 && !*s->refused; i++)
        run_for(s, 10);
    assert_non_null(strstr(s->refused, "another run"));
    side_close(s);
    free(s);
}

// HELLO is repeated until there is an answer, so there may be more than one: only the first says that nothing has been heard.
static void test_welcomed_twice(void **state)
{
    (void)state;
    struct side *s = mem_must(1, sizeof *s);
    start(s);
    send_job(s, 1, 1, 60, 0);
    wait_int(s, &s->jobs[1].finish, FINISH_LENGTH);
    struct client_stats before, after;
    client_stats(s->client, &before);
    for (int i = 0; i < 5; i++)
        welcome(s, 1, "run-1");
    ping(s, 5);
    wait_int(s, &s->n_pong, 1);
    client_stats(s->client, &after);
    assert_int_equal(after.resent, before.resent);
    assert_int_equal(after.kept_tokens, 60);

    // The weights that such an answer names are loaded all the same: nobody announces them again.
    char path[128], hash[HASH_HEX];
    write_weights(s, 41, 1, path, hash);
    struct msg m = {.type = MSG_WELCOME,
                    .welcome = {.run = "run-1",
                                .orchestrator_epoch = 1,
                                .accepted = true,
                                .reason = "",
                                .checkpoint = "",
                                .checkpoint_hash = "",
                                .version = 1,
                                .version_path = path,
                                .version_hash = hash}};
    send(s, &m);
    wait_int(s, &s->n_loaded, 2);
    assert_int_equal(s->loaded.version, 1);
    side_close(s);
    free(s);
}

// Hands the client one token of a job, as the engine would have sampled it.
static void hand_token(struct side *s, uint64_t job, int32_t offset)
{
    struct outputs o;
    const float logprob = -1;
    outputs_init(&o);
    outputs_add(&o, job, offset);
    outputs_add_tokens(&o, &offset, &logprob, 1);
    outputs_add_span(&o, 5, offset, offset + 1);
    client_outputs(s->client, &o);
    outputs_done(&o);
}

static int wait_jobs(struct side *s, int want)
{
    struct client_stats stats = {0};
    for (int i = 0; i < 10000 && stats.jobs < want; i++) {
        loop_run_for(s->loop, 1);
        client_stats(s->client, &stats);
    }
    assert_int_equal(stats.jobs, want);
    return (int)stats.sent_messages;
}

enum { HANDED = JOBS - 2, TOKENS = 500 };

// Jobs 1 … HANDED with TOKENS tokens each, a message a token, none of which anybody reads: more than the queues hold.
static void hand_tokens(struct side *s)
{
    welcome_with(s, 1, "run-1", 60000); // that it hears nothing for a while is all right
    for (uint64_t j = 1; j <= HANDED; j++)
        send_job(s, j, 1, 400, 5); // the engine itself waits for version 5 for ever
    wait_jobs(s, HANDED);
    s->stop_reading = true;
    for (int32_t i = 0; i < TOKENS; i++) {
        for (uint64_t j = 1; j <= HANDED; j++)
            hand_token(s, j, i);
        loop_run_for(s->loop, 1); // while there is room
    }
    assert_true(wait_jobs(s, HANDED) < HANDED * TOKENS);
}

// A queue that is full: what does not fit waits, and goes on when it is read.
static void test_full_queue(void **state)
{
    (void)state;
    struct side *s = mem_must(1, sizeof *s);
    start(s);
    hand_tokens(s);
    s->stop_reading = false;
    for (uint64_t j = 1; j <= HANDED; j++)
        wait_int(s, &s->jobs[j].n, TOKENS);
    side_close(s);
    free(s);
}

static void *read_to_the_end(void *arg)
{
    struct side *s = arg;
    struct error err;
    int64_t end = clock_mono_ms(clock_system()) + 20000;
    while (s->n_bye == 0 && clock_mono_ms(clock_system()) < end) {
        (void)!wire_wait(s->wire, 100, &err);
        hear(s);
    }
    return NULL;
}

// Samples n tokens of a job that the loop does not get to see.
static void sample_unseen(struct side *s, uint64_t job, int jobs, int32_t n)
{
    struct worker_stats w = {0};
    send_job(s, job, 1, n, 0);
    wait_jobs(s, jobs);
    for (int i = 0; i < 20000 && w.engine.generated_tokens < n; i++) {
        usleep(1000);
        worker_stats(s->worker, &w);
    }
    assert_int_equal(w.engine.generated_tokens, n);
}

// An engine that is told to stop: what the compute thread has sampled arrives, and then its leave.
static void test_leave(void **state)
{
    (void)state;
    struct side *s = mem_must(1, sizeof *s);
    start(s);
    sample_unseen(s, 1, 1, 400);
    worker_stop(s->worker);
    client_finish(s->client, false);
    client_close(s->client);
    s->client = NULL;
    wait_int(s, &s->n_bye, 1);
    assert_int_equal(s->jobs[1].n, 400);
    assert_int_equal(s->jobs[1].finish, FINISH_LENGTH);
    side_close(s);
    client_finish(NULL, false);
    free(s);
}

// The same where there is no room for it at first. (The connection outlives its last word here: libzmq loses what is in the socket
// when one side closes it while the other has too much to read.)
static void test_leave_full(void **state)
{
    (void)state;
    enum { LAST = HANDED + 1, SAMPLED = 400 };
    struct side *s = mem_must(1, sizeof *s);
    start(s);
    hand_tokens(s);
    sample_unseen(s, LAST, LAST, SAMPLED);
    worker_stop(s->worker);
    pthread_t reader; // has the wire for itself until it ends
    s->stop_reading = false;
    assert_int_equal(pthread_create(&reader, NULL, read_to_the_end, s), 0);
    client_finish(s->client, false);
    pthread_join(reader, NULL);
    assert_int_equal(s->n_bye, 1);
    assert_int_equal(s->jobs[LAST].n, SAMPLED);
    for (uint64_t j = 1; j <= HANDED; j++)
        assert_int_equal(s->jobs[j].n, TOKENS);
    side_close(s);
    free(s);
}

static void ask_trace(struct side *s, uint64_t id, int64_t version, const int32_t *ids, int32_t n)
{
    struct msg m = {.type = MSG_TRACE};
    m.trace =
        (struct msg_trace){.id = id, .version = version, .path = "", .hash = "", .n_ids = n, .ids = ids};
    send(s, &m);
}

// Traces are answered between the steps of running jobs, which notice nothing.
static void test_traces(void **state)
{
    (void)state;
    struct side *s = mem_must(1, sizeof *s);
    start(s);
    int32_t ids[100];
    tiny_prompt(5, ids, 100);
    send_job(s, 1, 1, 60, 0);
    wait_int(s, &s->jobs[1].finish, FINISH_LENGTH);
    send_job(s, 2, 1, 60, 0);
    run_for(s, 5);
    ask_trace(s, 31, 0, ids, 100);
    wait_int(s, &s->n_traces, 1);
    assert_true(s->trace.ok);
    assert_int_equal(s->trace.id, 31);
    assert_int_equal(s->trace.version, 0);
    assert_int_equal(s->trace.n_logprobs, 100);
    assert_string_equal(s->first_op, "embed");
    assert_string_equal(s->last_op, "logprobs");
    wait_int(s, &s->jobs[2].finish, FINISH_LENGTH);
    ask_trace(s, 32, 7, ids, 100); // other weights than those in use
    wait_int(s, &s->n_traces, 2);
    assert_false(s->trace.ok);
    assert_non_null(strstr(s->trace_error, "weights 0 are in use, not 7"));
    ids[4] = TINY_VOCAB;
    ask_trace(s, 33, 0, ids, 100);
    wait_int(s, &s->n_traces, 3);
    assert_false(s->trace.ok);
    ids[4] = 1;
    for (uint64_t i = 0; i < WORKER_TRACES + 3; i++)
        ask_trace(s, 40 + i, 0, ids, 100); // some may be refused, all are answered
    wait_int(s, &s->n_traces, 3 + WORKER_TRACES + 3);
    side_close(s);
    free(s);
}

// Tokens that no message can carry end their job with an error; the others go on.
static void test_unsendable(void **state)
{
    (void)state;
    struct side *s = mem_must(1, sizeof *s);
    start(s);
    send_job(s, 1, 1, 400, 5); // waits for version 5 for ever
    send_job(s, 2, 1, 30, 0);
    wait_int(s, &s->jobs[2].finish, FINISH_LENGTH);
    struct outputs o;
    outputs_init(&o);
    const int32_t ids[] = {1, 2, 3};
    const float fine[] = {-1, -1, -1}, broken[] = {-1, 5, -1};
    outputs_add(&o, 1, 0);
    outputs_add_tokens(&o, ids, fine, 3);
    outputs_add_span(&o, 5, 0, 3);
    client_outputs(s->client, &o);
    outputs_clear(&o);
    outputs_add(&o, 1, 3);
    outputs_add_tokens(&o, ids, broken, 3);
    outputs_add_span(&o, 5, 3, 6);
    outputs_add_kv(&o, &(struct msg_kv){KV_REFIT, 40 + 4, 0, 3, 5}, 1);
    client_outputs(s->client, &o);
    outputs_done(&o);
    wait_int(s, &s->jobs[1].finish, FINISH_ERROR);
    assert_int_equal(s->jobs[1].n, 3); // what could be sent
    assert_non_null(strstr(s->jobs[1].error, "cannot be sent"));
    ack(s, 1, 3);
    ack(s, 2, 30);
    run_for(s, 50);
    struct client_stats stats;
    client_stats(s->client, &stats);
    assert_int_equal(stats.jobs, 0);
    assert_int_equal(stats.kept_tokens, 0);
    struct worker_stats w;
    worker_stats(s->worker, &w);
    assert_int_equal(w.engine.waiting, 0); // the engine was told
    send_job(s, 3, 1, 30, 0);
    wait_int(s, &s->jobs[3].finish, FINISH_LENGTH);
    side_close(s);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jobs),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_reconnect_and_epochs),
        cmocka_unit_test(test_welcomed_twice),
        cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_leave),
        cmocka_unit_test(test_leave_full),
        cmocka_unit_test(test_traces),
        cmocka_unit_test(test_unsendable),
    };
    return cmocka_run_group_tests_name("rollout client", tests, NULL, NULL);
}
