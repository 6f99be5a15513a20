// The whole orchestrator against a fake engine pair, a fake trainer and a fake task service, each a process of its own that speaks the
// real protocols: SFT, then RL, evaluations between, with an engine lost in the middle of a turn, a trainer lost in the middle of a
// step (restore, replay, equal hashes), the service lost, and the orchestrator killed by SIGKILL. The run must end as if nothing had
// happened: every step committed once, the ledger's audit clean.
//
// The fake trainer's weights are a hash chained over everything that a step carries: a step that is not the same bytes the second time
// has another hash and stops the run.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/runconfig.h"
#include "ledger/reader.h"
#include "net/service.h"
#include "orchestrator/orch.h"
#include "proto/wire.h"

#define BROKEN    99 // exit code of a fake that saw the protocol broken
#define SFT_STEPS 4
#define RL_STEPS  10
#define STEPS     (SFT_STEPS + RL_STEPS)
#define MAX_LAG   2
#define EOS       258
#define KEPT      8192

static char dir[256];
static enum { NO_FAULTS, LOSSES, OTHER_BITS, HANGS, LOST_ACK } faults; // what the fakes do wrong

enum who { ORCH, TRAINER, ENGINE0, ENGINE1, TASK, OTHER, REGISTER, WHO_COUNT };
static pid_t pids[WHO_COUNT];
static int restarts_of[WHO_COUNT];

#define REQUIRE(cond)                                                                                        \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                                       \
            _exit(BROKEN);                                                                                   \
        }                                                                                                    \
    } while (0)

// ---- the task service: two turns, a reward that is a function of what was said ------------------------------------------------------

static int n_episodes;
static struct kept {
    char key[96], reply[512];
} kept[KEPT];
static int n_kept;
static bool deleted[KEPT]; // [episode]

static void reply_kept(struct http_request *r, const char *fmt, ...)
{
    const char *key = http_request_header(r, "Idempotency-Key");
    va_list ap;
    REQUIRE(key && n_kept < KEPT);
    struct kept *k = &kept[n_kept++];
    snprintf(k->key, sizeof k->key, "%s", key);
    va_start(ap, fmt);
    vsnprintf(k->reply, sizeof k->reply, fmt, ap);
    va_end(ap);
    http_reply(r, 200, "application/json", k->reply, strlen(k->reply));
}

static bool answered_before(struct http_request *r)
{
    const char *key = http_request_header(r, "Idempotency-Key");
    for (int i = 0; key && i < n_kept; i++)
        if (strcmp(kept[i].key, key) == 0) {
            int n;
            if (sscanf(kept[i].reply, "{\"episode_id\":\"e %d/", &n) == 1)
                REQUIRE(!deleted[n]); // whoever has ended an episode does not create it again
            http_reply(r, 200, "application/json", kept[i].reply, strlen(kept[i].reply));
            return true;
        }
    return false;
}

static void on_task(void *ctx, struct http_request *r)
{
    (void)ctx;
    const char *text = "{\"protocol\":\"ooze-task/"
                       "1\",\"name\":\"pair\",\"mode\":\"env\",\"description\":\"\",\"splits\":{\"train\":50,"
                       "\"eval\":5},\"max_turns\":4,\"tools\":[],\"reward\":{\"min\":0,\"max\":1}}";
    http_reply(r, 200, "application/json", text, strlen(text));
}

static void on_health(void *ctx, struct http_request *r)
{
    (void)ctx;
    http_reply(r, 200, "application/json", "{\"status\":\"healthy\"}", 20);
}

static void on_create(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *j;
    if (answered_before(r) || !http_request_json(r, &j))
        return;
    reply_kept(r, "{\"episode_id\":\"e %d/%d\",\"messages\":[{\"role\":\"user\",\"content\":\"p%lld\"}]}",
               ++n_episodes, (int)getpid(), (long long)json_integer_value(json_object_get(j, "index")));
    json_decref(j);
}

