// Whole optimizer steps (pack, forward, loss, backward, clip, AdamW) of the trainer, timed. Three rows of `ooze bench`, all about
// one step of SmolLM2-135M's shapes on random weights: 16 sequences of 1,024 tokens, every position trained, bf16, AdamW.
//
//   bench_train [--row step|memory|mfu] [--serve] [--dtype f32|bf16] [--threads N] [--isa NAME] [--steps N]
//               [--sequences N] [--length N] [--micro N] [--recompute none|layer] [--layers N] [quickstart|smollm2]
//
// step    trained tokens per second;  memory  peak resident bytes of this process (VmHWM);  mfu  the model's floating-point
// operations per second, beside the peak of f32 multiply-adds measured in the same run (peaks.h; AMX where the class has it).
// The model's operations: 6 x (parameters in products) x tokens, and 3 x (2 x 2 x H D x keys) of attention, its causal half
// only; what is computed twice to save memory counts once. --serve: the line protocol (cli/bench_child.h), otherwise a table.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "tests/bench/peaks.h"
#include "tests/bench/subject.h"
#include "trainer/step.h"

struct shape {
    const char *name;
    const struct run_model *model;
    int32_t sequences, length, length_spread, prompt;
    int64_t micro_batch_tokens;
};

static const struct run_model quickstart = {.arch = "llama",
                                            .hidden = 128,
                                            .n_layers = 4,
                                            .n_heads = 4,
                                            .n_kv_heads = 4,
                                            .head_dim = 32,
                                            .ffn = 352,
                                            .vocab = 264,
                                            .max_position = 128,
                                            .rope_theta = 10000,
                                            .rms_eps = 1e-5};
static const struct shape shapes[] = {
    {"smollm2", &subject_model, 16, 1025, 0, 1, 1024}, // 1,024 positions that predict a token
    {"quickstart", &quickstart, 512, 16, 44, 10, 8192},
};

enum row { ROW_STEP, ROW_MEMORY, ROW_MFU };
static const char *const row_names[] = {"step", "memory", "mfu"};

struct bench {
    struct shape shape;
    struct run_config *config;
    enum row row;
    bool serve;
    int steps, layers; // layers: 0 = the model's
    struct trainer *trainer;
    struct msg_prepare step;
    struct step_result *result;
    double flops;  // of the model in one step
    int64_t rows;  // trained positions of one step
    double peak;   // operations per second
    bool peak_amx; // of what
};

// What one measured step gave.
struct figures {
    double seconds, tokens_per_s, flops_per_s;
    int64_t peak_bytes;
};

static int64_t peak_resident(void)
{
    char line[256];
    long long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lld kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib * 1024;
}

static void step_make(const struct shape *s, struct msg_prepare *m)
{
    struct rng rng;
    rng_init(&rng, 1, 1);
    struct msg_member *members = mem_must((size_t)s->sequences, sizeof *members);
    int64_t n = 0, at = 0;
    for (int32_t i = 0; i < s->sequences; i++) {
        int32_t length = s->length + (int32_t)rng_below(&rng, (uint64_t)s->length_spread + 1);
        members[i] = (struct msg_member){.trajectory = (uint64_t)i,
                                         .group = (uint64_t)(i / 8),
                                         .n_tokens = length,
                                         .multiplicity = 1,
                                         .advantage = i % 2 ? 1 : -1,
                                         .task = -1};
        n += length;
    }
    int32_t *ids = mem_must((size_t)n, sizeof *ids), *versions = mem_must((size_t)n, sizeof *versions);
    uint8_t *mask = mem_must((size_t)n, 1);
    float *logprobs = mem_must((size_t)n, sizeof *logprobs),
          *temperatures = mem_must((size_t)n, sizeof *temperatures);
    for (int32_t i = 0; i < s->sequences; i++) {
        for (int32_t t = 0; t < members[i].n_tokens; t++, at++) {
            ids[at] = (int32_t)rng_below(&rng, (uint64_t)s->model->vocab);
            mask[at] = t >= s->prompt;
            logprobs[at] = mask[at] ? -3 : 0;
            temperatures[at] = 1;
        }
    }
    *m = (struct msg_prepare){.lr = 1e-5,
                              .updates = 1,
                              .expect_hash = "",
                              .n_members = s->sequences,
                              .members = members,
                              .n_tokens = n,
                              .ids = ids,
                              .mask = mask,
                              .logprobs = logprobs,
                              .versions = versions,
                              .temperatures = temperatures};
}

