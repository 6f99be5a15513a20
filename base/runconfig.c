// The table of a run's configuration: every key once, with its place in struct run_config, range, default and
// meaning. base/config.c reads and prints by it, base/runconfig_rules.c checks what concerns several keys.
// See runconfig.h. Pure functions, any thread.
#include "base/runconfig.h"

#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/config.h"
#include "base/file.h"
#include "base/runconfig_rules.h"

#define CONFIG_BYTES ((size_t)4 << 20)
#define SIZEOF(s, m) sizeof(((struct s *)0)->m)

// One row each; the member's name is the key's path. T is the struct of the table at hand.
#define ROW(key, kind, ...)                                                                                  \
    {                                                                                                        \
        .path = #key, .type = kind, .offset = offsetof(struct T, key), __VA_ARGS__                           \
    }
#define INT(key, lo, hi, d, text) ROW(key, CONFIG_INT, .min = lo, .max = hi, .def = d, .doc = text)
#define U64(key, d, text)         ROW(key, CONFIG_U64, .min = 0, .max = 18446744073709551615.0, .def = d, .doc = text)
#define REAL(key, lo, hi, fl, d, text)                                                                       \
    ROW(key, CONFIG_REAL, .min = lo, .max = hi, .flags = fl, .def = d, .doc = text)
#define BOOL(key, d, text) ROW(key, CONFIG_BOOL, .def = d, .doc = text)
#define TEXT(key, fl, d, text)                                                                               \
    ROW(key, CONFIG_STRING, .size = SIZEOF(T, key), .flags = fl, .def = d, .doc = text)
#define CHOICE(key, list, d, text)                                                                           \
    ROW(key, CONFIG_STRING, .size = SIZEOF(T, key), .names = list, .def = d, .doc = text)
#define ENUM(key, list, d, text) ROW(key, CONFIG_ENUM, .names = list, .def = d, .doc = text)
#define TEXTS(key, count, most, fl, text)                                                                    \
    ROW(key, CONFIG_STRINGS, .size = SIZEOF(T, key[0]), .count_offset = offsetof(struct T, count),           \
        .max_items = most, .flags = fl, .doc = text)
#define LIST(key, count, most, schema, text)                                                                 \
    ROW(key, CONFIG_LIST, .size = SIZEOF(T, key[0]), .count_offset = offsetof(struct T, count),              \
        .max_items = most, .item = schema, .doc = text)

#define BILLION 1e9
#define DAY_MS  86400e3
#define OPEN    (CONFIG_ABOVE_MIN | CONFIG_BELOW_MAX)

static const char *const dtypes[] = {"f32", "bf16", "fp8", NULL}; // enum run_dtype
static const char *const train_dtypes[] = {"f32", "bf16", NULL};  // its trainable part
static const char *const losses[] = {"two_sided_is", "icepop", "ppo_clip", "sft", NULL};
static const char *const aggregations[] = {"default", "token_mean", "sequence_mean", "group_mean", NULL};
static const char *const denominators[] = {"all_tokens", "kept_tokens", NULL};
static const char *const old_logprobs[] = {"recompute", "rollout", NULL};
static const char *const advantages[] = {"grpo", "group_centered", "rloo", "reinforce_pp", NULL};
static const char *const schedules[] = {"constant", "linear", "cosine", NULL};
static const char *const zero_variances[] = {"keep", "drop", NULL};
static const char *const on_stales[] = {"wait", "drop", NULL};
static const char *const stage_kinds[] = {"sft", "rl", NULL};
static const char *const kv_dtypes[] = {"auto", "f32", "bf16", "fp8", NULL};
static const char *const kv_on_refits[] = {"keep", "recompute", NULL};
static const char *const recomputes[] = {"false", "true", "auto", NULL};
static const char *const numerics[] = {"strict", "relaxed", NULL};
static const char *const archs[] = {"", "llama", "qwen2", "qwen3", NULL};
static const char *const templates[] = {"auto", "chatml", "llama3", "qwen", "glm", "tiny", NULL};
static const char *const isas[] = {"auto", "ref", "avx2", "avx512", "avx512bf16", "amx", NULL};

