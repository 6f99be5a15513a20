// Tokens a second of the engine: what the forward pass alone would give for the same rows (the bound), what the engine gives,
// and what the difference costs a token. Models: the quickstart's (871,552 parameters) and SmolLM2-135M's shape, random weights.
// Usage: bench_decode [quickstart|smollm2] [dtype f32|bf16|fp8] [threads] [sequences] [new tokens]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/rng.h"
#include "rollout/engine.h"

static void die(const struct error *err)
{
    fprintf(stderr, "bench_decode: %s\n", err->text);
    exit(1);
}

static struct model_config quickstart(void)
{
    return (struct model_config){.arch = "llama",
                                 .hidden = 128,
                                 .n_layers = 4,
                                 .n_heads = 4,
                                 .n_kv_heads = 4,
                                 .head_dim = 32,
                                 .ffn = 352,
                                 .vocab = 264,
                                 .max_position = 512,
                                 .rms_eps = 1e-5f,
                                 .rope_theta = 1e4,
                                 .rope_scaling = {.factor = 1},
                                 .init_std = 0.02,
                                 .bos_id = -1};
}

static struct model_config smollm2(void)
{
    return (struct model_config){.arch = "llama",
                                 .hidden = 576,
                                 .n_layers = 30,
                                 .n_heads = 9,
                                 .n_kv_heads = 3,
                                 .head_dim = 64,
                                 .ffn = 1536,
                                 .vocab = 49152,
                                 .max_position = 8192,
                                 .rms_eps = 1e-5f,
                                 .rope_theta = 1e5,
                                 .rope_scaling = {.factor = 1},
                                 .tie_embeddings = true,
                                 .init_std = 0.02,
                                 .bos_id = -1};
}

static double seconds(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}

// Of this process, all threads: what a step costs when others use the machine, too. Exact with one thread; idle threads spin.
static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Steps of n sequences of one row each at position `pos`: forward pass and logits, nothing else. CPU seconds of the best step.
static double bare_forward(struct device *d, const struct weights *w, const struct model_config *c,
                           enum dtype dtype, int32_t n, int32_t pos)
{
    struct error err;
    struct kv *kv = NULL;
    int32_t per_seq = pos / 32 + 1;
    if (kv_open(d, c, kv_dtype_for(dtype), n * per_seq, 32, &kv, &err) != STATUS_OK)
        die(&err);
    int32_t *ids = mem_must((size_t)n, sizeof *ids), *at = mem_must((size_t)n, sizeof *at);
    int32_t *pages = mem_must((size_t)(n * per_seq), sizeof *pages);
    struct attn_seq *seqs = mem_must((size_t)n, sizeof *seqs);
    for (int32_t i = 0; i < n; i++) {
        ids[i] = i % 200;
        at[i] = pos;
        seqs[i] = (struct attn_seq){.row0 = i, .n_rows = 1, .pos0 = pos, .pages = pages + i * per_seq};
        for (int32_t k = 0; k < per_seq; k++)
            pages[i * per_seq + k] = i * per_seq + k;
    }
    const struct batch b = {.n_rows = n, .n_seqs = n, .ids = ids, .pos = at, .seqs = seqs};
    float *hidden = device_alloc(d, (size_t)(n * c->hidden) * sizeof(float));
    float *logits = device_alloc(d, (size_t)(n * c->vocab) * sizeof(float));
    struct arena arena;
    arena_init(&arena, 0);
    double best = 1e9;
    double until = seconds() + 1.5;
    while (seconds() < until) {
        double t0 = cpu_seconds();
        arena_reset(&arena);
        if (model_forward(w, kv, &b, &arena, hidden, &err) != STATUS_OK)
            die(&err);
        model_logits(w, n, hidden, logits);
        double t = cpu_seconds() - t0;
        best = t < best ? t : best;
    }
    arena_done(&arena);
    device_free(d, hidden);
    device_free(d, logits);
    free(ids);
    free(at);
    free(pages);
    free(seqs);
    kv_close(kv);
    return best;
}

