// One synchronous GRPO iteration at a time: every prompt is answered by the engine, the answers are rewarded, the trainer takes one
// optimizer step on them, publishes the weights, and the engine's next tokens come from these. SmolLM2-135M's shapes, random weights
// (nothing depends on them but the tokens). Beside it stands TRL's GRPOTrainer (tests/bench/peers/trl_grpo.py).
//
//   bench_grpo [--serve] [--prompts 64] [--answers 8] [--new 128] [--threads N] [--isa CLASS] [--rollout fp8|bf16]
//              [--running SEQUENCES] [--micro ROWS] [--recompute none|all] [--prompt TOKENS] [--sharing on|off]
//
// Prompts have 32 to 64 tokens, or --prompt all alike; the trainer computes the rows that answers to one prompt share once, unless
// --sharing off (trainer.prefix_sharing). train_tok_s are tokens of sequences, prompts counted for each answer, a second of training, and
// train_rows the rows that were computed for them.
//
// One process, one thread: engine and trainer have a pool each and never work at the same time, so either may have all cores (an
// idle pool sleeps). What crosses between them is what crosses in a run: a prepared step, and a weights file in shared memory
// whose hash is checked.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"
#include "rl/advantage.h"
#include "rollout/engine.h"
#include "tests/bench/subject.h"
#include "trainer/publish.h"
#include "trainer/step.h"

#define PROMPT_MIN 32
#define PROMPT_MAX 64

struct seconds {
    double generate, score, train, publish, load;
};

struct bench {
    // options
    bool serve;
    int32_t n_prompts, n_answers, n_new, running, prompt; // prompt: 0 = of different lengths
    enum dtype dtype;
    struct run_config *config;
    // the trainer's side
    struct trainer *trainer;
    struct publish publish;
    char run_dir[64], run[RUNCONFIG_NAME];
    struct step_result *result;
    // the engine's side: in_use computes, spare is filled; both have the same shape
    struct device *device;
    struct engine *engine;
    struct weights *in_use, *spare;
    struct outputs out;
    int64_t iteration;
    // one iteration: answers in the order of their prompts, tokens behind one another
    int32_t n;        // answers
    int32_t *lengths; // [n_prompts]
    int32_t *prompts; // [n_prompts, longest]
    int32_t longest;
    int64_t *first; // [n + 1] of the tokens below
    int32_t *ids, *versions;
    uint8_t *mask;
    float *logprobs, *temperatures;
    struct msg_member *members;
    int64_t *groups;
    double *rewards, *advantages;
};

static double now(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}

static _Noreturn void die(const char *what)
{
    printf("{\"error\":\"bench_grpo: %s\"}\n", what);
    exit(1);
}

static void must(enum status rc, const struct error *err)
{
    if (rc)
        die(err->text);
}

// ---- generate ---------------------------------------------------------------------------------------------------------------

static void submit_all(struct bench *b)
{
    struct error err;
    for (int32_t i = 0; i < b->n; i++) {
        int32_t p = i / b->n_answers;
        const struct engine_job job = {
            .msg = {.job = (uint64_t)i + 1,
                    .run_seed = 1,
                    .trajectory = (uint64_t)(b->iteration * b->n + i),
                    .sampling = {.temperature = 1, .top_p = 1, .max_new = b->n_new, .train = true},
                    .n_ids = b->lengths[p],
                    .ids = b->prompts + (int64_t)p * b->longest}};
        must(engine_submit(b->engine, &job, &err), &err);
    }
}

// Takes what a step handed out to where the trainer will read it.
static void collect(struct bench *b)
{
    for (size_t k = 0; k < b->out.n_items; k++) {
        const struct output *o = &b->out.items[k];
        int64_t i = (int64_t)o->job - 1, at = b->first[i] + b->lengths[i / b->n_answers] + o->offset;
        if (o->finish && o->finish != FINISH_LENGTH)
            die("an answer ended before its length");
        memcpy(b->ids + at, b->out.ids + o->first_token, (size_t)o->n * sizeof *b->ids);
        memcpy(b->logprobs + at, b->out.logprobs + o->first_token, (size_t)o->n * sizeof *b->logprobs);
    }
    outputs_clear(&b->out);
}