static void on_step(void *ctx, struct http_request *r)
{
    (void)ctx;
    json_t *j;
    int n = 0, pid = 0;
    const char *key = http_request_header(r, "Idempotency-Key");
    if (answered_before(r) || !http_request_json(r, &j))
        return;
    const json_t *message = json_object_get(j, "message");
    const char *content = json_string_value(json_object_get(message, "content"));
    REQUIRE(strcmp(json_string_value(json_object_get(message, "role")), "assistant") == 0 && content && key);
    bool second = strcmp(strrchr(key, '-'), "-1") == 0;
    if (sscanf(http_request_capture(r, "id"), "e %d/%d", &n, &pid) != 2 || pid != (int)getpid())
        http_reply_error(r, 404, NULL, "no such episode");
    else if (second && n % 17 == 0)
        reply_kept(r, "{\"error\":{\"kind\":\"environment\",\"message\":\"the sandbox's host went away\"}}");
    else if (second)
        reply_kept(r, "{\"messages\":[],\"done\":true,\"reward\":%d}",
                   (int)(strlen(content) + (unsigned char)content[0]) % 2);
    else
        reply_kept(r, "{\"messages\":[{\"role\":\"user\",\"content\":\"more\"}],\"done\":false}");
    json_decref(j);
}

static void on_delete(void *ctx, struct http_request *r)
{
    int n, pid;
    (void)ctx;
    if (sscanf(http_request_capture(r, "id"), "e %d/%d", &n, &pid) == 2 && pid == (int)getpid())
        deleted[n] = true;
    http_reply(r, 204, NULL, NULL, 0);
}

static int task_main(const char *file)
{
    static const struct http_route routes[] = {{"GET", "/task", on_task},
                                               {"GET", "/health", on_health},
                                               {"POST", "/episodes", on_create},
                                               {"POST", "/episodes/{id}/step", on_step},
                                               {"DELETE", "/episodes/{id}", on_delete}};
    char port_file[300], name[] = "pair";
    snprintf(port_file, sizeof port_file, "%s/tasks/%s.port", dir, file);
    char *argv[] = {name, (char[]){"--port"}, (char[]){"0"}, (char[]){"--port-file"}, port_file, NULL};
    return service_main(5, argv, name, routes, 5, NULL);
}

// ---- what engine and trainer share ---------------------------------------------------------------------------------------------------

static struct wire *join(const char *name, struct msg_hello *h, int restarts)
{
    char endpoint[512], address[500], id[64];
    struct error err;
    struct wire *w;
    REQUIRE(run_socket(dir, "orch", address, sizeof address, &err) == STATUS_OK);
    snprintf(endpoint, sizeof endpoint, "ipc://%s", address);
    snprintf(id, sizeof id, "%s-%d", name, (int)getpid());
    REQUIRE(wire_connect(endpoint, id, NULL, &w, &err) == STATUS_OK);
    *h = (struct msg_hello){.run = "00112233445566778899aabbccddeeff",
                            .name = name,
                            .build = "fake",
                            .numerics_id = "fake",
                            .pid = getpid(),
                            .version = -1,
                            .version_hash = "",
                            .restarts = restarts};
    return w;
}

static void say(struct wire *w, const struct msg *m)
{
    struct error err;
    for (int i = 0; i < 200; i++) {
        enum status rc = wire_send(w, NULL, m, &err);
        if (rc == STATUS_OK)
            return;
        if (rc != STATUS_AGAIN) {
            fprintf(stderr, "send %s: %s\n", msg_type_name(m->type), err.text);
            REQUIRE(rc == STATUS_AGAIN);
        }
        usleep(10000);
    }
    REQUIRE(!"queue full for two seconds");
}

// The next message; says HELLO every 200 ms until welcomed and after a second of silence.
static bool next(struct wire *w, struct msg_hello *h, bool *welcomed, int64_t *heard_ms, int64_t *said_ms,
                 struct msg *m)
{
    struct wire_peer from;
    struct error err;
    int64_t now = clock_mono_ms(clock_system());
    if (*welcomed && now - *heard_ms > 1000)
        *welcomed = false;
    if (!*welcomed && now - *said_ms > 200) {
        struct msg hello = {.type = MSG_HELLO, .hello = *h};
        say(w, &hello);
        *said_ms = now;
    }
    if (wire_recv(w, &from, m, &err) != STATUS_OK) {
        enum status rc = wire_wait(w, 20, &err);
        (void)rc;
        return false;
    }
    *heard_ms = now;
    if (m->type == MSG_WELCOME) {
        REQUIRE(m->welcome.accepted);
        *welcomed = true;
    }
    if (m->type == MSG_PING) {
        struct msg pong = {.type = MSG_PONG, .ping = {.nonce = m->ping.nonce, .version = h->version}};
        say(w, &pong);
    }
    return true;
}