#define T run_stage
static const struct config_field stage_fields[] = {
    TEXT(name, CONFIG_WORD, "(the kind)",
         "Name of the stage, unique in the run; the handle in overrides (`stages.NAME.steps=10`) and "
         "reports."),
    ENUM(kind, stage_kinds, "rl",
         "`sft` learns from recorded conversations, `rl` from episodes with the tasks."),
    INT(steps, 1, BILLION, "100",
        "Length of the stage, in steps; each step makes one new version of the weights. A stage ends in a "
        "checkpoint that the next one starts from."),
    ENUM(loss, losses, "(`sft` in sft stages, else `two_sided_is`)", "Loss per token (docs/algorithms.md)."),
    ENUM(aggregation, aggregations, "default",
         "How the terms of the tokens become one number over the global batch; `default` is `sequence_mean` "
         "for icepop, else `token_mean`."),
    ENUM(denominator, denominators, "all_tokens",
         "Whether tokens masked by the trust region still count in the denominator."),
    ENUM(old_logprob, old_logprobs, "recompute",
         "ppo_clip and icepop: the old logprob is recomputed by the trainer before the step, or taken as the "
         "rollout recorded it (ppo_clip only)."),
    REAL(eps_low, 0, 1, OPEN, "0.2", "The ratio of a token may fall to 1 - eps_low."),
    REAL(eps_high, 0, 100, CONFIG_ABOVE_MIN, "0.28", "The ratio of a token may rise to 1 + eps_high."),
    REAL(beta, 1, 1000, 0, "2",
         "icepop: tokens count while trainer and rollout probability differ by at most this factor."),
    REAL(entropy_coef, 0, 10, 0, "0", "Weight of an entropy bonus in the loss, per token; 0 = none."),
    INT(updates_per_batch, 1, 64, "1", "Optimizer updates that one step is split into."),
    REAL(optimizer.lr, 0, 1, CONFIG_ABOVE_MIN, "1e-5", "AdamW: peak learning rate."),
    REAL(optimizer.beta1, 0, 1, CONFIG_BELOW_MAX, "0.9", "AdamW: decay of the first moment."),
    REAL(optimizer.beta2, 0, 1, CONFIG_BELOW_MAX, "0.95", "AdamW: decay of the second moment."),
    REAL(optimizer.eps, 0, 1, CONFIG_ABOVE_MIN, "1e-8", "AdamW: added to the root of the second moment."),
    REAL(optimizer.weight_decay, 0, 10, 0, "0",
         "AdamW: decoupled weight decay of matrices; norms and biases have none."),
    REAL(optimizer.clip_grad_norm, 0, 1e6, 0, "1",
         "Gradients are scaled down to this global norm; 0 = no clipping."),
    INT(optimizer.warmup_steps, 0, BILLION, "0", "Steps over which the learning rate rises linearly from 0."),
    ENUM(optimizer.schedule, schedules, "constant",
         "Course of the learning rate after the warm-up, to the end of the stage."),
    REAL(optimizer.final_lr_ratio, 0, 1, 0, "0.1",
         "linear, cosine: learning rate at the end of the stage over `lr`."),
    BOOL(optimizer.reset_on_sync, "false",
         "Clear the optimizer's moments after each push of weights to the engines."),
    INT(groups_per_step, 1, 1 << 16, "16", "rl: groups of answers that one step consumes."),
    INT(group_size, 1, 1024, "8", "rl: answers per prompt, a group; grpo and rloo need at least 2."),
    ENUM(advantage, advantages, "grpo", "rl: how rewards become advantages (docs/algorithms.md)."),
    ENUM(zero_variance, zero_variances, "drop",
         "rl: whether groups whose rewards are all equal (advantage 0) are trained or dropped."),
    INT(max_lag, 0, 1000, "2",
        "rl: most versions that the weights may advance, in steps, between sampling a token and training on "
        "it; 0 = fully synchronous."),
    ENUM(on_stale, on_stales, "wait",
         "rl: `wait` holds a step for trajectories that the next would make stale, `drop` never waits."),
    INT(stale_wait_ms, 0, DAY_MS, "60000",
        "rl: how long `on_stale: wait` holds a step at most, in milliseconds."),
    INT(sync_interval, 1, 1000, "1", "rl: weights are pushed to the engines every so many steps."),
    INT(max_context, 0, 1 << 20, "0",
        "rl: most tokens of one segment, prompt included; 0 = 4096, or the model's positions if they are "
        "fewer."),
    BOOL(permute_rewards, "false",
         "rl: control experiment, rewards are permuted at random within each group."),
    REAL(sampling.temperature, 0, 100, 0, "1", "rl: sampling temperature; training needs more than 0."),
    REAL(sampling.top_p, 0, 1, CONFIG_ABOVE_MIN, "1",
         "rl: nucleus; training needs 1 (= off), since truncation biases every ratio."),
    REAL(sampling.min_p, 0, 1, 0, "0",
         "rl: least probability relative to the likeliest; training needs 0 (= off)."),
    INT(sampling.top_k, 0, 1 << 20, "0", "rl: likeliest tokens to sample from; training needs 0 (= off)."),
    INT(sampling.max_new_tokens, 1, 1 << 20, "1024", "rl: most tokens of one turn of the model."),
    TEXT(data, CONFIG_PATH, "", "sft: JSONL file, a line `{\"messages\": [...]}` each."),
    INT(batch_rows, 1, 1 << 16, "32", "sft: rows that one step consumes."),
    INT(max_tokens, 0, 1 << 20, "0",
        "sft: most tokens of a row; a longer one is refused by file and line; 0 = 4096, or the model's "
        "positions if they are fewer."),
};
#undef T

