// Training throughput: whole optimizer steps (pack, forward, loss, backward, AdamW) in trained tokens per second, for the shape of
// the quickstart and that of SmolLM2-135M, beside the rate of one large matrix product on the same threads in the same run.
//
//   bench_train [--dtype f32|bf16] [--threads N] [--isa NAME] [--steps N] [quickstart|smollm2]
//
// "of gemm" is 6 x parameters-in-products x tokens (8 x with recomputation; attention not counted) over the step's time, as a
// share of what the matrix product reaches alone.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "trainer/step.h"

struct shape {
    const char *name;
    struct run_model model;
    int32_t sequences, length, length_spread, prompt;
    int64_t micro_batch_tokens;
};

static const struct shape shapes[] = {
    {"quickstart",
     {.arch = "llama",
      .hidden = 128,
      .n_layers = 4,
      .n_heads = 4,
      .n_kv_heads = 4,
      .head_dim = 32,
      .ffn = 352,
      .vocab = 264,
      .max_position = 128,
      .rope_theta = 10000,
      .rms_eps = 1e-5},
     512,
     16,
     44,
     10,
     8192},
    {"smollm2",
     {.arch = "llama",
      .hidden = 576,
      .n_layers = 30,
      .n_heads = 9,
      .n_kv_heads = 3,
      .head_dim = 64,
      .ffn = 1536,
      .vocab = 49152,
      .max_position = 2048,
      .rope_theta = 100000,
      .rms_eps = 1e-5,
      .tie_embeddings = true},
     8,
     96,
     128,
     60,
     1024},
};

static double gemm_flops(struct device *d, enum dtype dtype)
{
    const int64_t n = 1024;
    const struct clock *clock = clock_system();
    size_t bytes = d->k->weight_bytes(dtype, n, n);
    float *x = mem_alloc((size_t)(n * n) * sizeof *x), *y = mem_alloc((size_t)(n * n) * sizeof *y);
    struct gemm_weight w = {.dtype = dtype, .n = n, .k = n, .data = device_alloc(d, bytes)};
    if (!x || !y || !w.data)
        abort();
    for (int64_t i = 0; i < n * n; i++)
        x[i] = (float)(i % 7) - 3;
    d->k->weight_pack(d, dtype, n, n, x, DT_F32, false, w.data);
    double best = 0;
    for (int round = 0; round < 5; round++) {
        int64_t start = clock_mono_ns(clock);
        d->k->gemm(d, &w, n, x, n, NULL, false, y, n);
        double flops = 2.0 * (double)(n * n * n) / ((double)(clock_mono_ns(clock) - start) / 1e9);
        best = flops > best ? flops : best;
    }
    device_free(d, w.data);
    mem_free(x);
    mem_free(y);
    return best;
}

static void make_step(const struct shape *s, struct msg_prepare *m)
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
            ids[at] = (int32_t)rng_below(&rng, (uint64_t)s->model.vocab);
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

static int bench(const struct shape *s, struct run_config *c, int steps)
{
    struct trainer *t = NULL;
    struct error err = {0};
    struct msg_prepare m;
    struct step_result *r = mem_must(1, sizeof *r);
    c->model = s->model;
    c->trainer.micro_batch_tokens = s->micro_batch_tokens;
    if (trainer_open(c, "", &t, &err) || trainer_restart(t, &err)) {
        fprintf(stderr, "bench_train: %s\n", err.text);
        return 1;
    }
    pool_thread_init();
    make_step(s, &m);
    double peak = gemm_flops(t->device, trainer_dtype(c)), best = 0;
    int64_t tokens = 0;
    for (int k = 0; k <= steps; k++) { // the first one warms up
        int64_t start = clock_mono_ns(clock_system()), before = atomic_load(&t->done_tokens);
        m.step = k;
        if (trainer_step(t, &m, r, &err) || r->outcome != STEP_APPLIED) {
            fprintf(stderr, "bench_train: %s%s\n", err.text, r->reason);
            return 1;
        }
        double rate = (double)(atomic_load(&t->done_tokens) - before) /
                      ((double)(clock_mono_ns(clock_system()) - start) / 1e9);
        tokens = atomic_load(&t->done_tokens) - before;
        best = k && rate > best ? rate : best;
    }
    int64_t in_products = t->layout.n_parameters;
    if (!t->model.tie_embeddings)
        in_products -= t->model.vocab * t->model.hidden;
    double flops = (c->trainer.recompute ? 8.0 : 6.0) * (double)in_products * best;
    printf("%-10s %-24s %s  %9lld parameters  %6lld tokens/step  %9.0f tokens/s  gemm %6.1f GFLOP/s  step is "
           "%4.1f%% of gemm\n",
           s->name, t->device->name, dtype_name(trainer_dtype(c)), (long long)t->layout.n_parameters,
           (long long)tokens, best, peak / 1e9, 100 * flops / peak);
    free((void *)m.members);
    free((void *)m.ids);
    free((void *)m.versions);
    free((void *)m.mask);
    free((void *)m.logprobs);
    free((void *)m.temperatures);
    free(r);
    trainer_close(t);
    return 0;
}

int main(int argc, char **argv)
{
    struct run_config *c = mem_must(1, sizeof *c);
    const char *only = NULL;
    int steps = 3, rc = 0;
    c->seed = 1;
    c->trainer.dtype = RUN_BF16;
    c->trainer.recompute = true;
    snprintf(c->trainer.isa, sizeof c->trainer.isa, "auto");
    c->n_stages = 1;
    c->stages[0] =
        (struct run_stage){.kind = RUN_STAGE_RL,
                           .loss = RUN_LOSS_PPO_CLIP,
                           .eps_low = 0.2,
                           .eps_high = 0.28,
                           .max_context = 2048,
                           .optimizer = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip_grad_norm = 1}};
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (more && strcmp(argv[i], "--dtype") == 0)
            c->trainer.dtype = strcmp(argv[++i], "f32") == 0 ? RUN_F32 : RUN_BF16;
        else if (more && strcmp(argv[i], "--threads") == 0)
            c->trainer.threads = atoi(argv[++i]);
        else if (more && strcmp(argv[i], "--steps") == 0)
            steps = atoi(argv[++i]);
        else if (more && strcmp(argv[i], "--isa") == 0)
            snprintf(c->trainer.isa, sizeof c->trainer.isa, "%s", argv[++i]);
        else
            only = argv[i];
    }
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0] && !rc; i++)
        if (!only || strcmp(only, shapes[i].name) == 0)
            rc = bench(&shapes[i], c, steps);
    free(c);
    return rc;
}