// ---- the engine: random letters, in two messages a job ---------------------------------------------------------------------------------

static void answer_job(struct wire *w, const struct msg_job *j, int64_t version, bool die_half_way)
{
    int32_t ids[8];
    float logprobs[8];
    struct rng_token_key key = {j->run_seed, j->trajectory, j->attempt, j->segment};
    int32_t n = 0;
    REQUIRE(j->min_version <= version && j->n_ids > 0);
    for (; n < 4 && n < j->sampling.max_new; n++) {
        float u = rng_token_uniform(&key, (uint32_t)(j->n_ids + n));
        bool stop = n == 3 || (n > 0 && u < 0.2f);
        ids[n] = stop ? EOS : 'a' + (int32_t)(u * 20);
        logprobs[n] = -1.0f - u;
        if (stop) {
            n++;
            break;
        }
    }
    int32_t half = n / 2;
    struct msg_span first = {version, 0, half}, second = {version, half, n};
    struct msg m = {.type = MSG_TOKEN_DATA};
    if (half > 0) {
        m.tokens = (struct msg_tokens){.job = j->job,
                                       .offset = 0,
                                       .n = half,
                                       .ids = ids,
                                       .logprobs = logprobs,
                                       .n_spans = 1,
                                       .spans = &first,
                                       .error = ""};
        say(w, &m);
    }
    if (die_half_way) {
        wire_close(w); // what was said arrives
        _exit(7);
    }
    m.tokens = (struct msg_tokens){.job = j->job,
                                   .offset = half,
                                   .n = n - half,
                                   .ids = ids + half,
                                   .logprobs = logprobs + half,
                                   .n_spans = 1,
                                   .spans = &second,
                                   .finish = ids[n - 1] == EOS ? FINISH_STOP : FINISH_LENGTH,
                                   .error = ""};
    say(w, &m);
}

static int engine_main(const char *name, int restarts)
{
    struct msg_hello h;
    struct wire *w = join(name, &h, restarts);
    bool welcomed = false;
    int64_t heard = 0, said = 0;
    static char hash[HASH_HEX];
    int n_jobs = 0;
    h.role = ROLE_ENGINE;
    h.kv_tokens = 10000;
    h.max_running = 8;
    for (;;) {
        struct msg m;
        if (!next(w, &h, &welcomed, &heard, &said, &m))
            continue;
        int64_t version = m.type == MSG_VERSION   ? m.version.version
                          : m.type == MSG_WELCOME ? m.welcome.version
                                                  : -1;
        const char *path = m.type == MSG_VERSION   ? m.version.path
                           : m.type == MSG_WELCOME ? m.welcome.version_path
                                                   : "";
        if (version > h.version) {
            char *data;
            size_t n;
            struct error err;
            REQUIRE(file_read(path, 4096, &data, &n, &err) == STATUS_OK);
            snprintf(hash, sizeof hash, "%.64s", data);
            REQUIRE(strcmp(hash, m.type == MSG_VERSION ? m.version.hash : m.welcome.version_hash) == 0);
            free(data);
            h.version = version;
            h.version_hash = hash;
            struct msg loaded = {.type = MSG_LOADED,
                                 .loaded = {.version = version, .hash = hash, .ok = true, .error = ""}};
            say(w, &loaded);
        }
        if (m.type == MSG_JOB)
            answer_job(w, &m.job, h.version,
                       ++n_jobs == 25 && faults == LOSSES && restarts == 0 && strcmp(name, "engine-0") == 0);
        wire_release(w);
    }
}

// ---- the trainer: a hash chain --------------------------------------------------------------------------------------------------------

struct chain {
    int64_t step;
    char hash[HASH_HEX];
};

static void chain_file(const char *folder, const struct chain *c, char *ret, size_t n)
{
    struct error err;
    snprintf(ret, n, "%s/%s/%lld", dir, folder, (long long)c->step);
    REQUIRE(file_write_atomic(ret, c->hash, 64, 0600, &err) == STATUS_OK);
}