static void generate(struct bench *b)
{
    struct error err;
    pool_thread_init();
    submit_all(b);
    while (engine_ready(b->engine)) {
        must(engine_step(b->engine, &b->out, &err), &err);
        collect(b);
    }
}

// ---- score ------------------------------------------------------------------------------------------------------------------

// Reward: the share of even ids in an answer. Advantages within the answers of a prompt.
static void score(struct bench *b)
{
    for (int32_t i = 0; i < b->n; i++) {
        int32_t even = 0;
        for (int64_t t = b->first[i + 1] - b->n_new; t < b->first[i + 1]; t++)
            even += b->ids[t] % 2 == 0;
        b->rewards[i] = (double)even / b->n_new;
    }
    advantage_compute(RUN_ADV_GRPO, b->groups, b->rewards, b->n, b->advantages);
    for (int32_t i = 0; i < b->n; i++)
        b->members[i].advantage = (float)b->advantages[i];
    for (int64_t t = 0; t < b->first[b->n]; t++)
        b->versions[t] = b->mask[t] ? (int32_t)b->trainer->step : -1;
}

// ---- train ------------------------------------------------------------------------------------------------------------------

static void train(struct bench *b)
{
    struct error err = {0};
    const struct msg_prepare m = {.step = b->trainer->step,
                                  .lr = 1e-5,
                                  .packing_seed = (uint64_t)b->iteration,
                                  .updates = 1,
                                  .expect_hash = "",
                                  .n_members = b->n,
                                  .members = b->members,
                                  .n_tokens = b->first[b->n],
                                  .ids = b->ids,
                                  .mask = b->mask,
                                  .logprobs = b->logprobs,
                                  .versions = b->versions,
                                  .temperatures = b->temperatures};
    must(trainer_step(b->trainer, &m, b->result, &err), &err);
    if (b->result->outcome != STEP_APPLIED)
        die(b->result->reason);
}

// ---- refit ------------------------------------------------------------------------------------------------------------------

static void refit(struct bench *b, struct seconds *s)
{
    char path[RUNCONFIG_PATH], hash[HASH_HEX];
    int64_t bytes;
    struct error err;
    double t0 = now();
    must(publish_weights(&b->publish, b->trainer, true, path, hash, &bytes, &err), &err);
    double t1 = now();
    must(weights_load(b->spare, path, hash, &err), &err);
    engine_set_weights(b->engine, b->spare, b->trainer->step);
    struct weights *old = b->in_use;
    b->in_use = b->spare;
    b->spare = old;
    publish_prune(&b->publish, 1);
    s->publish = t1 - t0;
    s->load = now() - t1;
}

static struct seconds iterate(struct bench *b)
{
    struct seconds s;
    double t0 = now();
    generate(b);
    double t1 = now();
    score(b);
    double t2 = now();
    train(b);
    s.generate = t1 - t0;
    s.score = t2 - t1;
    s.train = now() - t2;
    refit(b, &s);
    b->iteration++;
    return s;
}

// ---- life -------------------------------------------------------------------------------------------------------------------

static void config_init(struct run_config *c)
{
    c->seed = 1;
    c->model = subject_model;
    c->trainer.dtype = RUN_BF16;
    c->trainer.micro_batch_tokens = 2048;
    c->trainer.prefix_sharing = true;
    snprintf(c->trainer.isa, sizeof c->trainer.isa, "auto");
    c->rollout.dtype = RUN_FP8;
    c->n_stages = 1;
    c->stages[0] =
        (struct run_stage){.kind = RUN_STAGE_RL,
                           .loss = RUN_LOSS_TWO_SIDED_IS,
                           .eps_low = 0.5,
                           .eps_high = 2,
                           .max_context = 8192,
                           .optimizer = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip_grad_norm = 1}};
}

