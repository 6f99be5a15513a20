// base/runconfig.h: files, overrides, errors with their places, rules between keys, round trip,
// documentation.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/runconfig.h"

static char dir[256];
static struct run_config *c, *d;
static struct error err;

#define MODEL "model: {hidden: 64, n_layers: 2, n_heads: 4, ffn: 128}\n"
#define TASK  "tasks:\n  - {name: sort, command: [./task-sort, --hard]}\n"
#define RL    "stages:\n  - {kind: rl}\n"

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/ooze-runconfig-XXXXXX");
    c = mem_must(1, sizeof(*c));
    d = mem_must(1, sizeof(*d));
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    free(c);
    free(d);
    return file_remove_tree(dir, NULL) == STATUS_OK ? 0 : -1;
}

static const char *put(const char *name, const char *text)
{
    static char path[8][600];
    static int turn;
    char *p = path[turn++ % 8];
    snprintf(p, 600, "%s/%s", dir, name);
    assert_int_equal(file_write_atomic(p, text, strlen(text), 0600, &err), STATUS_OK);
    return p;
}

static enum status load(const char *text, const char *override)
{
    const char *path = put("run.yaml", text);
    memset(&err, 0, sizeof(err));
    return runconfig_load(&path, 1, &override, override ? 1 : 0, c, &err);
}

static void refuse(const char *text, const char *override, const char *expected)
{
    assert_int_not_equal(load(text, override), STATUS_OK);
    if (!strstr(err.text, expected))
        fail_msg("expected \"%s\" in \"%s\"", expected, err.text);
}

static void accept(const char *text, const char *override)
{
    if (load(text, override) != STATUS_OK)
        fail_msg("refused: %s", err.text);
}

static void test_defaults(void **state)
{
    (void)state;
    accept(MODEL TASK RL, NULL);
    const struct run_stage *s = &c->stages[0];
    assert_string_equal(c->run_dir, "runs/run");
    assert_string_equal(s->name, "rl");
    assert_string_equal(c->model.tokenizer, "bytes");
    assert_string_equal(c->model.chat_template, "tiny");
    assert_string_equal(c->model.arch, "llama");
    assert_int_equal(c->model.head_dim, 16);
    assert_int_equal(c->model.n_kv_heads, 4);
    assert_int_equal(c->model.vocab, 256);
    assert_int_equal(c->rollout.dtype, RUN_FP8);
    assert_int_equal(c->rollout.kv_on_refit, RUN_KV_RECOMPUTE);
    assert_int_equal(c->rollout.kv_dtype, RUN_KV_DTYPE_AUTO);
    assert_int_equal(c->trainer.dtype, RUN_BF16);
    assert_int_equal(s->loss, RUN_LOSS_TWO_SIDED_IS);
    assert_int_equal(s->aggregation, RUN_AGG_TOKEN_MEAN);
    assert_true(s->eps_low == 0.2 && s->eps_high == 0.28 && s->beta == 2);
    assert_int_equal(c->trainer.keep_weights, s->max_lag + 2);
    assert_true(c->check.every == 20 && c->check.share == 0.25 && c->check.band == 0.05);
    assert_int_equal(c->check.numerics, RUN_NUMERICS_STRICT);
    char expected[600], real[256];
    assert_non_null(realpath(dir, real));
    snprintf(expected, sizeof(expected), "%s/./task-sort", real);
    assert_string_equal(c->tasks[0].command[0], expected);
    assert_string_equal(c->tasks[0].command[1], "--hard");
    assert_int_equal(c->tasks[0].n_command, 2);
}

static void test_aggregation_follows_loss(void **state)
{
    (void)state;
    accept(MODEL TASK RL, "stages.rl.loss=icepop");
    assert_int_equal(c->stages[0].aggregation, RUN_AGG_SEQUENCE_MEAN);
    accept(MODEL TASK RL, "stages.rl.loss=ppo_clip");
    assert_int_equal(c->stages[0].aggregation, RUN_AGG_TOKEN_MEAN);
    accept(MODEL TASK "stages: [{kind: rl, loss: icepop, aggregation: group_mean}]", NULL);
    assert_int_equal(c->stages[0].aggregation, RUN_AGG_GROUP_MEAN);
    accept(MODEL "stages: [{kind: sft, data: a.jsonl}]", NULL);
    assert_int_equal(c->stages[0].loss, RUN_LOSS_SFT);
    assert_int_equal(c->stages[0].aggregation, RUN_AGG_TOKEN_MEAN);
}