static void chain_step(struct chain *c, const struct msg_prepare *p)
{
    struct buf b = {0};
    bool rl = p->stage == 1;
    int64_t at = 0;
    REQUIRE(p->step == c->step && p->n_members > 0 && p->n_tokens > 0 &&
            p->stage_first == (p->stage_step == 0));
    for (int32_t i = 0; i < p->n_members; i++) {
        const struct msg_member *m = &p->members[i];
        int32_t trained = 0;
        for (int64_t k = at; k < at + m->n_tokens; k++) {
            trained += p->mask[k];
            REQUIRE(!p->mask[k] || !rl ||
                    (p->versions[k] <= p->step && p->step - p->versions[k] <= MAX_LAG && p->logprobs[k] < 0));
            REQUIRE(p->mask[k] || (p->logprobs[k] == 0 && p->versions[k] == -1));
        }
        REQUIRE(trained > 0 && !p->mask[at] && m->multiplicity >= 1);
        at += m->n_tokens;
        buf_append(&b, &m->advantage, sizeof m->advantage);
        buf_append(&b, &m->multiplicity, sizeof m->multiplicity);
    }
    REQUIRE(at == p->n_tokens);
    buf_append(&b, c->hash, 64);
    buf_append(&b, p->ids, (size_t)p->n_tokens * 4);
    buf_append(&b, p->mask, (size_t)p->n_tokens);
    buf_append(&b, p->versions, (size_t)p->n_tokens * 4);
    buf_append(&b, &p->lr, sizeof p->lr);
    buf_append(&b, &p->packing_seed, sizeof p->packing_seed);
    hash_sha256_hex(b.data, b.len, c->hash);
    c->step++;
    buf_done(&b);
}

static void step_done(struct wire *w, int64_t epoch, const struct chain *c, const char *path)
{
    struct msg_metric metric = {"train/loss", 1.0};
    struct msg m = {.type = MSG_STEP_DONE,
                    .step_done = {.epoch = epoch,
                                  .step = c->step - 1,
                                  .outcome = STEP_APPLIED,
                                  .reason = "",
                                  .version = c->step,
                                  .hash = c->hash,
                                  .path = path,
                                  .bytes = 64,
                                  .n_metrics = 1,
                                  .metrics = &metric}};
    say(w, &m);
}

static int trainer_main(int restarts)
{
    struct msg_hello h;
    struct wire *w = join("trainer-0", &h, restarts);
    bool welcomed = false, done_valid = false, checkpoint = false;
    int64_t heard = 0, said = 0, epoch = -1;
    struct chain c = {.step = -1};
    char path[400] = "", text[HASH_HEX];
    h.role = ROLE_TRAINER;
    for (;;) {
        struct msg m;
        if (!next(w, &h, &welcomed, &heard, &said, &m))
            continue;
        if (m.type == MSG_WELCOME && m.welcome.epoch != epoch) {
            struct error err;
            char *data;
            size_t n;
            epoch = m.welcome.epoch;
            int64_t ahead = c.step - m.welcome.committed_steps;
            bool useful = c.step >= 0 && (ahead == 0 || (ahead == 1 && done_valid));
            if (!useful && m.welcome.checkpoint[0]) {
                REQUIRE(file_read(m.welcome.checkpoint, 4096, &data, &n, &err) == STATUS_OK);
                snprintf(c.hash, sizeof c.hash, "%.64s", data);
                REQUIRE(strcmp(c.hash, m.welcome.checkpoint_hash) == 0);
                free(data);
                c.step = m.welcome.checkpoint_step;
            } else if (!useful) {
                hash_sha256_hex("init", 4, c.hash);
                c.step = 0;
            }
            if (m.welcome.checkpoint_step == m.welcome.committed_steps) {
                chain_file("weights", &c, path, sizeof path);
                step_done(w, epoch, &c, path);
            }
        }
        if (m.type == MSG_PREPARE && m.prepare.epoch == epoch) {
            if (!(done_valid && c.step == m.prepare.step + 1)) {
                if (restarts == 0 && m.prepare.step == SFT_STEPS + 3 &&
                    (faults == LOSSES || faults == OTHER_BITS))
                    _exit(7); // in the middle of a step
                if (restarts == 0 && m.prepare.step == SFT_STEPS + 2 && faults == HANGS) {
                    wire_release(w);
                    continue; // alive, but never done
                }
                if (restarts == 1 && faults == OTHER_BITS)
                    c.hash[0] ^= 1;
                chain_step(&c, &m.prepare);
                done_valid = true;
                checkpoint = m.prepare.checkpoint;
                path[0] = 0;
                if (m.prepare.publish)
                    chain_file("weights", &c, path, sizeof path);
                if (m.prepare.replay && faults != OTHER_BITS)
                    REQUIRE(strcmp(m.prepare.expect_hash, c.hash) == 0);
            }
            step_done(w, epoch, &c, path);
            if (faults == LOSSES && restarts == 1 && m.prepare.step == SFT_STEPS + 6) {
                wire_close(w);
                _exit(7); // before the acknowledgement
            }
        }
        if (m.type == MSG_COMMIT_ACK && m.commit_ack.step == SFT_STEPS - 1 && faults == LOST_ACK) {
            faults =
                NO_FAULTS; // the orchestrator dies between the commit of a stage's last step and its word to us
            kill(pids[ORCH], SIGKILL);
            wire_release(w);
            continue;
        }
        if (m.type == MSG_COMMIT_ACK && m.commit_ack.epoch == epoch) {
            if (m.commit_ack.result == COMMIT_FENCED && faults == HANGS)
                _exit(7);
            REQUIRE(m.commit_ack.result == COMMIT_OK || faults == OTHER_BITS);
            if (checkpoint && m.commit_ack.step == c.step - 1) {
                char at[400];
                chain_file("checkpoints", &c, at, sizeof at);
                struct msg note = {
                    .type = MSG_CHECKPOINT,
                    .checkpoint = {.epoch = epoch, .step = c.step, .path = at, .hash = c.hash}};
                say(w, &note);
                checkpoint = false;
            }
        }
        if (m.type == MSG_CHECKPOINT)
            for (int32_t i = 0; i < m.checkpoint.n_prune; i++)
                REQUIRE(unlink(m.checkpoint.prune[i]) == 0);
        if (c.step >= 0) {
            h.version = c.step;
            memcpy(text, c.hash, sizeof text);
            h.version_hash = text;
        }
        wire_release(w);
    }
}