static void engine_run(struct device *d, const struct weights *w, const struct model_config *c,
                       enum dtype dtype, int32_t n, int32_t n_new, double bare_s)
{
    struct error err;
    struct engine *e = NULL;
    const struct engine_config config = {.kv_tokens = n * (n_new + 64), .max_running = n, .flush_tokens = 16};
    if (engine_open(d, c, dtype, &config, &e, &err) != STATUS_OK)
        die(&err);
    engine_set_weights(e, w, 0);
    struct outputs out;
    outputs_init(&out);
    int32_t ids[16];
    struct rng r;
    rng_init(&r, 1, 1);
    for (int32_t j = 0; j < n; j++) {
        for (int32_t i = 0; i < 16; i++)
            ids[i] = (int32_t)rng_below(&r, 200);
        const struct engine_job job = {
            .msg = {.job = (uint64_t)j + 1,
                    .trajectory = (uint64_t)j,
                    .session = (uint64_t)j + 1,
                    .sampling = {.temperature = 1, .top_p = 1, .max_new = n_new, .train = true},
                    .n_ids = 16,
                    .ids = ids}};
        if (engine_submit(e, &job, &err) != STATUS_OK)
            die(&err);
    }
    double t0 = 0, best = 1e9, t_start = 0;
    int64_t steps = 0;
    while (engine_ready(e)) {
        struct engine_stats before, after;
        engine_stats(e, &before);
        t0 = cpu_seconds();
        outputs_clear(&out);
        if (engine_step(e, &out, &err) != STATUS_OK)
            die(&err);
        double t = cpu_seconds() - t0;
        if (steps++ == 0) {
            t_start = seconds(); // the first step is the prompts'
            continue;
        }
        engine_stats(e, &after);
        bool full = after.generated_tokens - before.generated_tokens == n &&
                    after.prefill_tokens == before.prefill_tokens;
        best = full && t < best ? t : best;
    }
    double wall = seconds() - t_start;
    struct engine_stats s;
    engine_stats(e, &s);
    double mean = wall / (double)(steps - 1);
    printf("engine: %.0f tokens/s of wall time, %.3f ms a step\n", (double)(s.generated_tokens - n) / wall,
           mean * 1e3);
    printf("CPU time of the best step: engine %.3f ms (%.0f tokens/s a core), forward alone %.3f ms: ratio "
           "%.3f, %.2f us a token beside it\n",
           best * 1e3, n / best, bare_s * 1e3, bare_s / best, (best - bare_s) / n * 1e6);
    outputs_done(&out);
    engine_close(e);
}

int main(int argc, char **argv)
{
    bool small = argc < 2 || strcmp(argv[1], "smollm2") != 0;
    const char *type = argc > 2 ? argv[2] : "fp8";
    enum dtype dtype = strcmp(type, "f32") == 0 ? DT_F32 : strcmp(type, "bf16") == 0 ? DT_BF16 : DT_FP8;
    int threads = argc > 3 ? atoi(argv[3]) : 2;
    int32_t n = argc > 4 ? atoi(argv[4])
                : small  ? 256
                         : 16,
            n_new = argc > 5 ? atoi(argv[5])
                    : small  ? 200
                             : 30;
    struct error err;
    struct device *d = NULL;
    struct layout l;
    struct weights *w = NULL;
    struct model_config c = small ? quickstart() : smollm2();
    if (device_open("cpu", "auto", threads, &d, &err) != STATUS_OK ||
        layout_open(&c, &l, &err) != STATUS_OK ||
        weights_open(d, &c, &l, dtype, false, &w, &err) != STATUS_OK)
        die(&err);
    float *master = mem_alloc((size_t)l.total * sizeof(float));
    layout_init_random(&l, &c, 1, master);
    weights_set(w, master);
    mem_free(master);
    printf("%s, %lld parameters, %s, %s, %d sequences, %d new tokens each\n",
           small ? "quickstart" : "smollm2", (long long)l.n_parameters, type, d->name, n, n_new);
    double bare = bare_forward(d, w, &c, dtype, n, 16 + n_new / 2);
    printf("weights %.1f MiB, forward pass in %.3f ms of CPU time: %.1f GB/s\n",
           (double)weights_bytes(w) / 1048576, bare * 1e3, (double)weights_bytes(w) / bare * 1e-9);
    engine_run(d, w, &c, dtype, n, n_new, bare);
    weights_close(w);
    layout_done(&l);
    device_close(d);
    return 0;
}