static void test_order(void **state)
{
    (void)state;
    const char *files[] = {put("a.yaml", "seed: 1\ntrainer: {dtype: bf16, threads: 3}\n" MODEL TASK RL),
                           put("b.yaml", "seed: 2\ntrainer: {dtype: f32}\nstages: {rl: {steps: 7}}\n")};
    const char *overrides[] = {"seed=3",
                               "stages.0.group_size=4",
                               "tasks.sort.ratio=2.5",
                               "seed=18446744073709551615",
                               "tasks.sort.command=[python3, x.py]",
                               "stages.rl.optimizer.lr=1e-6"};
    if (runconfig_load(files, 2, overrides, 6, c, &err) != STATUS_OK)
        fail_msg("%s", err.text);
    assert_true(c->seed == UINT64_MAX);
    assert_int_equal(c->trainer.dtype, RUN_F32);
    assert_int_equal(c->trainer.threads, 3);
    assert_int_equal(c->n_stages, 1);
    assert_int_equal(c->stages[0].steps, 7);
    assert_int_equal(c->stages[0].group_size, 4);
    assert_true(c->stages[0].optimizer.lr == 1e-6);
    assert_true(c->tasks[0].ratio == 2.5);
    assert_string_equal(c->tasks[0].command[0], "python3");
    assert_string_equal(c->tasks[0].command[1], "x.py");
}

static void test_syntax_errors(void **state)
{
    (void)state;
    refuse("seed: 1\nseed: 2\n", NULL, "run.yaml:2:1: key 'seed' is given twice, first on line 1");
    refuse("seed: 1\nrollout:\n  kv_token: 5\n", NULL,
           "run.yaml:3:3: unknown key 'rollout.kv_token'; did you mean 'kv_tokens'?");
    refuse("trainer: {lr: 1}\n", NULL, "did you mean 'stages.NAME.optimizer.lr'?");
    refuse("stages:\n- kind: rl\n  optimiser: {lr: 1}\n", NULL,
           "run.yaml:3:3: unknown key 'stages.0.optimiser'; did you mean 'optimizer'?");
    refuse("zzzzzzzz: 1\n", NULL, "docs/configuration.md");
    refuse("seed: one\n", NULL, "run.yaml:1:7: seed: 'one' is not a whole number");
    refuse("seed: \"1\"\n", NULL, "not a whole number");
    refuse("seed: -1\n", NULL, "not a whole number");
    refuse("seed: 18446744073709551616\n", NULL, "not a whole number");
    refuse("seed: [1]\n", NULL, "one value expected");
    refuse("seed:\n", NULL, "no value given");
    refuse("eval: {temperature: nan}\n", NULL, "not a number");
    refuse("eval: {temperature: 0x10}\n", NULL, "not a number");
    refuse("eval: {temperature: 1e999}\n", NULL, "not a number");
    refuse("eval: {temperature: -0.5}\n", NULL, "out of range: at least 0");
    refuse("rollout: {engines: 65}\n", NULL,
           "run.yaml:1:20: rollout.engines: 65 is out of range: at least 1 and at most 64");
    refuse("rollout: {http: yes}\n", NULL, "true or false");
    refuse("rollout: {dtype: int4}\n", NULL, "'int4' is not one of f32, bf16, fp8");
    refuse("trainer: {dtype: fp8}\n", NULL, "'fp8' is not one of f32, bf16");
    refuse("rollout: 5\n", NULL, "rollout: a map of keys expected");
    refuse("- 1\n", NULL, "a map of keys expected");
    refuse("a: &x 1\n", NULL, "anchors");
    refuse("a: *x\n", NULL, "alias");
    refuse("a: !!int 1\n", NULL, "tags");
    refuse("seed: 1\n---\nseed: 2\n", NULL, "second document");
    refuse("seed: {\n", NULL, "run.yaml:");
    refuse("seed: 1\nname: \"\xff\"\n", NULL, "run.yaml:2:8: invalid leading UTF-8 octet");
    refuse("name: \"a b\"\n", NULL, "letters, digits");
    refuse("name: a\tb: c\n", NULL, "run.yaml:1");
    char deep[400];
    memset(deep, '[', sizeof(deep) - 1);
    deep[sizeof(deep) - 1] = 0;
    refuse(deep, NULL, "nested deeper than 64");
    refuse("tasks: {sort: {ratio: 1}}\n", NULL, "no member 'sort'");
    refuse(MODEL TASK RL, "stages.1.steps=3", "no member '1' among the 1 given before");
    refuse(MODEL TASK RL, "stages.rl.stepps=3",
           "override 'stages.rl.stepps=3': unknown key 'stages.rl.stepps'; did you mean 'steps'?");
    refuse(MODEL TASK RL, "seed", "write KEY=VALUE");
    refuse(MODEL TASK RL, ".seed=1", "write KEY=VALUE");
    refuse(MODEL TASK RL, "eval..n=1", "unknown key");
    refuse(MODEL TASK RL, "seed={", "override 'seed={'");
    refuse(MODEL TASK RL, "trainer.threads=2000",
           "override 'trainer.threads=2000': trainer.threads: 2000 is out of range");
    const char *missing = "/nonexistent/run.yaml";
    assert_int_equal(runconfig_load(&missing, 1, NULL, 0, c, &err), STATUS_NOTFOUND);
}

