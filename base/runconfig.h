// The configuration of a run: one YAML file, later files and dotted overrides win from left to right
// (docs/configuration.md). This struct and the table in runconfig.c (path, type, range, default, doc) are the only
// places where a key is named; docs/configuration.md and `ooze run --dry-run` are printed from the table.
//
// Every process of a run reads RUN/config.yaml, the resolved configuration that `ooze run` wrote.
#ifndef BASE_RUNCONFIG_H
#define BASE_RUNCONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

#define RUNCONFIG_PATH     1024
#define RUNCONFIG_NAME     64
#define RUNCONFIG_STAGES   16
#define RUNCONFIG_TASKS    64
#define RUNCONFIG_SPECIALS 32
#define RUNCONFIG_ARGV     16
#define RUNCONFIG_ENGINES  64
#define RUNCONFIG_PIN      256

enum run_dtype { RUN_F32, RUN_BF16, RUN_FP8 };
enum run_loss { RUN_LOSS_TWO_SIDED_IS, RUN_LOSS_ICEPOP, RUN_LOSS_PPO_CLIP, RUN_LOSS_SFT };
enum run_aggregation { RUN_AGG_DEFAULT, RUN_AGG_TOKEN_MEAN, RUN_AGG_SEQUENCE_MEAN, RUN_AGG_GROUP_MEAN };
enum run_advantage { RUN_ADV_GRPO, RUN_ADV_GROUP_CENTERED, RUN_ADV_RLOO, RUN_ADV_REINFORCE_PP };
enum run_schedule { RUN_LR_CONSTANT, RUN_LR_LINEAR, RUN_LR_COSINE };
enum run_zero_variance { RUN_ZV_KEEP, RUN_ZV_DROP };
enum run_on_stale { RUN_STALE_WAIT, RUN_STALE_DROP };
enum run_stage_kind { RUN_STAGE_SFT, RUN_STAGE_RL };
enum run_kv_on_refit { RUN_KV_KEEP, RUN_KV_RECOMPUTE };
enum run_kv_dtype { RUN_KV_DTYPE_AUTO, RUN_KV_DTYPE_F32, RUN_KV_DTYPE_BF16, RUN_KV_DTYPE_FP8 };
enum run_recompute { RUN_RECOMPUTE_FALSE, RUN_RECOMPUTE_TRUE, RUN_RECOMPUTE_AUTO };
enum run_denominator { RUN_DENOM_ALL, RUN_DENOM_KEPT };
enum run_numerics { RUN_NUMERICS_STRICT, RUN_NUMERICS_RELAXED };
enum run_old_logprob {
    RUN_OLD_RECOMPUTE,
    RUN_OLD_ROLLOUT
}; // ppo_clip: lp_old by the trainer, or lp_roll (bypass)

// model: either `path` (a Hugging Face folder) or an architecture to initialise at random.
struct run_model {
    char path[RUNCONFIG_PATH]; // "" = random initial weights of the shape below
    char arch[RUNCONFIG_NAME]; // llama | qwen2 | qwen3
    int64_t hidden, n_layers, n_heads, n_kv_heads, head_dim, ffn, vocab, max_position;
    double rope_theta, rms_eps;
    bool tie_embeddings;
    char tokenizer[RUNCONFIG_PATH]; // "" = of the model folder; "bytes" = byte tokenizer with `specials`
    char specials[RUNCONFIG_SPECIALS][RUNCONFIG_NAME];
    int64_t n_specials;
    char chat_template[RUNCONFIG_NAME]; // auto | chatml | llama3 | qwen | glm | tiny
};

struct run_optimizer {
    double lr, beta1, beta2, eps, weight_decay, clip_grad_norm;
    int64_t warmup_steps;
    int64_t schedule;      // enum run_schedule
    double final_lr_ratio; // lr at the end of the stage over lr
    bool reset_on_sync;
};

struct run_sampling {
    double temperature, top_p, min_p;
    int64_t top_k;          // 0 = off
    int64_t max_new_tokens; // per turn
};

struct run_stage {
    char name[RUNCONFIG_NAME];
    int64_t kind;                   // enum run_stage_kind
    int64_t steps;                  // optimizer steps of the stage (steps of updates_per_batch updates each)
    int64_t loss;                   // enum run_loss; sft stages: sft
    int64_t aggregation;            // enum run_aggregation
    int64_t denominator;            // enum run_denominator
    int64_t old_logprob;            // enum run_old_logprob
    double eps_low, eps_high, beta; // "Losses" of algorithms.md
    double entropy_coef;
    int64_t updates_per_batch;
    struct run_optimizer optimizer;
    // rl
    int64_t groups_per_step, group_size;
    int64_t advantage;     // enum run_advantage
    int64_t zero_variance; // enum run_zero_variance
    int64_t max_lag;       // tau, in steps
    int64_t on_stale;      // enum run_on_stale
    int64_t stale_wait_ms; // on_stale wait: how long a step is held
    int64_t sync_interval; // K: push weights every K steps
    int64_t max_context;   // tokens of a segment, prompt included
    bool permute_rewards;  // control experiment: rewards permuted at random within each group
    struct run_sampling sampling;
    // sft
    char data[RUNCONFIG_PATH]; // JSONL of {"messages": […]}
    int64_t batch_rows;        // rows a step
    int64_t max_tokens;        // longer rows are refused by name and line
};