// ---- the run ---------------------------------------------------------------------------------------------------------------------------

static int orchestrator_main(int restarts)
{
    struct orch_options opt = {.run_dir = dir, .restarts = restarts, .signals = true};
    struct orch *o;
    struct error err;
    log_init("orchestrator", getenv("OOZE_TEST_LOG") ? LOG_INFO : LOG_ERROR);
    if (orch_open(&opt, &o, &err)) {
        fprintf(stderr, "orch_open: %s\n", err.text);
        return BROKEN;
    }
    int code = orch_run(o);
    orch_close(o);
    return code;
}

// A user registers a second service while the run is on.
static int register_main(void)
{
    char path[400], *port, args[300];
    size_t n;
    struct error err;
    struct msg_hello h;
    struct wire *w = join("cli", &h, 0);
    snprintf(path, sizeof path, "%s/tasks/other.port", dir);
    while (file_read(path, 100, &port, &n, &err))
        usleep(10000);
    snprintf(args, sizeof args,
             "{\"name\":\"other\",\"url\":\"http://127.0.0.1:%d\",\"ratio\":2,\"max_concurrency\":5}",
             atoi(port));
    free(port);
    const struct {
        const char *verb, *args;
        bool ok;
    } queries[] = {
        {"task_register", "{\"name\":\"other\",\"url\":\"http://169.254.169.254/\"}", false},
        {"task_register", "{\"name\":\"pair\",\"url\":\"http://127.0.0.1:1/\"}",
         false}, // the configuration's own
        {"task_register", args, true},
        {"task_list", "", true},
        {"status", "{}", true},
        {"frobnicate", "{}", false},
    };
    for (size_t i = 0; i < sizeof queries / sizeof *queries; i++) {
        struct msg q = {.type = MSG_QUERY,
                        .query = {.id = i + 1, .verb = queries[i].verb, .args = queries[i].args}},
                   m;
        struct wire_peer from;
        say(w, &q);
        for (int k = 0; wire_recv(w, &from, &m, &err) != STATUS_OK; k++) {
            REQUIRE(k < 500);
            enum status rc = wire_wait(w, 20, &err);
            (void)rc;
        }
        REQUIRE(m.type == MSG_REPLY && m.reply.id == i + 1);
        json_t *j;
        REQUIRE((m.reply.status == STATUS_OK) == queries[i].ok);
        REQUIRE(json_parse(m.reply.json, strlen(m.reply.json), "reply", &j, &err) == STATUS_OK);
        REQUIRE((json_object_get(j, "error") == NULL) == queries[i].ok);
        if (strcmp(queries[i].verb, "status") == 0) {
            static const char *const names[] = {
                "run",    "state", "stage",      "step",      "weights_version", "uptime_s", "reward",
                "groups", "lag",   "throughput", "processes", "last_error",      "tokens"};
            for (size_t k = 0; k < sizeof names / sizeof *names; k++)
                REQUIRE(json_object_get(j, names[k]));
        }
        json_decref(j);
    }
    wire_close(w);
    return 0;
}

