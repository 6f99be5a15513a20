// What an orchestrator finds again in the ledger of the one before: tasks that were removed, registered or late, the rows of a supervised
// stage, checkpoints that may go and are still there, an evaluation that was cut short.
#include "loop_run.h"

#include "orchestrator/sampler.h"
#include "orchestrator/sft.h"

#define URL "http://127.0.0.1:9"

static struct orch *opened(void)
{
    struct orch_options opt = {.run_dir = dir};
    struct orch *o;
    struct error err;
    log_init("orchestrator", LOG_ERROR);
    if (orch_open(&opt, &o, &err))
        fail_msg("%s", err.text);
    return o;
}

static struct orch *reopened(struct orch *o)
{
    assert_true(journal_flush(o, true));
    orch_close(o);
    return opened();
}

static void registered(struct orch *o, const char *name, double ratio, int ttl_s)
{
    struct error err;
    json_t *args =
        json_pack("{s:s, s:s, s:f, s:i}", "name", name, "url", URL, "ratio", ratio, "ttl_s", ttl_s);
    if (task_register(o, args, "cli", &err))
        fail_msg("%s", err.text);
    json_decref(args);
}

static void test_tasks(void **unused)
{
    (void)unused;
    struct error err;
    set_up_run();
    struct orch *o = opened();
    struct task *t = tasks_by_name(o, "pair");
    assert_string_equal(t->origin, "config");
    assert_int_equal(task_remove(o, "pair", "asked", &err), STATUS_OK);
    registered(o, "leased", 2, 100);
    registered(o, "late", 3, 0);
    o = reopened(o);
    assert_int_equal(tasks_by_name(o, "pair")->state, TASK_REMOVED); // though the configuration names it
    t = tasks_by_name(o, "leased");
    assert_int_equal(t->state, TASK_WAIT);
    assert_true(t->cfg.ratio == 2 && !strcmp(t->cfg.url, URL) && !strcmp(t->origin, "cli"));
    assert_in_range(t->ttl_deadline_ms - orch_now(o), 90000, 100000);
    assert_int_equal(tasks_by_name(o, "late")->ttl_deadline_ms, 0);

    // A task of the configuration that is registered again is that registration's from then on, with patience of its own.
    t = tasks_by_name(o, "pair");
    t->wait_since_ms = -1;
    registered(o, "pair", 5, 0);
    assert_true(t->wait_since_ms >= 0);
    assert_string_equal(t->origin, "cli");
    assert_true(tasks_all_up(o)); // nothing waits for it
    o = reopened(o);
    t = tasks_by_name(o, "pair");
    assert_int_equal(t->state, TASK_WAIT);
    assert_true(t->cfg.ratio == 5 && !strcmp(t->cfg.url, URL) && !strcmp(t->origin, "cli"));
    orch_close(o);
    clean_up();
}

static void share(struct orch *o, const char *name, int64_t cursor, double pass)
{
    struct task *t = tasks_by_name(o, name);
    struct error err;
    t->cursor = cursor;
    t->pass = pass;
    assert_int_equal(journal_begin(o, &err), STATUS_OK);
    assert_int_equal(sampler_save(o, t, &err), STATUS_OK);
}

