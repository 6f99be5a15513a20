// Tokens a second of the engine: four rows of `ooze bench`, all SmolLM2-135M through engine_submit and engine_step with real
// sampling at temperature 1, a log-probability for every token.
//
//   bench_decode [--row b1|b32|prefill|bandwidth] [--serve] [--dtype f32|bf16|fp8] [--kv auto|f32|bf16|fp8] [--isa NAME]
//                [--threads N] [--pin on|off] [--models DIR] [--sequences N]
//
// b1, b32    PROMPT tokens of context a sequence, then NEW steps of one token each, so that the mean context is 256
// prefill    32 prompts of 512 tokens, each up to its first sampled token; no prefix cache
// bandwidth  b1 as bytes a second: what a step has to touch (weights, keys and values at the mean context, each byte once),
//            beside the speed of reading as many bytes of the weights' own memory: steps and passes take turns, TURN of each,
//            the first of a turn does not count; medians of both, of the best of the ways to read (peaks.h)
// Keys and values are bf16 unless --kv says otherwise: llama.cpp's are f16. --serve: the line protocol (cli/bench_child.h);
// otherwise a table, with the CPU time of a step beside that of the forward pass alone.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "model/weights.h"
#include "tests/bench/peaks.h"
#include "tests/bench/subject.h"

#define PROMPT       224
#define NEW          64
#define PREFILL      512
#define TURN         8 // steps, and passes of each way
#define TABLE_ROUNDS 3

enum row { ROW_B1, ROW_B32, ROW_PREFILL, ROW_BANDWIDTH };
static const char *const row_names[] = {"b1", "b32", "prefill", "bandwidth"};

struct bench {
    enum row row;
    bool serve;
    int32_t n; // sequences
    enum kv_choice kv;
    struct subject_options options;
    struct subject subject;
    struct engine *engine;
    struct outputs out;
    uint64_t round;
    double touched; // bytes of a step
};

struct figures {
    double seconds;    // of the timed steps
    int64_t steps;     // of those
    double tokens_s;   // per second
    double cpu_best;   // CPU time of all threads, of the cheapest step
    double step, read; // bandwidth: median seconds of a step, and of a pass of the way that has the lowest
};

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, ascending);
    return v[n / 2];
}

// The samples of a round of the bandwidth row.
struct turns {
    int steps, passes;
    double step[NEW], pass[PEAK_READ_WAYS][NEW / TURN];
};

// Of this process, all threads: what a step costs when others use the machine, too. Exact with one thread; idle threads spin.
static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static enum status bench_open(struct bench *b, struct error *err)
{
    enum status rc = subject_open(&b->options, &b->subject, err);
    if (rc)
        return rc;
    bool prefill = b->row == ROW_PREFILL;
    int32_t length = prefill ? PREFILL : PROMPT + NEW;
    const struct engine_config config = {.kv_tokens = 2 * b->n * (length + 64),
                                         .kv_dtype = b->kv,
                                         .max_running = b->n,
                                         .flush_tokens = 16,
                                         .no_prefix_cache = prefill};
    outputs_init(&b->out);
    rc = engine_open(b->subject.d, &b->subject.c, b->options.dtype, &config, &b->engine, err);
    if (rc)
        return rc;
    engine_set_weights(b->engine, b->subject.w, 0);
    enum dtype kv = kv_dtype_choose(b->kv, b->options.dtype);
    double kv_token = (double)kv_page_bytes(&b->subject.c, kv, ATTN_BLOCK) / ATTN_BLOCK;
    b->touched = (double)b->subject.file_bytes + (PROMPT + NEW / 2) * kv_token * b->n;
    return STATUS_OK;
}

static void bench_close(struct bench *b)
{
    engine_close(b->engine);
    outputs_done(&b->out);
    subject_close(&b->subject);
}

static enum status step(struct bench *b, struct error *err)
{
    outputs_clear(&b->out);
    return engine_step(b->engine, &b->out, err);
}

