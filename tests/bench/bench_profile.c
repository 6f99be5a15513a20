// Where the time goes: each op of a training step or of the engine's steps, with the calls, the time and the share of the whole, its rate
// of arithmetic beside the peak and its rate of bytes beside the read bandwidth, both measured here (peaks.h).
//
//   bench_profile [train|b1|b32|b256|prefill]… [--isa NAME] [--threads N] [--pin on|off] [--models DIR] [--kv auto|f32|bf16|fp8] [--dtype f32|bf16|fp8]
//
// SmolLM2-135M; without a name all but b256. train: 4 sequences of 1,024 tokens, otherwise as the row train-step. b1, b32: steps of one token of 1 and of 32
// sequences at a context of 256; b256: 256 sequences, 32 tokens after prompts of 64; prefill: 8 prompts of 512 tokens; all FP8 with bf16 keys and values unless said otherwise. Times are wall
// clock on the thread that calls the ops, so on a busy machine they show the neighbours, too; the median step of several is printed.
// Bytes are those that must move at least (kernels/observe.h): an op whose operands stay in a cache goes beyond 100 % of the bandwidth.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "kernels/observe.h"
#include "tests/bench/peaks.h"
#include "tests/bench/subject.h"
#include "trainer/step.h"

#define GROUPS_MAX  128
#define STEPS_MAX   256
#define CONTEXT     256
#define DECODES     64
#define TRAIN_SEQS  4
#define TRAIN_ROWS  1024
#define TRAIN_STEPS 3

struct group { // calls of one op at one kind of place, with one shape of weights
    int32_t op;
    const char *name, *block;
    enum dtype dtype;
    int64_t n, k;
    int64_t calls;
    double seconds, flops, bytes;
};

struct profile {
    struct group groups[GROUPS_MAX];
    int n_groups;
    double began; // the op under way
    int64_t steps;
    double step_seconds[STEPS_MAX];
};

struct options {
    struct subject_options subject;
    enum kv_choice kv;
};

// ---- watching -------------------------------------------------------------------------------------------------------------

static void op_before(void *ctx, const struct op_call *call)
{
    struct profile *p = ctx;
    (void)call;
    p->began = subject_seconds();
}

static struct group *group_of(struct profile *p, const struct op_call *c)
{
    bool product = c->op == OP_INDEX(gemm) || c->op == OP_INDEX(gemm_dw);
    int64_t n = product ? c->n : 0, k = product ? c->k : 0;
    const char *block = c->block ? c->block : "";
    for (int i = 0; i < p->n_groups; i++) {
        struct group *g = &p->groups[i];
        if (g->op == c->op && strcmp(g->block, block) == 0 && g->dtype == c->dtype && g->n == n && g->k == k)
            return g;
    }
    if (p->n_groups == GROUPS_MAX)
        return &p->groups[GROUPS_MAX - 1];
    struct group *g = &p->groups[p->n_groups++];
    *g = (struct group){.op = c->op, .name = c->name, .block = block, .dtype = c->dtype, .n = n, .k = k};
    return g;
}

static void op_after(void *ctx, const struct op_call *c)
{
    struct profile *p = ctx;
    double took = subject_seconds() - p->began;
    struct group *g = group_of(p, c);
    g->calls++;
    g->seconds += took;
    g->flops += c->flops;
    g->bytes += c->bytes;
}

static void step_note(struct profile *p, double seconds)
{
    if (p->steps < STEPS_MAX)
        p->step_seconds[p->steps++] = seconds;
}

// ---- printing -------------------------------------------------------------------------------------------------------------

