// Contract 3 under random plans: whatever the order of jobs and the moments they come at, page size, chunks, batch and cache sizes, and on
// one to four threads, every sampled token and log-probability has the bits of the job run alone on one thread; the trainer's forward
// gives the same log-probabilities in any packing, and its gradient does not depend on threads, recomputation or the size of its buffers.
#include "tests/unit/rollout/tiny.h"

enum { ROUNDS = RACES_ONLY ? 2 : 10, GRADIENTS = RACES_ONLY ? 2 : 8, JOBS = RACES_ONLY ? 5 : 12 };
enum { THREADS = 4, PROMPT_MAX = 90, NEW_MAX = 40, LEN_MAX = PROMPT_MAX + NEW_MAX };

static const float TEMPERATURE = 0.8f;

struct house {
    enum dtype dtype;
    enum kv_choice kv;
    struct rng r;
    struct model_config c;
    struct layout l;
    float *master;
    struct device *d[THREADS];           // 1 … 4 threads
    struct weights *w[THREADS];          // the same, packed on each
    int32_t ids[JOBS][LEN_MAX], n[JOBS]; // prompts, then what was sampled after them
    int32_t n_prompt[JOBS], max_new[JOBS];
    struct got *alone;
};

static int32_t between(struct house *h, int32_t lo, int32_t hi)
{
    return lo + (int32_t)rng_below(&h->r, (uint64_t)(hi - lo + 1));
}

// Every other prompt begins like its neighbour: prefixes to share.
static void jobs_make(struct house *h)
{
    for (int i = 0; i < JOBS; i++) {
        h->n_prompt[i] = between(h, 1, PROMPT_MAX);
        h->max_new[i] = between(h, 1, NEW_MAX);
        tiny_prompt((uint64_t)i / 2, h->ids[i], h->n_prompt[i]);
        if (h->n_prompt[i] > 70)
            h->ids[i][70] = i;
    }
}

static struct engine_job job_of(const struct house *h, int i)
{
    struct engine_job j = tiny_job((uint64_t)i + 1, h->ids[i], h->n_prompt[i], h->max_new[i]);
    j.msg.sampling.temperature = TEMPERATURE;
    return j;
}

static struct engine *engine_new(struct house *h, int threads, struct engine_config c)
{
    struct engine *e = NULL;
    c.kv_dtype = h->kv;
    must(engine_open(h->d[threads - 1], &h->c, h->dtype, &c, &e, err));
    engine_set_weights(e, h->w[threads - 1], 0);
    return e;
}

static void house_open(struct house *h, enum dtype dtype, enum kv_choice kv)
{
    memset(h, 0, sizeof *h);
    h->dtype = dtype;
    h->kv = kv;
    h->c = tiny_config();
    if (kv == KV_AUTO)
        h->c.head_dim = 24; // a size that fits no vector
    rng_init(&h->r, 71, (uint64_t)dtype * 10 + (uint64_t)kv);
    must(layout_open(&h->c, &h->l, err));
    h->master = mem_alloc((size_t)h->l.total * sizeof(float));
    layout_init_random(&h->l, &h->c, 40, h->master);
    for (int i = 0; i < THREADS; i++) {
        must(device_open("cpu", test_isa(), i + 1, &h->d[i], err));
        must(weights_open(h->d[i], &h->c, &h->l, dtype, false, &h->w[i], err));
        weights_set(h->w[i], h->master);
    }
    jobs_make(h);
    h->alone = mem_must(JOBS, sizeof *h->alone);
    for (int i = 0; i < JOBS; i++) {
        struct engine *e = engine_new(
            h, 1, (struct engine_config){.max_running = 1, .no_prefix_cache = true, .kv_tokens = 512});
        struct engine_job j = job_of(h, i);
        must(engine_submit(e, &j, err));
        tiny_run(e, h->alone, JOBS);
        engine_close(e);
        memcpy(h->ids[i] + h->n_prompt[i], h->alone[i].ids, (size_t)h->alone[i].n * sizeof(int32_t));
        h->n[i] = h->n_prompt[i] + h->alone[i].n;
    }
}