static void step_done(struct msg_prepare *m)
{
    free((void *)m->members);
    free((void *)m->ids);
    free((void *)m->versions);
    free((void *)m->mask);
    free((void *)m->logprobs);
    free((void *)m->temperatures);
}

// See the head of this file.
static void flops_count(struct bench *b)
{
    const struct trainer *t = b->trainer;
    const struct model_config *c = &t->model;
    double products = (double)t->layout.n_parameters, keys = 0;
    if (!c->tie_embeddings)
        products -= (double)(c->vocab * c->hidden); // a look-up
    for (int32_t i = 0; i < b->step.n_members; i++) {
        double n = b->step.members[i].n_tokens - 1;
        b->rows += b->step.members[i].n_tokens - 1;
        keys += n * (n + 1) / 2;
    }
    b->flops =
        6 * products * (double)b->rows + 3 * 4 * (double)(c->n_heads * c->head_dim * c->n_layers) * keys;
}

static bool bench_open(struct bench *b)
{
    struct error err = {0};
    b->config->model = *b->shape.model;
    if (b->layers)
        b->config->model.n_layers = b->layers;
    b->config->trainer.micro_batch_tokens = b->shape.micro_batch_tokens;
    b->result = mem_must(1, sizeof *b->result);
    if (trainer_open(b->config, "", &b->trainer, &err) || trainer_restart(b->trainer, &err)) {
        printf("{\"error\":\"bench_train: %s\"}\n", err.text);
        return false;
    }
    pool_thread_init();
    step_make(&b->shape, &b->step);
    flops_count(b);
    return true;
}

static void bench_close(struct bench *b)
{
    step_done(&b->step);
    free(b->result);
    trainer_close(b->trainer);
}

static bool apply(struct bench *b, struct msg_prepare *m)
{
    struct error err = {0};
    m->step = b->trainer->step;
    if (trainer_step(b->trainer, m, b->result, &err) == STATUS_OK && b->result->outcome == STEP_APPLIED)
        return true;
    printf("{\"error\":\"bench_train: %s%s\"}\n", err.text, b->result->reason);
    return false;
}

// A step of one sequence: threads, memory of a micro-batch and of the update. The peer warms up in the same way.
static bool warm_up(struct bench *b)
{
    struct msg_prepare one = b->step;
    one.n_members = 1;
    one.n_tokens = one.members[0].n_tokens;
    return apply(b, &one);
}

static bool bench_step(struct bench *b, struct figures *ret)
{
    int64_t start = clock_mono_ns(clock_system());
    if (!apply(b, &b->step))
        return false;
    double s = (double)(clock_mono_ns(clock_system()) - start) / 1e9;
    *ret = (struct figures){s, (double)b->rows / s, b->flops / s, peak_resident()};
    return true;
}

static void peak_measure(struct bench *b)
{
    b->peak_amx = b->trainer->device->isa >= ISA_AMX;
    double p = b->peak_amx ? peak_bf16(b->trainer->device) : peak_fma(b->trainer->device);
    b->peak = p > b->peak ? p : b->peak;
}

static void answer(struct bench *b, const struct figures *f)
{
    const double values[] = {f->tokens_per_s, (double)f->peak_bytes, f->flops_per_s / 1e9};
    printf("{\"value\":%.6g,\"tokens_per_s\":%.2f,\"peak_bytes\":%lld,\"gflops\":%.2f,\"seconds\":%.4f",
           values[b->row], f->tokens_per_s, (long long)f->peak_bytes, f->flops_per_s / 1e9, f->seconds);
    if (b->row == ROW_MFU) {
        peak_measure(b);
        printf(",\"bound\":%.6g,\"bound_name\":\"peak of %s\",\"share_of_bf16_peak\":%.4f", b->peak / 1e9,
               b->peak_amx ? "AMX" : "f32 multiply-adds", f->flops_per_s / peak_bf16(b->trainer->device));
    }
    printf("}\n");
}