// All prompts to their first token: the prefill row times this.
static enum status prefill(struct bench *b, struct figures *ret, struct error *err)
{
    *ret = (struct figures){0};
    enum status rc = subject_submit(&b->subject, b->engine, b->n, PREFILL, 1, ++b->round, err);
    double t0 = subject_seconds(), cpu0 = cpu_seconds();
    for (; !rc && engine_ready(b->engine); ret->steps++)
        rc = step(b, err);
    ret->seconds = subject_seconds() - t0;
    ret->tokens_s = (double)b->n * PREFILL / ret->seconds;
    ret->cpu_best = cpu_seconds() - cpu0;
    return rc;
}

// The read passes of one turn; the first of all does not count. The weights are what is packed and the table of embeddings, more
// than a step touches.
static void read_turn(struct bench *b, struct turns *t)
{
    const struct weights *w = b->subject.w;
    const size_t want = (size_t)b->touched / 64 * 64, bytes = want < w->bytes ? want : w->bytes / 64 * 64;
    if (t->passes == NEW / TURN)
        return;
    peak_read_pass(b->subject.d, w->data, bytes, t->passes % PEAK_READ_WAYS);
    for (int way = 0; way < PEAK_READ_WAYS; way++)
        t->pass[way][t->passes] =
            peak_read_pass(b->subject.d, w->data, bytes, way) * b->touched / (double)bytes;
    t->passes++;
}

static void turns_sum(struct turns *t, struct figures *ret)
{
    if (t->steps == 0 || t->passes == 0)
        return;
    ret->step = median(t->step, t->steps);
    ret->read = 1e9;
    for (int way = 0; way < PEAK_READ_WAYS; way++) {
        double m = median(t->pass[way], t->passes);
        ret->read = m < ret->read ? m : ret->read;
    }
}

// One round of decoding: the first steps, with rows of the prompts, are not timed.
static enum status decode(struct bench *b, struct figures *ret, struct error *err)
{
    struct engine_stats before, after;
    struct turns turns = {0};
    *ret = (struct figures){.cpu_best = 1e9};
    enum status rc = subject_submit(&b->subject, b->engine, b->n, PROMPT, NEW + 1, ++b->round, err);
    engine_stats(b->engine, &before);
    while (!rc && engine_ready(b->engine)) {
        double t0 = subject_seconds(), cpu0 = cpu_seconds();
        rc = step(b, err);
        engine_stats(b->engine, &after);
        bool full = after.generated_tokens - before.generated_tokens == b->n &&
                    after.prefill_tokens == before.prefill_tokens;
        before = after;
        if (!full)
            continue;
        double cpu = cpu_seconds() - cpu0, seconds = subject_seconds() - t0;
        ret->seconds += seconds;
        ret->cpu_best = cpu < ret->cpu_best ? cpu : ret->cpu_best;
        if (b->row == ROW_BANDWIDTH && ret->steps % TURN > 0)
            turns.step[turns.steps++] = seconds;
        if (++ret->steps % TURN == 0 && b->row == ROW_BANDWIDTH)
            read_turn(b, &turns);
    }
    turns_sum(&turns, ret);
    ret->tokens_s = (double)ret->steps * b->n / ret->seconds;
    if (!rc && ret->steps < NEW / 2)
        rc = error_set(err, STATUS_CORRUPT, "only %lld steps of decoding alone", (long long)ret->steps);
    return rc;
}

static enum status measure(struct bench *b, struct figures *ret, struct error *err)
{
    return b->row == ROW_PREFILL ? prefill(b, ret, err) : decode(b, ret, err);
}

// ---- for `ooze bench` ---------------------------------------------------------------------------------------------------