static void spawn(enum who who)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid) {
        pids[who] = pid;
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int n = restarts_of[who];
    int code = who == ORCH      ? orchestrator_main(n)
               : who == TRAINER ? trainer_main(n)
               : who == ENGINE0 ? engine_main("engine-0", n)
               : who == ENGINE1 ? engine_main("engine-1", n)
               : who == TASK    ? task_main("pair")
               : who == OTHER   ? task_main("other")
                                : register_main();
    exit(code); // leaks are looked for
}

static int lines_of(const char *name)
{
    char path[400], *data;
    size_t n;
    struct error err;
    int lines = 0;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (file_read(path, 1 << 24, &data, &n, &err))
        return 0;
    for (size_t i = 0; i < n; i++)
        lines += data[i] == '\n';
    free(data);
    return lines;
}

static void put_file(const char *name, const char *text)
{
    char path[400];
    struct error err;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0600, &err), STATUS_OK);
}

static const char config[] =
    "name: loop\nseed: 7\n"
    "model: {hidden: 32, n_layers: 1, n_heads: 1, ffn: 32, max_position: 512}\n"
    "trainer: {checkpoint_every: 3, keep_last: 2}\n"
    "eval: {n: 3, samples: 2, every: 4}\n"
    "orchestrator: {ping_interval_ms: 100, silence_ms: 1000, group_commit_ms: 2, lease_ms: 20000}\n"
    "tasks:\n  - {name: pair, command: [never-started], step_timeout_ms: 1000, max_attempts: 3}\n"
    "stages:\n"
    "  - {name: sft, kind: sft, steps: 4, data: rows.jsonl, batch_rows: 6, max_tokens: 64}\n"
    "  - {name: rl, kind: rl, steps: 10, groups_per_step: 3, group_size: 4, max_lag: 2, max_context: 200,\n"
    "     zero_variance: keep, stale_wait_ms: 2000, sampling: {max_new_tokens: 8}}\n";

static void set_up_run(void)
{
    struct buf rows = {0};
    struct error err;
    char path[400];
    snprintf(dir, sizeof dir, "/tmp/ooze-loop-XXXXXX");
    assert_non_null(mkdtemp(dir));
    for (const char *const *d = (const char *const[]){"weights", "checkpoints", "tasks", NULL}; *d; d++) {
        snprintf(path, sizeof path, "%s/%s", dir, *d);
        assert_int_equal(file_mkdirs(path, 0700, &err), STATUS_OK);
    }
    for (int i = 0; i < 10; i++)
        buf_printf(&rows,
                   "{\"messages\":[{\"role\":\"user\",\"content\":\"p%d\"},{\"role\":\"assistant\","
                   "\"content\":\"x%d\"}]}\n",
                   i, i);
    put_file("rows.jsonl", rows.data);
    buf_done(&rows);
    put_file("config.yaml", config);
    put_file("id", "00112233445566778899aabbccddeeff\n");
    put_file("token", "secret\n");
}

// Members that padding stands for: those whose every attempt failed, in groups that were trained.
static int n_missing(struct ledger *l)
{
    int missing = 0;
    for (int64_t step = SFT_STEPS; step < STEPS; step++) {
        struct arena a;
        struct ledger_step_full f;
        struct error err;
        int32_t weight = 0;
        arena_init(&a, 0);
        assert_int_equal(ledger_step_read(l, step, &a, &f, &err), STATUS_OK);
        for (int32_t i = 0; i < f.step.n_members; i++)
            weight += f.step.members[i].multiplicity;
        assert_int_equal(weight, 12);
        missing += 12 - f.step.n_members;
        arena_done(&a);
    }
    return missing;
}