static void data_open(struct bench *b)
{
    struct rng r;
    rng_init(&r, 1, 1);
    b->n = b->n_prompts * b->n_answers;
    size_t n = (size_t)b->n, p = (size_t)b->n_prompts;
    b->lengths = mem_must(p, sizeof *b->lengths);
    b->longest = b->prompt ? b->prompt : PROMPT_MAX;
    b->prompts = mem_must(p * (size_t)b->longest, sizeof *b->prompts);
    b->first = mem_must(n + 1, sizeof *b->first);
    b->members = mem_must(n, sizeof *b->members);
    b->groups = mem_must(n, sizeof *b->groups);
    b->rewards = mem_must(n, sizeof *b->rewards);
    b->advantages = mem_must(n, sizeof *b->advantages);
    for (int32_t i = 0; i < b->n_prompts; i++) {
        b->lengths[i] =
            PROMPT_MIN + (PROMPT_MAX - PROMPT_MIN) * i / (b->n_prompts > 1 ? b->n_prompts - 1 : 1);
        if (b->prompt)
            b->lengths[i] = b->prompt;
        for (int32_t t = 0; t < b->lengths[i]; t++)
            b->prompts[(int64_t)i * b->longest + t] = (int32_t)rng_below(&r, (uint64_t)subject_model.vocab);
    }
    for (int32_t i = 0; i < b->n; i++) {
        int32_t length = b->lengths[i / b->n_answers] + b->n_new;
        b->first[i + 1] = b->first[i] + length;
        b->groups[i] = i / b->n_answers;
        b->members[i] = (struct msg_member){.trajectory = (uint64_t)i,
                                            .group = (uint64_t)b->groups[i],
                                            .n_tokens = length,
                                            .multiplicity = 1,
                                            .task = -1};
    }
    size_t tokens = (size_t)b->first[b->n];
    b->ids = mem_must(tokens, sizeof *b->ids);
    b->versions = mem_must(tokens, sizeof *b->versions);
    b->mask = mem_must(tokens, 1);
    b->logprobs = mem_must(tokens, sizeof *b->logprobs);
    b->temperatures = mem_must(tokens, sizeof *b->temperatures);
    for (int32_t i = 0; i < b->n; i++) {
        const int32_t *prompt = b->prompts + (int64_t)(i / b->n_answers) * b->longest;
        int32_t length = b->lengths[i / b->n_answers];
        memcpy(b->ids + b->first[i], prompt, (size_t)length * sizeof *prompt);
        memset(b->mask + b->first[i] + length, 1, (size_t)b->n_new);
    }
    for (size_t t = 0; t < tokens; t++)
        b->temperatures[t] = 1;
}

static void open_all(struct bench *b)
{
    struct error err = {0};
    struct seconds ignored;
    data_open(b);
    must(subject_run("grpo", b->run_dir, b->run, &err), &err);
    must(trainer_open(b->config, "", &b->trainer, &err), &err);
    must(trainer_restart(b->trainer, &err), &err);
    must(publish_init(&b->publish, b->run_dir, b->run, "/dev/shm", &err), &err);
    b->result = mem_must(1, sizeof *b->result);
    const struct trainer *t = b->trainer;
    int32_t running = b->running < b->n ? b->running : b->n;
    const struct engine_config config = {.kv_tokens =
                                             running * ((b->longest + b->n_new + 32) / 32 * 32) + 4096,
                                         .max_running = running,
                                         .max_batch_tokens = b->running > 2048 ? b->running : 2048,
                                         .flush_tokens = b->n_new};
    must(device_open("cpu", b->config->trainer.isa, (int)b->config->trainer.threads, &b->device, &err), &err);
    must(weights_open(b->device, &t->model, &t->layout, b->dtype, false, &b->in_use, &err), &err);
    must(weights_open(b->device, &t->model, &t->layout, b->dtype, false, &b->spare, &err), &err);
    must(engine_open(b->device, &t->model, b->dtype, &config, &b->engine, &err), &err);
    outputs_init(&b->out);
    refit(b, &ignored);
}