static void test_rules(void **state)
{
    (void)state;
    refuse("seed: 1\n", NULL, "stages: a run needs at least one stage");
    refuse(TASK RL, NULL, "model.hidden: missing");
    refuse("model: {hidden: 65, n_layers: 2, n_heads: 4, ffn: 128}\n" TASK RL, NULL,
           "run.yaml:1:43: model.n_heads: 4 does not divide hidden 65");
    refuse("model: {hidden: 12, n_layers: 2, n_heads: 4, ffn: 128}\n" TASK RL, NULL, "is odd");
    refuse(MODEL TASK RL, "model.n_kv_heads=3", "does not divide n_heads");
    refuse("model: {path: m, hidden: 64}\n" TASK RL, NULL, "run.yaml:1:26: model.hidden");
    refuse(MODEL TASK RL, "model.vocab=100", "model.vocab");
    refuse(MODEL TASK RL, "model.tokenizer=./tok", "model.vocab: missing");
    refuse(MODEL TASK RL, "model.specials=[A, A]", "given twice");
    refuse(MODEL RL, NULL, "needs tasks");
    refuse(MODEL TASK RL, "stages.rl.group_size=1",
           "override 'stages.rl.group_size=1': stages.rl.group_size: grpo and rloo");
    accept(MODEL TASK "stages: [{group_size: 1, advantage: group_centered}]", NULL);
    refuse(MODEL TASK RL, "stages.rl.loss=sft", "loss of sft stages");
    refuse(MODEL TASK RL, "stages.rl.sampling.temperature=0", "training needs more than 0");
    refuse(MODEL TASK RL, "stages.rl.sampling.top_k=5", "training needs 0");
    refuse(MODEL TASK RL, "stages.rl.sampling.top_p=0.9", "training needs 1");
    refuse(MODEL TASK RL, "stages.rl.sampling.min_p=0.1", "training needs 0");
    refuse(MODEL TASK RL, "stages.rl.updates_per_batch=0", "out of range");
    refuse(MODEL TASK RL, "stages.rl.max_context=5000", "model.max_position 4096");
    refuse(MODEL TASK RL, "trainer.micro_batch_tokens=64", "do not fit trainer.micro_batch_tokens 64");
    refuse(MODEL TASK RL, "check.share=0", "check.share");
    refuse(MODEL TASK RL, "check.numerics=loose", "strict");
    refuse(MODEL TASK RL, "rollout.kv_tokens=1024", "rollout.kv_tokens 1024");
    refuse(MODEL TASK RL, "rollout.page_tokens=48", "power of two");
    refuse(MODEL TASK RL, "rollout.prefill_chunk=1000", "max_batch_tokens");
    refuse(MODEL TASK RL, "trainer.keep_weights=3", "max_lag + 2 = 4");
    refuse(MODEL TASK RL, "orchestrator.silence_ms=500", "silence_ms");
    refuse(MODEL TASK RL, "orchestrator.listen=ipc:///x", "tcp://");
    refuse(MODEL TASK RL, "stages.rl.optimizer.warmup_steps=101", "warmup_steps");
    refuse(MODEL "stages:\n  - kind: sft\n", NULL, "run.yaml:3:5: stages.sft.data");
    refuse(MODEL "stages: [{kind: sft, data: x, loss: icepop}]", NULL, "not icepop");
    refuse(MODEL TASK "stages: [{}, {}]", NULL, "'rl' names stage 0 already");
    refuse(MODEL "tasks: [{command: [x]}]\n" RL, NULL, "a task needs a name");
    refuse(MODEL "tasks: [{name: a}]\n" RL, NULL, "needs a url or a command");
    refuse(MODEL "tasks: [{name: a, url: 'http://x', command: [b]}]\n" RL, NULL, "not both");
    refuse(MODEL "tasks: [{name: a, url: 'file:///x'}]\n" RL, NULL, "does not start with http://");
    refuse(MODEL "tasks: [{name: a, url: 'http://x'}, {name: a, url: 'http://y'}]\n" RL, NULL,
           "names task 0 already");
}