static void check_ledger(void)
{
    struct ledger *l;
    struct error err;
    struct ledger_state s;
    json_t *audit, *evals;
    char *state;
    const int64_t max_lag[] = {0, MAX_LAG};
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_state_read(l, 1, &s, &err), STATUS_OK);
    assert_int_equal(s.committed_steps, STEPS);
    assert_false(s.has_prepared);
    assert_int_equal(s.version, STEPS);
    assert_int_equal(s.checkpoint.step, STEPS);
    assert_int_equal(ledger_meta_get(l, "state", &state, &err), STATUS_OK);
    assert_string_equal(state, "done");
    free(state);
    enum status rc = ledger_audit(l, max_lag, 2, false, &audit, &err);
    if (rc)
        fail_msg("%s", err.text);
    char *text = json_text(audit);
    if (!json_is_true(json_object_get(audit, "ok")))
        fail_msg("%s", text);
    free(text);
    json_decref(audit);
    // No more was issued than the losses explain: RL groups, a few stale or environment attempts.
    struct ledger_counts c;
    assert_int_equal(ledger_counts_read(l, &c, &err), STATUS_OK);
    assert_int_equal(c.units[UNIT_TRAINED], SFT_STEPS * 6 + RL_STEPS * 12 - n_missing(l));
    assert_in_range(c.units[UNIT_DROPPED], 0, 100);
    assert_int_equal(c.dropped[DROP_SURPLUS],
                     0); // admission ends with the stage; a restart loses nothing that is ready
    assert_int_equal(ledger_eval_summary(l, &evals, &err), STATUS_OK);
    text = json_text(evals);
    for (const char *const *label = (const char *const[]){"\"start\"", "\"stage:sft\"", "\"stage:rl\"", NULL};
         *label; label++)
        if (!strstr(text, *label))
            fail_msg("no evaluation %s in %s", *label, text);
    free(text);
    json_decref(evals);
    ledger_close(l);
}

struct plan {
    int kill_orch_at, kill_task_at; // lines of metrics.jsonl, 0 = never
    int register_at, stop_at;
};

// Plays one sitting of the run; returns the orchestrator's exit code.
static int play(const struct plan *plan)
{
    int64_t start = clock_mono_ms(clock_system());
    bool killed_orch = false, killed_task = false, registered = false, stopped = false;
    int code = -1, broken = 0;
    memset(pids, 0, sizeof pids);
    memset(restarts_of, 0, sizeof restarts_of);
    for (enum who w = ORCH; w <= TASK; w++)
        spawn(w);
    while (code < 0 && !broken && clock_mono_ms(clock_system()) - start < 60000) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid > 0) {
            enum who w = ORCH;
            while (w < WHO_COUNT && pids[w] != pid)
                w++;
            assert_true(w < WHO_COUNT);
            if (w == REGISTER && WIFEXITED(status) && WEXITSTATUS(status) == 0)
                pids[w] = 0;
            else if (WIFEXITED(status) && WEXITSTATUS(status) != 7 && w != ORCH)
                broken = 1 + (int)w;
            else if (w == ORCH && !WIFSIGNALED(status))
                code = WEXITSTATUS(status);
            else {
                restarts_of[w]++;
                spawn(w);
            }
            continue;
        }
        int lines = lines_of("metrics.jsonl");
        if (plan->kill_orch_at && !killed_orch && lines >= plan->kill_orch_at) {
            killed_orch = true;
            kill(pids[ORCH], SIGKILL);
        }
        if (plan->kill_task_at && !killed_task && lines >= plan->kill_task_at) {
            killed_task = true;
            kill(pids[TASK], SIGKILL);
        }
        if (plan->register_at && !registered && lines >= plan->register_at) {
            registered = true;
            spawn(OTHER);
            spawn(REGISTER);
        }
        if (plan->stop_at && !stopped && lines >= plan->stop_at) {
            stopped = true;
            kill(pids[ORCH], SIGTERM);
        }
        usleep(5000);
    }
    for (enum who w = code < 0 ? ORCH : TRAINER; w < WHO_COUNT; w++)
        if (pids[w])
            kill(pids[w], SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    assert_int_equal(broken, 0);
    assert_true(killed_orch == (plan->kill_orch_at > 0) && killed_task == (plan->kill_task_at > 0));
    return code;
}

static void clean_up(void)
{
    struct error err;
    if (!getenv("OOZE_TEST_KEEP"))
        assert_int_equal(file_remove_tree(dir, &err), STATUS_OK);
}