static void house_close(struct house *h)
{
    free(h->alone);
    for (int i = 0; i < THREADS; i++) {
        weights_close(h->w[i]);
        device_close(h->d[i]);
    }
    mem_free(h->master);
    layout_done(&h->l);
}

// ---- engines ---------------------------------------------------------------------------------------------------------

static int64_t plans_run(struct house *h)
{
    static const int32_t kv_tokens[] = {512, 1024, 8192}, pages[] = {32, 64, 96, 128};
    int64_t preemptions = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct engine_config c = {.kv_tokens = kv_tokens[between(h, 0, 2)],
                                  .page_tokens = pages[between(h, 0, 3)],
                                  .max_running = between(h, 1, JOBS),
                                  .prefill_chunk = between(h, 1, round % 2 ? 9 : 150),
                                  .flush_tokens = between(h, 1, 5),
                                  .no_prefix_cache = between(h, 0, 1)};
        c.max_batch_tokens = c.max_running + between(h, 0, round % 3 ? 40 : 400);
        int threads = 1 + (round + RACES_ONLY) % THREADS;
        struct engine *e = engine_new(h, threads, c);
        struct got *got = mem_must(JOBS, sizeof *got);
        uint32_t order[JOBS];
        for (uint32_t i = 0; i < JOBS; i++)
            order[i] = i;
        rng_shuffle_u32(&h->r, order, JOBS);
        for (int i = 0; i < JOBS; i++) {
            struct engine_job j = job_of(h, (int)order[i]);
            must(engine_submit(e, &j, err));
            for (int32_t steps = between(h, -6, 6); steps > 0 && engine_ready(e); steps--)
                tiny_step(e, got, JOBS);
        }
        tiny_run(e, got, JOBS);
        for (int i = 0; i < JOBS; i++)
            if (memcmp(got[i].ids, h->alone[i].ids, (size_t)h->alone[i].n * 4) ||
                memcmp(got[i].logprobs, h->alone[i].logprobs, (size_t)h->alone[i].n * 4)) {
                int32_t k = 0;
                while (got[i].ids[k] == h->alone[i].ids[k] && got[i].logprobs[k] == h->alone[i].logprobs[k])
                    k++;
                fail_msg("kv %d, round %d (%d threads, kv_tokens %d, pages of %d, max_running %d, chunks of "
                         "%d, batches of "
                         "%d, cache %d): job %d (prompt %d) parts at token %d",
                         h->kv, round, threads, c.kv_tokens, c.page_tokens, c.max_running, c.prefill_chunk,
                         c.max_batch_tokens, !c.no_prefix_cache, i, h->n_prompt[i], k);
            }
        struct engine_stats stats;
        engine_stats(e, &stats);
        preemptions += stats.preemptions;
        free(got);
        engine_close(e);
    }
    return preemptions;
}

// ---- training --------------------------------------------------------------------------------------------------------

struct pack {
    int32_t n, n_seqs, ids[JOBS * LEN_MAX], pos[JOBS * LEN_MAX], targets[JOBS * LEN_MAX];
    float inv_temp[JOBS * LEN_MAX], logprob[JOBS * LEN_MAX], entropy[JOBS * LEN_MAX], d[JOBS * LEN_MAX];
    struct attn_seq seqs[JOBS];
    int job[JOBS]; // of each sequence
};

static void pack_add(struct pack *p, const struct house *h, int i)
{
    p->job[p->n_seqs] = i;
    p->seqs[p->n_seqs++] = (struct attn_seq){p->n, h->n[i], 0, NULL};
    for (int32_t k = 0; k < h->n[i]; k++, p->n++) {
        p->ids[p->n] = h->ids[i][k];
        p->pos[p->n] = k;
        p->targets[p->n] = k + 1 < h->n[i] ? h->ids[i][k + 1] : -1;
        p->inv_temp[p->n] = 1.0f / TEMPERATURE;
        p->d[p->n] = (float)(k % 7) - 3;
    }
}