static int by_time(const void *a, const void *b)
{
    double x = ((const struct group *)a)->seconds, y = ((const struct group *)b)->seconds;
    return (x < y) - (x > y);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_group(const struct group *g, double steps, double total, double fma, double bf16,
                        double bandwidth)
{
    char shape[32] = "", arithmetic[40] = "";
    if (g->k)
        snprintf(shape, sizeof shape, "%lldx%lld", (long long)g->n, (long long)g->k);
    bool product = g->k && g->dtype != DT_F32;
    double flops = g->flops / g->seconds, bytes = g->bytes / g->seconds;
    if (g->flops > 0)
        snprintf(arithmetic, sizeof arithmetic, "%8.1f %5.1f%%", flops * 1e-9,
                 100 * flops / (product ? bf16 : fma));
    printf("%-15s %-10s %-8s %-11s %7.1f %10.3f %6.1f%% %16s %8.1f %5.0f%%\n", g->name, g->block,
           dtype_name(g->dtype), shape, (double)g->calls / steps, 1e3 * g->seconds / steps,
           100 * g->seconds / total, arithmetic, bytes * 1e-9, 100 * bytes / bandwidth);
}

static void print_profile(struct profile *p, struct device *d, const char *what, double bandwidth, double set)
{
    double total = 0, ops = 0, steps = (double)p->steps, fma = peak_fma(d), bf16 = peak_bf16(d);
    for (int64_t i = 0; i < p->steps; i++)
        total += p->step_seconds[i];
    qsort(p->step_seconds, (size_t)p->steps, sizeof *p->step_seconds, ascending);
    qsort(p->groups, (size_t)p->n_groups, sizeof *p->groups, by_time);
    printf("\n%s: %s, %lld steps, median %.3f ms, mean %.3f ms\n", what, d->name, (long long)p->steps,
           1e3 * p->step_seconds[p->steps / 2], 1e3 * total / steps);
    printf("peaks: %.1f GFLOP/s of bf16 products, %.1f of f32 multiply-adds; %.1f GB/s reading %.0f MB\n",
           bf16 * 1e-9, fma * 1e-9, bandwidth * 1e-9, set * 1e-6);
    printf("%-15s %-10s %-8s %-11s %7s %10s %7s %16s %8s %6s\n", "op", "block", "dtype", "weights", "calls",
           "ms a step", "share", "GFLOP/s  of peak", "GB/s", "of bw");
    for (int i = 0; i < p->n_groups; i++) {
        print_group(&p->groups[i], steps, total, fma, bf16, bandwidth);
        ops += p->groups[i].seconds;
    }
    printf("%-46s %7s %10.3f %6.1f%%\n", "outside the ops", "", 1e3 * (total - ops) / steps,
           100 * (total - ops) / total);
}

static double read_speed(struct device *d, double set)
{
    size_t bytes = (size_t)set / 64 * 64;
    void *p = device_alloc(d, bytes);
    if (!p)
        return 0;
    memset(p, 1, bytes);
    double speed = peak_read(d, p, bytes, 0.5);
    device_free(d, p);
    return speed;
}

// ---- the engine -----------------------------------------------------------------------------------------------------------

// Steps until the engine is done; only those of one kind are watched: decoding alone, or with rows of prompts.
static enum status engine_profile(struct engine *e, struct device *d, int32_t n, bool prefill,
                                  struct profile *p, struct error *err)
{
    const struct observer o = {.ctx = p, .before = op_before, .after = op_after};
    struct engine_stats after;
    struct outputs out;
    enum status rc = STATUS_OK;
    outputs_init(&out);
    bool decoding = prefill; // known after the first step
    while (!rc && engine_ready(e)) {
        device_observe(d, decoding ? &o : NULL);
        double t0 = subject_seconds();
        outputs_clear(&out);
        rc = engine_step(e, &out, err);
        if (decoding)
            step_note(p, subject_seconds() - t0);
        engine_stats(e, &after);
        decoding = prefill || after.running == n;
    }
    device_observe(d, NULL);
    outputs_done(&out);
    return rc;
}

static enum status profile_engine(const struct options *o, int32_t n, int32_t length, int32_t n_new,
                                  const char *what, struct error *err)
{
    struct subject s = {0};
    struct engine *e = NULL;
    struct profile *p = mem_must(1, sizeof *p);
    const struct engine_config config = {.kv_tokens = 2 * n * (length + n_new + 64),
                                         .kv_dtype = o->kv,
                                         .max_running = n,
                                         .flush_tokens = 16,
                                         .no_prefix_cache = n_new == 1};
    enum status rc = subject_open(&o->subject, &s, err);
    if (rc || (rc = engine_open(s.d, &s.c, o->subject.dtype, &config, &e, err)))
        goto out;
    engine_set_weights(e, s.w, 0);
    for (uint64_t round = 1; round <= 2; round++) { // the first warms up
        *p = (struct profile){0};
        if ((rc = subject_submit(&s, e, n, length, n_new, round, err)) ||
            (rc = engine_profile(e, s.d, n, n_new == 1, p, err)))
            goto out;
    }
    double kv =
        (double)kv_page_bytes(&s.c, kv_dtype_choose(o->kv, o->subject.dtype), ATTN_BLOCK) / ATTN_BLOCK;
    double set = (double)s.file_bytes + kv * n * (length + n_new / 2);
    print_profile(p, s.d, what, read_speed(s.d, set), set);
out:
    engine_close(e);
    subject_close(&s);
    free(p);
    return rc;
}

// ---- training -------------------------------------------------------------------------------------------------------------

struct tokens { // one prepared step of random tokens
    struct msg_member members[TRAIN_SEQS];
    int32_t ids[TRAIN_SEQS * (TRAIN_ROWS + 1)], versions[TRAIN_SEQS * (TRAIN_ROWS + 1)];
    uint8_t mask[TRAIN_SEQS * (TRAIN_ROWS + 1)];
    float logprobs[TRAIN_SEQS * (TRAIN_ROWS + 1)], temperatures[TRAIN_SEQS * (TRAIN_ROWS + 1)];
};

static struct msg_prepare tokens_make(struct tokens *t, int64_t vocab)
{
    struct rng r;
    rng_init(&r, 1, 1);
    int32_t n = TRAIN_ROWS + 1;
    for (int32_t i = 0; i < TRAIN_SEQS; i++)
        t->members[i] = (struct msg_member){.trajectory = (uint64_t)i,
                                            .n_tokens = n,
                                            .multiplicity = 1,
                                            .advantage = i % 2 ? 1 : -1,
                                            .task = -1};
    for (int32_t i = 0; i < TRAIN_SEQS * n; i++) {
        t->ids[i] = (int32_t)rng_below(&r, (uint64_t)vocab);
        t->mask[i] = i % n > 0;
        t->logprobs[i] = t->mask[i] ? -3 : 0;
        t->temperatures[i] = 1;
    }
    return (struct msg_prepare){.lr = 1e-5,
                                .updates = 1,
                                .expect_hash = "",
                                .n_members = TRAIN_SEQS,
                                .members = t->members,
                                .n_tokens = TRAIN_SEQS * n,
                                .ids = t->ids,
                                .mask = t->mask,
                                .logprobs = t->logprobs,
                                .versions = t->versions,
                                .temperatures = t->temperatures};
}

static enum status profile_train(const struct options *o, struct error *err)
{
    struct run_config *config = mem_must(1, sizeof *config);
    struct tokens *tokens = mem_must(1, sizeof *tokens);
    struct step_result *result = mem_must(1, sizeof *result);
    struct profile *p = mem_must(1, sizeof *p);
    struct trainer *t = NULL;
    const struct observer watch = {.ctx = p, .before = op_before, .after = op_after};
    subject_train_config(config);
    config->trainer.threads = o->subject.threads;
    snprintf(config->trainer.isa, sizeof config->trainer.isa, "%s", o->subject.isa);
    enum status rc = trainer_open(config, "", &t, err);
    if (rc || (rc = trainer_restart(t, err)))
        goto out;
    pool_thread_init();
    struct msg_prepare step = tokens_make(tokens, config->model.vocab);
    for (int i = 0; i <= TRAIN_STEPS && !rc; i++) { // the first warms up
        if (i == 1)
            device_observe(t->device, &watch);
        double t0 = subject_seconds();
        step.step = t->step;
        rc = trainer_step(t, &step, result, err);
        if (!rc && result->outcome != STEP_APPLIED)
            rc = error_set(err, STATUS_CORRUPT, "the step was rejected: %s", result->reason);
        if (i > 0)
            step_note(p, subject_seconds() - t0);
    }
    device_observe(t->device, NULL);
    if (!rc)
        print_profile(p, t->device, "train, 4 x 1,024 tokens, bf16", read_speed(t->device, 5e8), 5e8);
out:
    trainer_close(t);
    free(p);
    free(result);
    free(tokens);
    free(config);
    return rc;
}

// ---- the program ----------------------------------------------------------------------------------------------------------

static enum status profile_run(const char *what, const struct options *o, struct error *err)
{
    if (strcmp(what, "train") == 0)
        return profile_train(o, err);
    if (strcmp(what, "b1") == 0)
        return profile_engine(o, 1, CONTEXT - DECODES / 2, DECODES, "decode, 1 sequence", err);
    if (strcmp(what, "b32") == 0)
        return profile_engine(o, 32, CONTEXT - DECODES / 2, DECODES, "decode, 32 sequences", err);
    if (strcmp(what, "b256") == 0)
        return profile_engine(o, 256, 64, 32, "decode, 256 sequences", err);
    return profile_engine(o, 8, 512, 1, "prefill, 8 x 512 tokens", err);
}

static bool option(struct options *o, const char *name, const char *value)
{
    static const char *const kv_names[] = {"auto", "f32", "bf16", "fp8"};
    if (strcmp(name, "--isa") == 0)
        o->subject.isa = value;
    else if (strcmp(name, "--threads") == 0)
        o->subject.threads = atoi(value);
    else if (strcmp(name, "--pin") == 0)
        o->subject.pin = strcmp(value, "on") == 0;
    else if (strcmp(name, "--models") == 0)
        o->subject.models = value;
    else if (strcmp(name, "--dtype") == 0)
        return subject_dtype(value, &o->subject.dtype);
    else if (strcmp(name, "--kv") == 0) {
        for (int i = 0; i < 4; i++)
            if (strcmp(value, kv_names[i]) == 0) {
                o->kv = (enum kv_choice)i;
                return true;
            }
        return false;
    } else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    static const char *const all[] = {"b1", "b32", "prefill", "train", "b256"};
    struct options o = {.subject = {.isa = "auto", .dtype = DT_FP8}, .kv = KV_BF16};
    const char *wanted[16];
    int n = 0;
    for (int i = 1; i < argc; i++) {
        bool known = false;
        for (int j = 0; j < 5; j++)
            known = known || strcmp(argv[i], all[j]) == 0;
        if (known && n < 16) {
            wanted[n++] = argv[i];
        } else if (argv[i][0] != '-' || i + 1 == argc || !option(&o, argv[i], argv[i + 1])) {
            fprintf(stderr, "usage: bench_profile [train|b1|b32|b256|prefill]... [--isa NAME] [--threads N] "
                            "[--models DIR] [--dtype T] [--kv T]\n");
            return 2;
        } else {
            i++;
        }
    }
    for (int i = 0; i < (n ? n : 4); i++) {
        struct error err;
        if (profile_run(n ? wanted[i] : all[i], &o, &err)) {
            fprintf(stderr, "bench_profile: %s\n", err.text);
            return 1;
        }
    }
    return 0;
}