// A late joiner stands where the others stood then; one that was down stands where they are now.
static void test_shares(void **unused)
{
    (void)unused;
    struct error err;
    set_up_run();
    struct orch *o = opened();
    registered(o, "late", 2, 0);
    registered(o, "down", 1, 0);
    registered(o, "new", 1, 0);
    share(o, "pair", 10000, 10000);
    share(o, "late", 100, 10000.5);
    share(o, "down", 7, 7);
    o = reopened(o);
    assert_true(tasks_by_name(o, "pair")->pass == 10000 && tasks_by_name(o, "pair")->cursor == 10000);
    assert_true(tasks_by_name(o, "late")->pass == 10000.5 && tasks_by_name(o, "late")->cursor == 100);
    assert_true(tasks_by_name(o, "down")->pass == 10000 && tasks_by_name(o, "down")->cursor == 7);
    assert_true(tasks_by_name(o, "new")->pass == 10000);
    // of before the pass was kept
    assert_int_equal(journal_begin(o, &err), STATUS_OK);
    for (const char *const *key =
             (const char *const[]){"prompt_cursor/pair", "prompt_cursor/late", "prompt_cursor/down", NULL};
         *key; key++)
        assert_int_equal(ledger_meta_set(o->ledger, *key, "40", &err), STATUS_OK);
    o = reopened(o);
    assert_true(tasks_by_name(o, "pair")->pass == 40 && tasks_by_name(o, "down")->pass == 40);
    assert_int_equal(tasks_by_name(o, "late")->cursor, 40);
    orch_close(o);
    clean_up();
}

static void test_rows(void **unused)
{
    (void)unused;
    struct error err;
    set_up_run();
    struct orch *o = opened();
    assert_int_equal(sft_open(o, &err), STATUS_OK);
    o = reopened(o);
    assert_int_equal(sft_open(o, &err), STATUS_OK);
    o = reopened(o);
    char path[400], *rows;
    size_t n;
    snprintf(path, sizeof path, "%s/rows.jsonl", dir);
    assert_int_equal(file_read(path, 1 << 20, &rows, &n, &err), STATUS_OK);
    *strstr(rows, "x9") = 'y';
    put_file("rows.jsonl", rows);
    free(rows);
    assert_int_equal(sft_open(o, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "rows.jsonl gives other tokens"));
    orch_close(o);
    clean_up();
}

static void written(struct orch *o, int64_t step)
{
    char path[400];
    struct error err;
    struct peer nobody = {0}; // the reply is lost
    snprintf(path, sizeof path, "%s/checkpoints/step-%lld", dir, (long long)step);
    assert_int_equal(file_mkdirs(path, 0700, &err), STATUS_OK);
    struct msg_checkpoint m = {.epoch = o->trainer.epoch, .step = step, .path = path, .hash = "00"};
    o->committed_steps = step;
    trainer_on_checkpoint(o, &nobody, &m);
    assert_false(o->failed);
}

static bool may_go(const struct orch *o, const char *name)
{
    for (int i = 0; i < o->trainer.n_pruned; i++)
        if (strstr(o->trainer.pruned[i], name))
            return true;
    return false;
}

// keep_last is 2; step 4 ends a stage. What may go is said again until it is gone, also by the next incarnation.
static void test_checkpoints(void **unused)
{
    (void)unused;
    char path[400];
    struct error err;
    set_up_run();
    struct orch *o = opened();
    for (int64_t step = 2; step <= 6; step++)
        written(o, step);
    assert_int_equal(o->trainer.n_pruned, 2);
    assert_true(may_go(o, "step-2") && may_go(o, "step-3"));
    o = reopened(o);
    assert_true(may_go(o, "step-2") && may_go(o, "step-3"));
    snprintf(path, sizeof path, "%s/checkpoints/step-2", dir);
    assert_int_equal(file_remove_tree(path, &err), STATUS_OK);
    written(o, 7);
    assert_int_equal(o->trainer.n_pruned, 2);
    assert_true(may_go(o, "step-3") && may_go(o, "step-5"));
    written(o, 3); // a replay wrote it again
    assert_false(may_go(o, "step-3") && trainer_has_checkpoint(o, 3));
    orch_close(o);
    clean_up();
}

// Enters the rl stage at `committed` with the weights of `version`; true when an evaluation began.
static bool evaluates(struct orch *o, int64_t committed, int64_t version)
{
    o->committed_steps = committed;
    o->weights.version = version;
    o->eval.running = o->stage.entered = false;
    tasks_by_name(o, "pair")->ever_up = true;
    tasks_by_name(o, "pair")->n_eval = 5;
    stage_advance(o);
    assert_true(stage_training(o));
    return o->eval.running;
}