static enum status answer(struct bench *b, struct error *err)
{
    struct figures f;
    enum status rc = measure(b, &f, err);
    if (rc)
        return rc;
    double step_ms = 1e3 * f.seconds / (double)f.steps;
    if (b->row == ROW_BANDWIDTH) {
        printf("{\"value\":%.6g,\"bound\":%.6g,\"bound_name\":\"reading %.0f MB\",\"tokens_per_s\":%.2f}\n",
               b->touched / f.step * 1e-9, b->touched / f.read * 1e-9, b->touched * 1e-6, 1 / f.step);
    } else {
        printf("{\"value\":%.6g,\"step_ms\":%.4f}\n", f.tokens_s, step_ms);
    }
    return STATUS_OK;
}

static enum status serve(struct bench *b, struct error *err)
{
    static const char *const kv_names[] = {"auto", "f32", "bf16", "fp8"};
    struct figures f;
    char line[64];
    enum status rc = bench_open(b, err);
    if (rc || (rc = measure(b, &f, err))) // the prompts are in the prefix cache from here on
        return rc;
    printf("{\"ready\":true,\"isa\":\"%s\",\"threads\":%d,\"bytes\":%lld,\"bytes_touched\":%.0f,\"dtype\":\"%"
           "s\","
           "\"kv\":\"%s\",\"weights\":\"%s\",\"sampled\":\"temperature 1, with logprobs\"}\n",
           isa_name(b->subject.d->isa), pool_threads(b->subject.d->pool), (long long)b->subject.file_bytes,
           b->touched, dtype_name(b->options.dtype), kv_names[b->kv],
           b->subject.random ? "random" : "SmolLM2");
    fflush(stdout);
    while (!rc && fgets(line, sizeof line, stdin) && strcmp(line, "run\n") == 0) {
        rc = answer(b, err);
        fflush(stdout);
    }
    return rc;
}

// ---- for people -----------------------------------------------------------------------------------------------------------

// CPU seconds of the cheapest forward pass with logits of n sequences of one row each at position pos.
static enum status bare_forward(struct bench *b, int32_t pos, double *ret, struct error *err)
{
    struct device *d = b->subject.d;
    const struct model_config *c = &b->subject.c;
    struct kv *kv = NULL;
    int32_t n = b->n, per_seq = pos / ATTN_BLOCK + 1;
    enum status rc =
        kv_open(d, c, kv_dtype_choose(b->kv, b->options.dtype), n * per_seq, ATTN_BLOCK, &kv, err);
    if (rc)
        return rc;
    int32_t *ids = mem_must((size_t)n, sizeof *ids), *at = mem_must((size_t)n, sizeof *at);
    int32_t *pages = mem_must((size_t)(n * per_seq), sizeof *pages);
    struct attn_seq *seqs = mem_must((size_t)n, sizeof *seqs);
    for (int32_t i = 0; i < n; i++) {
        ids[i] = i;
        at[i] = pos;
        seqs[i] = (struct attn_seq){.row0 = i, .n_rows = 1, .pos0 = pos, .pages = pages + i * per_seq};
        for (int32_t k = 0; k < per_seq; k++)
            pages[i * per_seq + k] = i * per_seq + k;
    }
    const struct batch batch = {.n_rows = n, .n_seqs = n, .ids = ids, .pos = at, .seqs = seqs};
    float *hidden = device_alloc(d, (size_t)(n * c->hidden) * sizeof(float));
    float *logits = device_alloc(d, (size_t)(n * c->vocab) * sizeof(float));
    struct arena arena;
    arena_init(&arena, 0);
    *ret = 1e9;
    for (double until = subject_seconds() + 1.5; !rc && subject_seconds() < until;) {
        double t0 = cpu_seconds();
        arena_reset(&arena);
        rc = model_forward(b->subject.w, kv, &batch, &arena, hidden, err);
        model_logits(b->subject.w, n, hidden, logits);
        double t = cpu_seconds() - t0;
        *ret = t < *ret ? t : *ret;
    }
    arena_done(&arena);
    device_free(d, hidden);
    device_free(d, logits);
    free(ids);
    free(at);
    free(pages);
    free(seqs);
    kv_close(kv);
    return rc;
}

