// What the trainer's tests share: a model of a few thousand parameters, a configuration without a file, and prepared steps of
// random sequences.
#ifndef TESTS_TRAINER_TINY_H
#define TESTS_TRAINER_TINY_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "tests/isa.h"
#include "trainer/step.h"

#define TINY_VOCAB 61

// One rl stage (two_sided_is) and one sft stage, f32, one thread, budget of 64 rows.
static inline struct run_config *tiny_config(void)
{
    struct run_config *c = mem_must(1, sizeof *c);
    c->seed = 7;
    snprintf(c->model.arch, sizeof c->model.arch, "llama");
    c->model.hidden = 32;
    c->model.n_layers = 2;
    c->model.n_heads = 4;
    c->model.n_kv_heads = 2;
    c->model.head_dim = 8;
    c->model.ffn = 48;
    c->model.vocab = TINY_VOCAB;
    c->model.max_position = 128;
    c->model.rope_theta = 10000;
    c->model.rms_eps = 1e-5;
    c->rollout.dtype = RUN_FP8;
    c->trainer.threads = 1;
    c->trainer.dtype = RUN_F32;
    c->trainer.micro_batch_tokens = 64;
    c->trainer.keep_weights = 3;
    snprintf(c->trainer.isa, sizeof c->trainer.isa, "%s", test_isa());
    c->n_stages = 2;
    for (int i = 0; i < 2; i++) {
        struct run_stage *s = &c->stages[i];
        s->kind = i == 0 ? RUN_STAGE_RL : RUN_STAGE_SFT;
        s->loss = i == 0 ? RUN_LOSS_TWO_SIDED_IS : RUN_LOSS_SFT;
        s->eps_low = 0.2;
        s->eps_high = 0.28;
        s->beta = 2;
        s->max_context = s->max_tokens = 128;
        s->updates_per_batch = 1;
        s->optimizer = (struct run_optimizer){
            .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.01, .clip_grad_norm = 1};
    }
    snprintf(c->tasks[0].name, sizeof c->tasks[0].name, "sort");
    c->n_tasks = 1;
    return c;
}

struct tiny_step {
    struct msg_prepare msg;
    struct msg_member *members;
    int32_t *ids, *versions;
    uint8_t *mask;
    float *logprobs, *temperatures;
};

// n sequences of `length` tokens (0: 3 … 40), groups of `group`, one segment each; rollout log-probabilities near those of a
// freshly initialised model.
static inline void tiny_step_init(struct tiny_step *s, int32_t n, int32_t length, int32_t group,
                                  uint64_t seed)
{
    struct rng rng;
    int64_t total = 0;
    rng_init(&rng, seed, 1);
    s->members = mem_must((size_t)n, sizeof *s->members);
    for (int32_t i = 0; i < n; i++) {
        s->members[i] = (struct msg_member){.trajectory = seed * 1000 + (uint64_t)i,
                                            .group = (uint64_t)(i / group),
                                            .n_tokens = length ? length : 3 + (int32_t)rng_below(&rng, 38),
                                            .multiplicity = 1,
                                            .advantage = rng_normal(&rng),
                                            .task = 0};
        total += s->members[i].n_tokens;
    }
    size_t t = (size_t)total;
    s->ids = mem_must(t, sizeof *s->ids);
    s->versions = mem_must(t, sizeof *s->versions);
    s->mask = mem_must(t, 1);
    s->logprobs = mem_must(t, sizeof *s->logprobs);
    s->temperatures = mem_must(t, sizeof *s->temperatures);
    int64_t at = 0;
    for (int32_t i = 0; i < n; i++) {
        for (int32_t k = 0; k < s->members[i].n_tokens; k++, at++) {
            s->ids[at] = (int32_t)rng_below(&rng, TINY_VOCAB);
            s->mask[at] = k >= 2 && (k == s->members[i].n_tokens - 1 || rng_below(&rng, 4) > 0);
            s->logprobs[at] = s->mask[at] ? -logf(TINY_VOCAB) + 0.1f * rng_normal(&rng) : 0;
            s->versions[at] = s->mask[at] ? 0 : -1;
            s->temperatures[at] = s->mask[at] && i % 3 == 0 ? 0.7f : 1;
        }
    }
    s->msg = (struct msg_prepare){.epoch = 1,
                                  .step = 0,
                                  .stage = 0,
                                  .stage_first = true,
                                  .lr = 1e-2,
                                  .packing_seed = seed,
                                  .updates = 1,
                                  .expect_hash = "",
                                  .n_members = n,
                                  .members = s->members,
                                  .n_tokens = total,
                                  .ids = s->ids,
                                  .mask = s->mask,
                                  .logprobs = s->logprobs,
                                  .versions = s->versions,
                                  .temperatures = s->temperatures};
}

static inline void tiny_step_done(struct tiny_step *s)
{
    free(s->members);
    free(s->ids);
    free(s->versions);
    free(s->mask);
    free(s->logprobs);
    free(s->temperatures);
}

static inline double tiny_metric(const struct step_result *r, const char *name)
{
    for (int32_t i = 0; i < r->metrics.n; i++)
        if (strcmp(r->metrics.items[i].name, name) == 0)
            return r->metrics.items[i].value;
    return NAN;
}

// |a - b| / |b| over a flat vector.
static inline double tiny_distance(const float *a, const float *b, int64_t n)
{
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        diff += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(diff / norm);
}

#endif