#define T run_task
static const struct config_field task_fields[] = {
    TEXT(name, CONFIG_WORD, "",
         "Name of the task, unique in the run, required; metrics are called `reward/NAME/mean`."),
    TEXT(url, 0, "", "Address of a running service, `http://HOST:PORT`; either this or `command`."),
    TEXTS(command, n_command, RUNCONFIG_ARGV, CONFIG_PROGRAM,
          "Program and arguments of a service that `ooze run` starts and supervises. A program with a slash "
          "counts from the YAML file's folder, else "
          "PATH is searched."),
    REAL(ratio, 0, 1e6, CONFIG_ABOVE_MIN, "1", "Share of the groups, relative to the other tasks."),
    INT(max_concurrency, 1, 100000, "256", "Episodes at once."),
    INT(max_turns, 0, 10000, "0", "Turns of the model in an episode; 0 = what the service says."),
    INT(step_timeout_ms, 1, DAY_MS, "60000", "Deadline of one call of the service, in milliseconds."),
    INT(connect_timeout_ms, 1, DAY_MS, "5000", "Deadline of a connection to the service, in milliseconds."),
    INT(max_attempts, 1, 100, "3",
        "Attempts at an episode that fails for reasons that are not the policy's."),
};
#undef T

static const char *task_name(const void *item)
{
    return ((const struct run_task *)item)->name;
}

static const struct config_schema stage_schema = {
    stage_fields, sizeof(stage_fields) / sizeof(stage_fields[0]), runconfig_stage_name};
static const struct config_schema task_schema = {task_fields, sizeof(task_fields) / sizeof(task_fields[0]),
                                                 task_name};