static void test_nothing_written_on_failure(void **state)
{
    (void)state;
    memset(c, 0x5a, sizeof(*c));
    memset(d, 0x5a, sizeof(*d));
    refuse(MODEL TASK RL "seed: x\n", NULL, "seed");
    assert_memory_equal(c, d, sizeof(*c));
}

static void round_trip(void)
{
    struct buf b = {0};
    runconfig_print(c, &b);
    const char *path = put("config.yaml", b.data);
    if (runconfig_load(&path, 1, NULL, 0, d, &err) != STATUS_OK)
        fail_msg("%s\n%s", err.text, b.data);
    assert_memory_equal(c, d, sizeof(*c));
    assert_int_equal(runconfig_load_run(dir, d, &err), STATUS_OK);
    assert_string_equal(d->run_dir, dir);
    memcpy(d->run_dir, c->run_dir, sizeof(d->run_dir));
    assert_memory_equal(c, d, sizeof(*c));
    buf_done(&b);
}

static void test_round_trip(void **state)
{
    (void)state;
    accept(MODEL TASK RL, NULL);
    round_trip();
    accept("name: x1\nseed: 18446744073709551615\nmodel: {path: ../m}\n"
           "tasks:\n- {name: a, url: 'http://h:1/?\"q\\\\\"', ratio: 0.1}\n"
           "- {name: b, command: [\"./p q\", \"\", \"tab\\there \\u00e9\"], ratio: 3.3333333333333335}\n"
           "stages:\n- {kind: sft, data: d.jsonl, optimizer: {lr: 0.00012345678901234567}}\n"
           "- {name: r2, loss: icepop, permute_rewards: true, eps_high: 1e-9, max_lag: 9}\n"
           "rollout: {http: true, dtype: bf16}\n",
           NULL);
    assert_string_equal(c->tasks[1].command[2], "tab\there \xc3\xa9");
    round_trip();
    accept("model: {hidden: 64, n_layers: 2, n_heads: 4, ffn: 128, specials: ['[A]', \"<|b|>\"]}\n" TASK RL,
           NULL);
    assert_int_equal(c->model.vocab, 258);
    round_trip();
}

static void test_docs_match(void **state)
{
    (void)state;
    const char *root = getenv("OOZE_SOURCE_DIR");
    if (!root)
        skip();
    char path[1024], *text = NULL;
    size_t n = 0;
    struct buf b = {0};
    runconfig_print_docs(&b);
    snprintf(path, sizeof(path), "%s/docs/configuration.md", root);
    if (getenv("OOZE_WRITE_DOCS"))
        assert_int_equal(file_write_atomic(path, b.data, b.len, 0644, &err), STATUS_OK);
    assert_int_equal(file_read(path, 1 << 20, &text, &n, &err), STATUS_OK);
    if (n != b.len || memcmp(text, b.data, n) != 0)
        fail_msg("%s is out of date: run this test with OOZE_WRITE_DOCS=1 and commit", path);
    free(text);
    buf_done(&b);
}

static void test_socket(void **state)
{
    (void)state;
    char a[512], b[512], deep[512];
    struct stat st;
    assert_int_equal(run_socket(dir, "orchestrator", a, sizeof(a), &err), STATUS_OK);
    assert_non_null(strstr(a, "/sock/orchestrator"));
    a[strlen(a) - strlen("/orchestrator")] = 0;
    assert_int_equal(stat(a, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    // a run directory too deep: a short folder, the same whatever XDG_RUNTIME_DIR says later
    snprintf(deep, sizeof(deep), "%s/%0150d", dir, 7);
    assert_int_equal(file_mkdirs(deep, 0700, &err), STATUS_OK);
    setenv("XDG_RUNTIME_DIR", dir, 1);
    assert_int_equal(run_socket(deep, "orchestrator", a, sizeof(a), &err), STATUS_OK);
    assert_true(strlen(a) < 108);
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(run_socket(deep, "orchestrator", b, sizeof(b), &err), STATUS_OK);
    assert_string_equal(a, b);
    assert_int_not_equal(run_socket(dir, "a/b", a, sizeof(a), &err), STATUS_OK);
    assert_int_not_equal(run_socket(dir, "x", a, 10, &err), STATUS_OK);
    assert_int_equal(run_socket("/nonexistent", "x", a, sizeof(a), &err), STATUS_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),   cmocka_unit_test(test_aggregation_follows_loss),
        cmocka_unit_test(test_order),      cmocka_unit_test(test_syntax_errors),
        cmocka_unit_test(test_rules),      cmocka_unit_test(test_nothing_written_on_failure),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_docs_match),
        cmocka_unit_test(test_socket),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
