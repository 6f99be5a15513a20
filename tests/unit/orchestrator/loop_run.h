// A run of the real orchestrator among fakes: its folder, its processes, what happens to them, and what the ledger must say of it
// afterwards.
#ifndef TESTS_LOOP_RUN_H
#define TESTS_LOOP_RUN_H

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/log.h"
#include "fake_engine.h"
#include "fake_peer.h"
#include "fake_task.h"
#include "fake_trainer.h"
#include "ledger/reader.h"
#include "orchestrator/orch.h"

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

static const char *check_config =
    "check: {every: 0}\n"; // without checks a line of metrics.jsonl is a step or an evaluation
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
    char whole[sizeof config + 100];
    snprintf(whole, sizeof whole, "%s%s", config, check_config);
    put_file("config.yaml", whole);
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

static inline void check_ledger(void)
{
    struct ledger *l;
    struct error err;
    struct ledger_state s;
    json_t *audit, *evals;
    char *state;
    const int64_t max_lag[] = {0, MAX_LAG};
    assert_int_equal(ledger_open_readonly(dir, &l, &err), STATUS_OK);
    assert_int_equal(ledger_state_read(l, &s, &err), STATUS_OK);
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
static inline int play(const struct plan *plan)
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

#endif