#define T run_config
static const struct config_field run_fields[] = {
    TEXT(name, CONFIG_WORD, "run", "Name of the run."),
    U64(seed, "1", "Seed of everything random: prompts, sampling, initial weights, packing."),
    TEXT(run_dir, 0, "(`runs/NAME`)", "Folder of the run, made if missing; counts from the current folder."),
    TEXT(model.path, CONFIG_PATH, "",
         "Hugging Face folder to start from; empty = random weights of the shape below."),
    CHOICE(model.arch, archs, "", "Without `path`: architecture; empty = llama."),
    INT(model.hidden, 0, 1 << 16, "0", "Without `path`: width of the residual stream, required."),
    INT(model.n_layers, 0, 1024, "0", "Without `path`: layers, required."),
    INT(model.n_heads, 0, 1024, "0",
        "Without `path`: attention heads, required; divides `hidden` unless `head_dim` is given."),
    INT(model.n_kv_heads, 0, 1024, "0", "Without `path`: heads of keys and values; 0 = n_heads."),
    INT(model.head_dim, 0, 1024, "0", "Without `path`: width of a head, even; 0 = hidden / n_heads."),
    INT(model.ffn, 0, 1 << 18, "0", "Without `path`: inner width of the gated MLP, required."),
    INT(model.vocab, 0, 1 << 22, "0",
        "Without `path`: tokens; 0 = 256 bytes and the specials, with the byte tokenizer."),
    INT(model.max_position, 0, 1 << 24, "0", "Without `path`: longest sequence, in tokens; 0 = 4096."),
    REAL(model.rope_theta, 0, 1e12, 0, "0", "Without `path`: base of the rotary angles; 0 = 10000."),
    REAL(model.rms_eps, 0, 1, 0, "0", "Without `path`: epsilon of RMSNorm; 0 = 1e-5."),
    BOOL(model.tie_embeddings, "false", "Without `path`: output head and embedding are one matrix."),
    TEXT(model.tokenizer, CONFIG_PATH | CONFIG_OR_BYTES, "(of the model folder, else `bytes`)",
         "Folder with tokenizer.json, or `bytes` for one token a byte."),
    TEXTS(model.specials, model.n_specials, RUNCONFIG_SPECIALS, 0,
          "Byte tokenizer: special tokens, from id 256 on."),
    CHOICE(model.chat_template, templates, "auto",
           "Chat template; `auto` = recognised from the model folder, `tiny` with the byte tokenizer."),
    INT(rollout.engines, 1, RUNCONFIG_ENGINES, "1", "Engine processes that this host starts."),
    INT(rollout.threads, 0, 1024, "0",
        "Threads of each engine; 0 = its share of the host's cores: of those that the trainer leaves, or of "
        "all when the two "
        "take turns (sft, max_lag 0)."),
    TEXT(rollout.pin, 0, "off",
         "Pin the engines' threads: `off`, `auto` (to the cores behind the trainer's) or CPUs like `4-7,12`, "
         "counted through all engines."),
    ENUM(rollout.dtype, dtypes, "fp8", "Weights that the engines sample from."),
    ENUM(rollout.kv_dtype, kv_dtypes, "auto",
         "Keys and values, in the engines and in the trainer's forward pass: `auto` = bf16 beside bf16 "
         "weights, else f32; "
         "`fp8` = E4M3 with a scale for each token and head, a quarter of f32's memory."),
    INT(rollout.kv_tokens, 64, BILLION, "65536", "Capacity of an engine's KV cache, in tokens."),
    INT(rollout.page_tokens, 32, 4096, "64", "Page of the KV cache, in tokens, a power of two."),
    INT(rollout.max_batch_tokens, 1, 1 << 20, "512",
        "Tokens that one engine step computes at most: decoded ones and prompt chunks."),
    INT(rollout.max_running, 1, 1 << 16, "128", "Sequences that an engine runs at once."),
    INT(rollout.prefill_chunk, 1, 1 << 20, "256",
        "Prompt tokens of one sequence per engine step, at most `max_batch_tokens`."),
    ENUM(rollout.kv_on_refit, kv_on_refits, "recompute",
         "New weights in mid-sequence: `recompute` its KV cache, or `keep` the old rows (recorded and "
         "replayed by the parity check)."),
    BOOL(rollout.http, "false", "Engines serve their native HTTP API too."),
    INT(rollout.http_port, 0, 65535, "0",
        "Port of the first engine's HTTP API, the others follow; 0 = ephemeral, written to "
        "RUN/engine-N.http."),
    INT(rollout.flush_tokens, 1, 4096, "16",
        "Sampled tokens of a job that leave the engine together, at most."),
    INT(trainer.threads, 0, 1024, "0",
        "Threads of the trainer; 0 = its share of the host's cores: half of them, rounded up, or all when it "
        "and the "
        "engines take turns (sft, max_lag 0)."),
    TEXT(trainer.pin, 0, "off",
         "Pin the trainer's threads: `off`, `auto` (to the first cores) or CPUs like `0-3,8`."),
    ENUM(trainer.dtype, train_dtypes, "bf16",
         "Working weights and inputs of matrix products; master weights are always f32."),
    INT(trainer.micro_batch_tokens, 16, 1 << 22, "8192",
        "Tokens that the trainer packs into one pass; at least the longest sequence of any stage."),
    ENUM(trainer.recompute, recomputes, "auto",
         "Recompute a layer's activations in the backward pass (`true`) instead of keeping them (`false`): a "
         "quarter more "
         "work, the same bits. `auto` keeps them while they fill at most a quarter of the host's memory."),
    BOOL(
        trainer.prefix_sharing, "true",
        "Compute the rows that sequences of a step begin with in common once, forward and backward: the same "
        "log-probabilities, and the same gradient summed in another order."),
    INT(trainer.checkpoint_every, 1, BILLION, "20",
        "Steps between checkpoints; the end of a stage always writes one."),
    INT(trainer.keep_last, 1, 250, "2", "Newest checkpoints kept on disk."), // TRAINER_CHECKPOINTS
    BOOL(trainer.keep_best, "true", "Keep the checkpoint of the best evaluation too."),
    INT(trainer.keep_weights, 0, 10000, "0",
        "Published weights kept on disk; at least the greatest max_lag + 2, which is what 0 means."),
    CHOICE(trainer.isa, isas, "auto", "Highest class of CPU kernels, for trainer and engines alike."),
    INT(eval.every, 0, BILLION, "0",
        "Steps between evaluations on held-out prompts; 0 = only at the ends of stages."),
    INT(eval.n, 0, 1 << 20, "64", "Held-out prompts per task; 0 = no evaluation."),
    INT(eval.samples, 1, 1024, "1", "Answers per held-out prompt, for pass@k."),
    REAL(eval.temperature, 0, 100, 0, "1", "Sampling temperature of evaluations; 0 = greedy."),
    BOOL(eval.at_start, "true", "Evaluate the initial weights too."),
    BOOL(eval.only, "false", "Evaluate the initial weights, with the limits of the first rl stage, and end."),
    INT(check.every, 0, BILLION, "20",
        "Steps of an rl stage between two parity checks, which score stored trajectories again under the "
        "weights that "
        "sampled them, from the stage's first step on; 0 = none, not at the start of the run either."),
    REAL(check.share, 0, 1, CONFIG_ABOVE_MIN, "0.25",
         "Share of a checked step's trajectories that is scored again, chosen by the run's seed."),
    ENUM(check.numerics, numerics, "strict",
         "`strict`: every process computes the same bits (one build, one class of kernels), and a check that "
         "finds any "
         "difference stops the run; `relaxed`: processes may differ, differences up to `check.band` pass."),
    REAL(check.band, 0, 100, 0, "0.05",
         "relaxed: largest difference of a token's logprob, in nats, that a check lets pass."),
    TEXT(orchestrator.listen, 0, "",
         "Further address, for engines of other hosts, with CURVE keys of `ooze keys`: `tcp://0.0.0.0:5555`; "
         "port "
         "`*` = ephemeral, written to `orchestrator.listen` in the run's folder; empty = this host only."),
    TEXT(orchestrator.http_host, 0, "127.0.0.1",
         "Address of the HTTP side (registration of tasks, metrics)."),
    INT(orchestrator.http_port, 0, 65535, "0", "Its port; 0 = ephemeral, written to RUN."),
    INT(orchestrator.ping_interval_ms, 10, DAY_MS, "1000", "Interval of pings, in milliseconds."),
    INT(orchestrator.silence_ms, 20, DAY_MS, "10000",
        "Silence after which a process is out of the routes, in milliseconds; more than `ping_interval_ms`."),
    INT(orchestrator.lease_ms, 1000, DAY_MS, "600000",
        "A trainer that does not answer for so long is ended and started again, and the prepared step goes "
        "to its successor, in milliseconds."),
    INT(orchestrator.max_inflight_http, 1, 100000, "1024", "Calls to task services at once."),
    INT(orchestrator.group_commit_ms, 0, 10000, "5",
        "Writes of so many milliseconds share one durable commit."),
    INT(orchestrator.max_rejected, 0, 100000, "10",
        "Rejected steps in a row (no finite loss, nothing to train) that are borne; one more ends the run, "
        "naming the first cause."),
    INT(orchestrator.max_restarts, 0, 1000, "5",
        "Restarts of one process without a committed step in between, before the run ends naming the first "
        "cause."),
    INT(orchestrator.drain_ms, 0, DAY_MS, "30000",
        "After the first Ctrl-C, how long running work may take to finish, in milliseconds."),
    LIST(tasks, n_tasks, RUNCONFIG_TASKS, &task_schema,
         "The tasks of the rl stages: HTTP services that own prompts, tools and rewards. In overrides a "
         "member is addressed by name or by index from 0: `tasks.sort.ratio=2`."),
    LIST(stages, n_stages, RUNCONFIG_STAGES, &stage_schema,
         "The stages of the run, in order; at least one. In overrides a member is addressed by name or by "
         "index from 0: `stages.rl.steps=10`."),
};
#undef T