// Sequences in any order, cut into micro-batches anywhere.
static void scores_check(struct house *h)
{
    static struct pack p;
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t order[JOBS];
        for (uint32_t i = 0; i < JOBS; i++)
            order[i] = i;
        rng_shuffle_u32(&h->r, order, JOBS);
        int threads = 1 + (round + RACES_ONLY) % THREADS, at = 0;
        struct device *d = h->d[threads - 1];
        int32_t max_tokens = between(h, LEN_MAX, JOBS * LEN_MAX);
        struct train *t = NULL;
        must(train_open(d, &h->c, &h->l, h->dtype, kv_dtype_choose(h->kv, h->dtype), max_tokens, round % 2,
                        &t, err));
        while (at < JOBS) {
            p.n = p.n_seqs = 0;
            do
                pack_add(&p, h, (int)order[at++]);
            while (at < JOBS && p.n + h->n[order[at]] <= max_tokens && between(h, 0, 4));
            struct batch b = {p.n, p.n_seqs, p.ids, p.pos, p.seqs};
            train_forward(t, h->w[threads - 1], &b);
            train_logprobs(t, h->w[threads - 1], p.targets, p.inv_temp, p.logprob,
                           between(h, 0, 1) ? p.entropy : NULL);
            for (int s = 0; s < p.n_seqs; s++) {
                int i = p.job[s];
                const float *got = p.logprob + p.seqs[s].row0 + h->n_prompt[i] - 1;
                if (memcmp(got, h->alone[i].logprobs, (size_t)h->alone[i].n * sizeof *got))
                    fail_msg("round %d, job %d: the trainer's log-probabilities are others", round, i);
            }
        }
        train_close(t);
    }
}

static void gradients_check(struct house *h)
{
    static struct pack p;
    p.n = p.n_seqs = 0;
    for (int i = 0; i < JOBS; i++)
        pack_add(&p, h, i);
    size_t bytes = (size_t)h->l.total * sizeof(float);
    float *want = mem_alloc(bytes), *got = mem_alloc(bytes);
    for (int round = 0; round < GRADIENTS; round++) {
        struct device *d = h->d[(round + RACES_ONLY) % THREADS];
        struct train *t = NULL;
        struct weights *w = NULL;
        must(weights_open(d, &h->c, &h->l, h->dtype, true, &w, err));
        weights_set(w, h->master);
        must(train_open(d, &h->c, &h->l, h->dtype, kv_dtype_choose(h->kv, h->dtype),
                        round == 0 ? p.n : between(h, p.n, 2 * p.n), round >= GRADIENTS / 2, &t, err));
        struct batch b = {p.n, p.n_seqs, p.ids, p.pos, p.seqs};
        memset(got, 0, bytes);
        train_forward(t, w, &b);
        train_logprobs(t, w, p.targets, p.inv_temp, p.logprob, p.entropy);
        train_backward(t, w, p.d, p.d, got);
        if (round == 0)
            memcpy(want, got, bytes);
        else if (memcmp(want, got, bytes))
            fail_msg("the gradient on %s, recompute %d, is another", d->name, round >= GRADIENTS / 2);
        train_close(t);
        weights_close(w);
    }
    double size = 0;
    for (int64_t i = 0; i < h->l.total; i++)
        size += fabs((double)want[i]);
    assert_true(size > 0 && isfinite(size));
    mem_free(want);
    mem_free(got);
}

static void invariance(enum dtype dtype, enum kv_choice kv, int64_t *preemptions)
{
    static struct house h;
    house_open(&h, dtype, kv);
    *preemptions += plans_run(&h);
    scores_check(&h);
    if (dtype != DT_FP8)
        gradients_check(&h);
    house_close(&h);
}

static void invariance_of(enum dtype dtype)
{
    int64_t preemptions = 0;
    for (enum kv_choice kv = KV_AUTO; kv <= KV_FP8; kv++)
        invariance(dtype, kv, &preemptions);
    assert_true(preemptions > 0 || RACES_ONLY); // else memory was never short
}

static void test_f32(void **state)
{
    (void)state;
    invariance_of(DT_F32);
}
static void test_bf16(void **state)
{
    (void)state;
    invariance_of(DT_BF16);
}
static void test_fp8(void **state)
{
    (void)state;
    invariance_of(DT_FP8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_fp8)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