struct run_task {
    char name[RUNCONFIG_NAME];
    char url[RUNCONFIG_PATH];                     // either url …
    char command[RUNCONFIG_ARGV][RUNCONFIG_PATH]; // … or a command that `ooze run` starts and supervises
    int64_t n_command;
    double ratio;            // share of groups, relative to the other tasks
    int64_t max_concurrency; // episodes at once
    int64_t max_turns;       // 0 = what the service says
    int64_t step_timeout_ms, connect_timeout_ms;
    int64_t max_attempts; // of an episode that failed for a non-policy reason
};

struct run_config {
    char name[RUNCONFIG_NAME];
    uint64_t seed;
    char run_dir[RUNCONFIG_PATH]; // default runs/<name>
    struct run_model model;
    struct {
        int64_t engines;         // how many ooze-rollout processes this host starts
        int64_t threads;         // of each; 0 = its share of the host's cores (cores.h)
        char pin[RUNCONFIG_PIN]; // off | auto | CPUs like "0-3,8"
        int64_t dtype;           // enum run_dtype of the weights, default fp8
        int64_t kv_tokens;       // capacity of the KV cache, in tokens
        int64_t page_tokens;
        int64_t max_batch_tokens; // token budget of one step (decode + prefill chunks)
        int64_t max_running;      // sequences at once
        int64_t prefill_chunk;    // tokens of one prompt per step
        int64_t kv_on_refit;      // enum run_kv_on_refit
        int64_t kv_dtype;         // enum run_kv_dtype
        bool http;                // serve the native HTTP API too
        int64_t http_port;        // 0 = ephemeral, written to RUN/engine-<i>.http
        int64_t flush_tokens;     // tokens of a job sent together at most
    } rollout;
    struct {
        int64_t threads; // 0 = its share of the host's cores (cores.h)
        char pin[RUNCONFIG_PIN];
        int64_t dtype; // working weights and matmul inputs: f32 or bf16 (master weights are always f32)
        int64_t micro_batch_tokens;
        int64_t recompute;        // enum run_recompute: activations of a layer in the backward pass
        bool prefix_sharing;      // rows that sequences have in common are computed once
        int64_t checkpoint_every; // steps; a stage's end always writes one
        int64_t keep_last;
        bool keep_best;       // by eval
        int64_t keep_weights; // published weights kept on disk, at least max_lag + 2
        char isa
            [RUNCONFIG_NAME]; // auto | ref | avx2 | avx512 | avx512bf16 | amx: highest kernel class to use (engines too)
    } trainer;
    struct {
        int64_t every;   // steps; 0 = only at the ends of stages
        int64_t n;       // held-out prompts a task
        int64_t samples; // answers a prompt (for pass@k)
        double temperature;
        bool at_start;
        bool only; // evaluate the initial weights and end
    } eval;
    struct {              // the drift gate: stored trajectories scored again under their recorded weights
        int64_t every;    // steps of an rl stage between two checks; 0 = none
        double share;     // of a checked step's trajectories
        int64_t numerics; // enum run_numerics
        double band;      // relaxed: largest difference of a logprob that is let pass
    } check;
    struct {
        char
            listen[RUNCONFIG_NAME]; // "" = ipc only; "tcp://0.0.0.0:5555" adds a CURVE socket for other hosts
        char http_host[RUNCONFIG_NAME];
        int64_t http_port; // 0 = ephemeral; the orchestrator's HTTP side (task registration, metrics)
        int64_t ping_interval_ms, silence_ms; // silence beyond the limit = out of the routes
        int64_t lease_ms; // a prepared step not answered within: the trainer's epoch is fenced
        int64_t max_inflight_http;
        int64_t group_commit_ms; // durable group commit interval
        int64_t max_rejected;    // steps in a row that could not be applied
        int64_t max_restarts;    // crash loop: restarts of one process without a committed step in between
        int64_t drain_ms;        // Ctrl-C once: how long running work may finish
    } orchestrator;
    struct run_task tasks[RUNCONFIG_TASKS];
    int64_t n_tasks;
    struct run_stage stages[RUNCONFIG_STAGES];
    int64_t n_stages;
};

// Reads files[0..n) then the overrides ("trainer.dtype=f32", "stages.rl.steps=10": a list member by index or
// name), checks every key, type, range and the rules between keys, and fills every default. Errors name file,
// line, column and the nearest known key. The struct is large: heap-allocate it; plain data, nothing to free
// inside.
enum status runconfig_load(const char *const *files, int n_files, const char *const *overrides,
                           int n_overrides, struct run_config *ret, struct error *err) OOZE_MUST_USE;
// RUN/config.yaml.
enum status runconfig_load_run(const char *run_dir, struct run_config *ret, struct error *err) OOZE_MUST_USE;
// Every key with its value as YAML that runconfig_load reads back to the same struct.
void runconfig_print(const struct run_config *c, struct buf *out);
// The reference of all keys as Markdown (docs/configuration.md).
void runconfig_print_docs(struct buf *out);

// Paths inside a run directory (RUN/…): config.yaml, ledger.sqlite, token (HTTP bearer), lock, weights/,
// checkpoints/, logs/, metrics.jsonl. Sockets live in a 0700 folder short enough for AF_UNIX: RUN/sock when
// it fits, else
// ${XDG_RUNTIME_DIR:-/tmp}/ooze-<hash of RUN's real path>; the same answer in every process.
enum status run_socket(const char *run_dir, const char *name, char *ret, unsigned long n,
                       struct error *err) OOZE_MUST_USE;

#endif