static const struct config_schema run_schema = {run_fields, sizeof(run_fields) / sizeof(run_fields[0]), NULL};

const char *runconfig_stage_name(const void *item)
{
    const struct run_stage *s = item;
    return s->name[0] ? s->name : stage_kinds[s->kind];
}

const char *runconfig_loss_name(int64_t loss)
{
    return losses[loss];
}

// Folder of `file` as an absolute path; with file == NULL the current folder.
static enum status absolute_folder(const char *file, char *ret, size_t n, struct error *err)
{
    char folder[PATH_MAX], real[PATH_MAX];
    if (snprintf(folder, sizeof(folder), "%s", file ? file : "") >= (int)sizeof(folder))
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…", file);
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[1] = 0;
    else
        snprintf(folder, sizeof(folder), ".");
    if (!realpath(folder, real))
        return error_set(err, STATUS_NOTFOUND, "no folder %s", folder);
    if (snprintf(ret, n, "%s", real) >= (int)n)
        return error_set(err, STATUS_LIMIT, "path too long: %.200s…", real);
    return STATUS_OK;
}

static enum status load_file(const char *path, struct arena *arena, struct run_config *c,
                             struct config_origins *origins, struct error *err)
{
    char *data = NULL, folder[PATH_MAX];
    size_t n = 0;
    struct yaml_node *root;
    enum status rc = file_read(path, CONFIG_BYTES, &data, &n, err);
    if (rc == STATUS_OK)
        rc = absolute_folder(path, folder, sizeof(folder), err);
    if (rc == STATUS_OK)
        rc = yaml_parse(data, n, path, arena, &root, err);
    if (rc == STATUS_OK)
        rc = config_apply(&run_schema, root, folder, c, origins, err);
    free(data);
    return rc;
}