static enum status table(struct bench *b, struct error *err)
{
    struct figures f;
    double bare, best = 1e9;
    enum status rc = bench_open(b, err);
    if (rc || (rc = measure(b, &f, err)))
        return rc;
    printf("SmolLM2-135M, %s weights %s, %lld bytes, %s, %d sequences\n",
           b->subject.random ? "random" : "its own", dtype_name(b->options.dtype),
           (long long)b->subject.file_bytes, b->subject.d->name, (int)b->n);
    for (int i = 0; i < TABLE_ROUNDS; i++) {
        if ((rc = measure(b, &f, err)))
            return rc;
        best = f.cpu_best < best ? f.cpu_best : best;
        printf("%10.1f tokens/s of wall time, %.3f ms a step, %lld steps", f.tokens_s,
               1e3 * f.seconds / (double)f.steps, (long long)f.steps);
        if (b->row == ROW_BANDWIDTH) {
            printf("; medians in turns: %.2f GB/s a step, %.2f reading %.0f MB: %.3f",
                   b->touched / f.step * 1e-9, b->touched / f.read * 1e-9, b->touched * 1e-6,
                   f.read / f.step);
        }
        printf("\n");
    }
    if (b->row == ROW_PREFILL)
        return STATUS_OK;
    if ((rc = bare_forward(b, PROMPT + NEW / 2, &bare, err)))
        return rc;
    printf("CPU time of the cheapest step: engine %.3f ms, forward pass and logits alone %.3f ms: ratio "
           "%.3f, %.2f us a "
           "token beside it\n",
           best * 1e3, bare * 1e3, bare / best, (best - bare) / b->n * 1e6);
    return STATUS_OK;
}

static bool option(struct bench *b, const char *name, const char *value)
{
    static const char *const kv_names[] = {"auto", "f32", "bf16", "fp8"};
    bool ok = true;
    if (strcmp(name, "--row") == 0) {
        ok = false;
        for (int i = 0; i < 4; i++)
            if (strcmp(value, row_names[i]) == 0) {
                b->row = (enum row)i;
                b->n = i == ROW_B32 || i == ROW_PREFILL ? 32 : 1;
                ok = true;
            }
    } else if (strcmp(name, "--kv") == 0) {
        ok = false;
        for (int i = 0; i < 4; i++)
            if (strcmp(value, kv_names[i]) == 0) {
                b->kv = (enum kv_choice)i;
                ok = true;
            }
    } else if (strcmp(name, "--dtype") == 0)
        ok = subject_dtype(value, &b->options.dtype);
    else if (strcmp(name, "--isa") == 0)
        b->options.isa = value;
    else if (strcmp(name, "--models") == 0)
        b->options.models = value;
    else if (strcmp(name, "--threads") == 0)
        b->options.threads = atoi(value);
    else if (strcmp(name, "--pin") == 0)
        b->options.pin = strcmp(value, "on") == 0;
    else if (strcmp(name, "--sequences") == 0)
        b->n = atoi(value);
    else
        ok = false;
    return ok && b->n >= 1 && b->n <= 1024;
}

int main(int argc, char **argv)
{
    struct bench b = {.n = 1, .kv = KV_BF16, .options = {.isa = "auto", .dtype = DT_FP8}};
    struct error err;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--serve") == 0) {
            b.serve = true;
        } else if (i + 1 == argc || !option(&b, argv[i], argv[i + 1])) {
            fprintf(stderr, "bench_decode: option %s\n", argv[i]);
            return 2;
        } else {
            i++;
        }
    }
    enum status rc = b.serve ? serve(&b, &err) : table(&b, &err);
    if (rc)
        printf("{\"error\":\"bench_decode: %s\"}\n", err.text);
    bench_close(&b);
    return rc ? 1 : 0;
}