static void close_all(struct bench *b)
{
    struct error err;
    publish_leave(&b->publish);
    if (file_remove_tree(b->run_dir, &err))
        fprintf(stderr, "bench_grpo: %s\n", err.text);
    engine_close(b->engine);
    weights_close(b->in_use);
    weights_close(b->spare);
    device_close(b->device);
    trainer_close(b->trainer);
    outputs_done(&b->out);
    void *const all[] = {b->lengths, b->prompts,    b->first,        b->ids,     b->versions,
                         b->mask,    b->logprobs,   b->temperatures, b->members, b->groups,
                         b->rewards, b->advantages, b->result,       b->config};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static double peak_gib(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_maxrss / 1048576;
}

static double train_rows(const struct bench *b)
{
    const struct metrics_list *m = &b->result->metrics;
    for (int32_t i = 0; i < m->n; i++)
        if (strcmp(m->items[i].name, "train/tokens") == 0)
            return m->items[i].value;
    return 0;
}

static void print(const struct bench *b, const struct seconds *s)
{
    double total = s->generate + s->score + s->train + s->publish + s->load;
    double tokens = (double)b->n * b->n_new;
    printf("{\"value\":%.4f,\"generate_s\":%.4f,\"score_s\":%.4f,\"train_s\":%.4f,\"publish_s\":%.4f,\"load_"
           "s\":%.4f,"
           "\"generate_tok_s\":%.1f,\"train_tok_s\":%.1f,\"train_rows\":%.0f,\"peak_gib\":%.2f}\n",
           total, s->generate, s->score, s->train, s->publish, s->load, tokens / s->generate,
           (double)b->first[b->n] / s->train, train_rows(b), peak_gib());
    fflush(stdout);
}

static void serve(struct bench *b)
{
    char line[64];
    printf("{\"ready\":true,\"isa\":\"%s\",\"threads\":%d,\"rollout\":\"%s\",\"tokens\":%lld}\n",
           isa_name(b->device->isa), pool_threads(b->device->pool), dtype_name(b->dtype),
           (long long)b->n * b->n_new);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && strncmp(line, "quit", 4) != 0) {
        if (strncmp(line, "run", 3) != 0)
            continue;
        struct seconds s = iterate(b);
        print(b, &s);
    }
}

static bool option(struct bench *b, const char *name, const char *value)
{
    struct run_config *c = b->config;
    const struct {
        const char *name;
        int32_t *value;
    } numbers[] = {{"--prompts", &b->n_prompts},
                   {"--answers", &b->n_answers},
                   {"--new", &b->n_new},
                   {"--running", &b->running},
                   {"--prompt", &b->prompt}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (strcmp(name, numbers[i].name) == 0) {
            *numbers[i].value = atoi(value);
            return *numbers[i].value > 0;
        }
    if (strcmp(name, "--threads") == 0)
        c->trainer.threads = atoi(value);
    else if (strcmp(name, "--isa") == 0)
        snprintf(c->trainer.isa, sizeof c->trainer.isa, "%s", value);
    else if (strcmp(name, "--micro") == 0)
        c->trainer.micro_batch_tokens = atoi(value);
    else if (strcmp(name, "--recompute") == 0)
        c->trainer.recompute = strcmp(value, "none") != 0;
    else if (strcmp(name, "--sharing") == 0)
        c->trainer.prefix_sharing = strcmp(value, "off") != 0;
    else if (strcmp(name, "--rollout") == 0)
        c->rollout.dtype = strcmp(value, "bf16") == 0 ? RUN_BF16 : RUN_FP8;
    else
        return strcmp(name, "--models") == 0; // weights are random: nothing to read
    return true;
}

int main(int argc, char **argv)
{
    struct bench b = {.n_prompts = 64, .n_answers = 8, .n_new = 128, .config = mem_must(1, sizeof *b.config)};
    config_init(b.config);
    b.running = 256;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--serve") == 0)
            b.serve = true;
        else if (i + 1 < argc && option(&b, argv[i], argv[i + 1]))
            i++;
        else
            die("unknown option; the first lines of tests/bench/bench_grpo.c have them all");
    }
    b.dtype = rollout_dtype(b.config);
    open_all(&b);
    if (b.serve) {
        serve(&b);
    } else {
        for (int i = 0; i < 2; i++) { // the first one warms up
            struct seconds s = iterate(&b);
            print(&b, &s);
        }
    }
    close_all(&b);
    return 0;
}