static void test_losses(void **unused)
{
    (void)unused;
    set_up_run();
    faults = LOSSES;
    const struct plan plan = {.kill_orch_at = SFT_STEPS + 4, .kill_task_at = SFT_STEPS + 7};
    assert_int_equal(play(&plan), 0);
    assert_int_equal(restarts_of[ENGINE0], 1);
    assert_int_equal(restarts_of[TRAINER], 2);
    check_ledger();
    clean_up();
}

static void check_state(const char *want, int64_t at_most)
{
    struct ledger *l;
    struct error err;
    struct ledger_state s;
    char *state;
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_state_read(l, 1, &s, &err), STATUS_OK);
    assert_int_equal(ledger_meta_get(l, "state", &state, &err), STATUS_OK);
    assert_string_equal(state, want);
    assert_true(s.committed_steps <= at_most);
    assert_int_equal(s.checkpoint.step, s.committed_steps); // the drain ended in a checkpoint
    free(state);
    ledger_close(l);
}

static int64_t trained_of(const char *task)
{
    struct ledger *l;
    struct error err;
    json_t *rewards;
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_rewards(l, 10000, &rewards, &err), STATUS_OK);
    int64_t n = json_integer_value(json_object_get(json_object_get(rewards, task), "n"));
    json_decref(rewards);
    ledger_close(l);
    return n;
}

// Ctrl-C in the middle, `ooze resume` later; a service registered at run time is part of both sittings.
static void test_stop_and_resume(void **unused)
{
    (void)unused;
    set_up_run();
    faults = NO_FAULTS;
    const struct plan first = {.register_at = SFT_STEPS + 1, .stop_at = SFT_STEPS + 6}, second = {0};
    assert_int_equal(play(&first), 0);
    check_state("stopped", STEPS - 1);
    assert_int_equal(play(&second), 0);
    check_ledger();
    clean_up();
}

// SIGKILL of the orchestrator when the second stage's first groups are out and none of its steps is committed.
static void test_killed_at_boundary(void **unused)
{
    (void)unused;
    set_up_run();
    faults = NO_FAULTS;
    const struct plan plan = {.kill_orch_at = SFT_STEPS + 2}; // the line after the stage's evaluation
    assert_int_equal(play(&plan), 0);
    check_ledger();
    clean_up();
}

// SIGKILL of the orchestrator after the commit of a stage's last step and before the trainer knows of it: the trainer lives on, and
// its checkpoint, which the end of the stage waits for, is still written.
static void test_lost_acknowledgement(void **unused)
{
    (void)unused;
    set_up_run();
    faults = LOST_ACK;
    const struct plan plan = {0};
    assert_int_equal(play(&plan), 0);
    assert_int_equal(restarts_of[ORCH], 1);
    assert_int_equal(restarts_of[TRAINER], 0);
    check_ledger();
    clean_up();
}

// A trainer that does not compute the same bits twice: the run stops and names both hashes.
static void test_conflict_stops_the_run(void **unused)
{
    (void)unused;
    struct ledger *l;
    struct error err;
    char *text;
    set_up_run();
    faults = OTHER_BITS;
    const struct plan plan = {0};
    assert_int_equal(play(&plan), 1);
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_meta_get(l, "last_error", &text, &err), STATUS_OK);
    if (!strstr(text, "recorded weights hash") || !strstr(text, ", now "))
        fail_msg("%s", text);
    free(text);
    ledger_close(l);
    clean_up();
}

// A trainer that answers pings but never its step: fenced when the lease is over; the next one gets the same step. A service
// registered meanwhile has its share of the groups.
static void test_lease(void **unused)
{
    (void)unused;
    set_up_run();
    char with_lease[sizeof config];
    snprintf(with_lease, sizeof with_lease, "%s", config);
    memcpy(strstr(with_lease, "lease_ms: 20000"), "lease_ms: 1500 ", 15);
    put_file("config.yaml", with_lease);
    faults = HANGS;
    const struct plan plan = {.register_at = 1};
    assert_int_equal(play(&plan), 0);
    assert_int_equal(restarts_of[TRAINER], 1);
    check_ledger();
    assert_true(trained_of("pair") > 0 && trained_of("other") > 0);
    clean_up();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_losses),
                                       cmocka_unit_test(test_stop_and_resume),
                                       cmocka_unit_test(test_conflict_stops_the_run),
                                       cmocka_unit_test(test_lease),
                                       cmocka_unit_test(test_killed_at_boundary),
                                       cmocka_unit_test(test_lost_acknowledgement)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