// eval.every is 4, the rl stage begins at step 4 and ends at 14.
static void test_evaluation(void **unused)
{
    (void)unused;
    struct error err;
    set_up_run();
    struct orch *o = opened();
    assert_false(evaluates(o, 7, 7)); // none was due
    assert_true(evaluates(o, 8, 8));
    assert_string_equal(o->eval.label, "step:8");
    assert_int_equal(o->eval.n, 6);   // its task is asked although it is down
    assert_false(evaluates(o, 9, 9)); // too late for it
    assert_int_equal(journal_begin(o, &err), STATUS_OK);
    assert_int_equal(ledger_meta_set(o->ledger, "eval/step:8", "8", &err), STATUS_OK);
    assert_false(evaluates(o, 8, 8)); // it was done
    assert_true(evaluates(o, 12, 12));
    orch_close(o);
    clean_up();
}

// The file ends with half a line, and lacks those of steps 1 and 2.
static void test_metrics(void **unused)
{
    (void)unused;
    struct error err;
    char path[400], line[128], *text;
    size_t n;
    set_up_run();
    struct orch *o = opened();
    const int32_t ids[] = {1, 2};
    assert_int_equal(journal_begin(o, &err), STATUS_OK);
    for (int64_t i = 0; i < 3; i++) {
        struct ledger_member m = {.trajectory = i, .multiplicity = 1, .advantage = 1};
        struct ledger_step step = {.step = i, .lr = 1, .updates = 1, .n_members = 1, .members = &m};
        struct ledger_weights w = {.version = i + 1, .hash = "00", .path = "", .bytes = 1};
        struct ledger_piece p = {.trajectory = i, .kind = PIECE_TARGET, .n = 2, .ids = ids};
        snprintf(line, sizeof line, "{\"step\":%d,\"wall_ms\":5,\"applied\":true,\"train/loss\":%d}", (int)i,
                 (int)i + 7);
        assert_int_equal(
            ledger_group_add(o->ledger, &(struct ledger_group){.id = i, .task = -1, .size = 1}, &err), 0);
        assert_int_equal(
            ledger_unit_add(
                o->ledger,
                &(struct ledger_unit){.trajectory = i, .group = i, .task = -1, .source = SOURCE_SFT}, &err),
            0);
        assert_int_equal(ledger_piece_add(o->ledger, &p, &err), 0);
        assert_int_equal(ledger_unit_ready(o->ledger, i, 0, 1, &err), 0);
        assert_int_equal(ledger_step_prepare(o->ledger, &step, &err), 0);
        assert_int_equal(ledger_step_commit(o->ledger, i, true, NULL, &w, line, &err), 0);
    }
    static const char *const files[] = {
        "{\"step\":0,\"applied\":true}\n{\"step\":9,\"label\":\"x\"}\n{\"step\":1,\"app",
        "{\"step\":0,\"appl", ""};
    for (int i = 0; i < 3; i++) {
        assert_true(journal_flush(o, true));
        orch_close(o);
        put_file("metrics.jsonl", files[i]);
        o = opened();
        snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
        assert_int_equal(file_read(path, 1 << 20, &text, &n, &err), STATUS_OK);
        assert_int_equal(lines_of("metrics.jsonl"), i == 0 ? 4 : 3);
        assert_null(strstr(text, "app{"));
        assert_null(strstr(text, "appl{"));
        assert_non_null(strstr(text, "\"train/loss\":8"));
        assert_non_null(strstr(text, "\"train/loss\":9}\n"));
        free(text);
        struct orch *again = reopened(o); // nothing is missing now
        assert_int_equal(lines_of("metrics.jsonl"), i == 0 ? 4 : 3);
        o = again;
    }
    orch_close(o);
    clean_up();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tasks),      cmocka_unit_test(test_shares),
                                       cmocka_unit_test(test_rows),       cmocka_unit_test(test_checkpoints),
                                       cmocka_unit_test(test_evaluation), cmocka_unit_test(test_metrics)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