static int serve(struct bench *b)
{
    struct figures f;
    char line[64];
    if (!bench_open(b) || (b->row != ROW_MEMORY && !warm_up(b)))
        return 1; // the parent has read the reason
    printf("{\"ready\":true,\"isa\":\"%s\",\"threads\":%d", isa_name(b->trainer->device->isa),
           pool_threads(b->trainer->device->pool));
    if (b->row == ROW_MFU)
        printf(",\"goal\":%.2f", b->trainer->device->isa >= ISA_AMX ? 0.35 : 0.6);
    printf("}\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && strncmp(line, "quit", 4) != 0) {
        if (strncmp(line, "run", 3) != 0)
            continue;
        if (!bench_step(b, &f))
            return 1;
        answer(b, &f);
        fflush(stdout);
    }
    bench_close(b);
    return 0;
}

static int table(struct bench *b)
{
    struct figures f, best = {0};
    if (!bench_open(b))
        return 1;
    struct device *d = b->trainer->device;
    peak_measure(b);
    for (int k = 0; k <= b->steps; k++) { // the first one warms up
        if (!bench_step(b, &f))
            return 1;
        if (k && (best.seconds == 0 || f.seconds < best.seconds))
            best = f;
    }
    printf("%-10s %-26s %s  %lld parameters  %lld tokens/step  %8.1f tokens/s  %7.1f GFLOP/s = %4.1f%% of "
           "%s, %4.1f%% of "
           "bf16 products  %6.0f MB\n",
           b->shape.name, d->name, dtype_name(trainer_dtype(b->config)),
           (long long)b->trainer->layout.n_parameters, (long long)b->rows, best.tokens_per_s,
           best.flops_per_s / 1e9, 100 * best.flops_per_s / b->peak, b->peak_amx ? "AMX" : "FMA",
           100 * best.flops_per_s / peak_bf16(d), (double)f.peak_bytes / 1e6);
    bench_close(b);
    return 0;
}

// One option with a value; false: not known.
static bool option(struct bench *b, const char *name, const char *value)
{
    struct run_config *c = b->config;
    if (strcmp(name, "--dtype") == 0)
        c->trainer.dtype = strcmp(value, "f32") == 0 ? RUN_F32 : RUN_BF16;
    else if (strcmp(name, "--threads") == 0)
        c->trainer.threads = atoi(value);
    else if (strcmp(name, "--isa") == 0)
        snprintf(c->trainer.isa, sizeof c->trainer.isa, "%s", value);
    else if (strcmp(name, "--steps") == 0)
        b->steps = atoi(value);
    else if (strcmp(name, "--sequences") == 0)
        b->shape.sequences = atoi(value);
    else if (strcmp(name, "--length") == 0)
        b->shape.length = atoi(value) + 1;
    else if (strcmp(name, "--layers") == 0)
        b->layers = atoi(value);
    else if (strcmp(name, "--micro") == 0)
        b->shape.micro_batch_tokens = atoi(value);
    else if (strcmp(name, "--recompute") == 0)
        c->trainer.recompute = strcmp(value, "none") != 0 ? RUN_RECOMPUTE_TRUE : RUN_RECOMPUTE_FALSE;
    else if (strcmp(name, "--row") == 0)
        for (int i = 0; i < 3; i++)
            b->row = strcmp(value, row_names[i]) == 0 ? (enum row)i : b->row;
    else
        return strcmp(name, "--models") == 0; // weights are random: nothing to read
    return true;
}

int main(int argc, char **argv)
{
    struct bench b = {.shape = shapes[0], .steps = 2, .config = mem_must(1, sizeof *b.config)};
    subject_train_config(b.config);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--serve") == 0) {
            b.serve = true;
        } else if (strncmp(argv[i], "--", 2) == 0) {
            if (i + 1 == argc || !option(&b, argv[i], argv[i + 1])) {
                fprintf(stderr, "bench_train: option %s\n", argv[i]);
                return 2;
            }
            i++;
        } else if (strcmp(argv[i], "quickstart") == 0) {
            b.shape = shapes[1];
        }
    }
    int rc = b.serve ? serve(&b) : table(&b);
    free(b.config);
    return rc;
}