enum status runconfig_load(const char *const *files, int n_files, const char *const *overrides,
                           int n_overrides, struct run_config *ret, struct error *err)
{
    enum status rc = STATUS_OK;
    char folder[PATH_MAX];
    struct arena arena;
    struct config_origins origins = {0};
    struct run_config *c = mem_must(1, sizeof(*c));
    arena_init(&arena, (size_t)256 << 20);
    config_defaults(&run_schema, c);
    for (int i = 0; i < n_files && rc == STATUS_OK; i++)
        rc = load_file(files[i], &arena, c, &origins, err);
    if (rc == STATUS_OK)
        rc = absolute_folder(NULL, folder, sizeof(folder), err);
    for (int i = 0; i < n_overrides && rc == STATUS_OK; i++)
        rc = config_override(&run_schema, overrides[i], folder, &arena, c, &origins, err);
    if (rc == STATUS_OK)
        rc = runconfig_resolve(c, &origins, err);
    if (rc == STATUS_OK)
        memcpy(ret, c, sizeof(*c));
    free(c);
    config_origins_done(&origins);
    arena_done(&arena);
    return rc;
}

enum status runconfig_load_run(const char *run_dir, struct run_config *ret, struct error *err)
{
    char path[PATH_MAX];
    enum status rc = file_join(path, sizeof(path), run_dir, "config.yaml", err);
    if (rc == STATUS_OK && strlen(run_dir) >= sizeof(ret->run_dir))
        rc = error_set(err, STATUS_LIMIT, "path too long: %.200s…", run_dir);
    if (rc == STATUS_OK)
        rc = runconfig_load((const char *[]){path}, 1, NULL, 0, ret, err);
    if (rc == STATUS_OK) { // the folder may have been moved since
        memset(ret->run_dir, 0, sizeof(ret->run_dir));
        memcpy(ret->run_dir, run_dir, strlen(run_dir));
    }
    return rc;
}

void runconfig_print(const struct run_config *c, struct buf *out)
{
    config_print(&run_schema, c, out);
}

void runconfig_print_docs(struct buf *out)
{
    buf_puts(
        out,
        "# Configuration\n\n"
        "Printed from the table in base/runconfig.c (`ooze doctor --config-docs`); a test compares the "
        "two.\n\n"
        "A run is described by one YAML file: `ooze run run.yaml [more.yaml …] [key=value …]`. Later files "
        "and\n"
        "overrides win from left to right. An override is a dotted key and a YAML value: "
        "`trainer.dtype=f32`,\n"
        "`tasks.sort.command=[./sort, --hard]`. A list in a later file replaces the whole list; members of\n"
        "`stages` and `tasks` are changed one by one by name or index, in overrides (`stages.rl.steps=10`) "
        "as in\n"
        "files (`stages: {rl: {steps: 10}}`).\n\n"
        "Unknown keys, keys given twice, wrong types and values out of range are errors that name file, line "
        "and\n"
        "column. Anchors, aliases and tags are refused. `ooze run --dry-run` prints the configuration with "
        "every\n"
        "default filled in, and starts nothing; the same text is kept as `config.yaml` in the run's "
        "folder.\n\n"
        "Relative paths in `model.path`, `model.tokenizer`, `stages[].data` and, when it holds a slash, in "
        "the\n"
        "first word of `tasks[].command` count from the folder of the YAML file that names them; in an "
        "override\n"
        "they count from the current folder. `run_dir` always counts from the current folder.\n");
    config_print_docs(&run_schema, out);
}
