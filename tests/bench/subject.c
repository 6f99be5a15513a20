// The benchmarks' model: see subject.h. One thread.
#include "tests/bench/subject.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cores.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/folder.h"
#include "model/plan.h"

#define PROMPT_MAX 4096

const struct run_model subject_model = {.arch = "llama",
                                        .hidden = 576,
                                        .n_layers = 30,
                                        .n_heads = 9,
                                        .n_kv_heads = 3,
                                        .head_dim = 64,
                                        .ffn = 1536,
                                        .vocab = 49152,
                                        .max_position = 8192,
                                        .rope_theta = 1e5,
                                        .rms_eps = 1e-5,
                                        .tie_embeddings = true};

void subject_train_config(struct run_config *c)
{
    c->seed = 1;
    c->model = subject_model;
    c->trainer.dtype = RUN_BF16;
    c->trainer.recompute = RUN_RECOMPUTE_FALSE;
    c->trainer.micro_batch_tokens = 1024;
    snprintf(c->trainer.isa, sizeof c->trainer.isa, "auto");
    c->n_stages = 1;
    c->stages[0] = (struct run_stage){
        .kind = RUN_STAGE_RL,
        .loss = RUN_LOSS_PPO_CLIP,
        .eps_low = 0.2,
        .eps_high = 0.28,
        .max_context = 2048,
        .optimizer = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip_grad_norm = 1}};
}

static enum status read_master(struct subject *s, const char *models, float **ret, struct error *err)
{
    char dir[1024];
    enum status rc;
    snprintf(dir, sizeof dir, "%s/hf", models ? models : "");
    s->random = !models || !file_exists(dir);
    rc = s->random ? model_config_from_run(&subject_model, &s->c, err) : model_config_read(dir, &s->c, err);
    if (rc)
        return rc;
    if ((rc = layout_open(&s->c, &s->layout, err)))
        return rc;
    if (!s->random)
        return model_folder_read(dir, &s->c, &s->layout, ret, err);
    *ret = mem_alloc((size_t)s->layout.total * sizeof(float));
    if (!*ret)
        return error_set(err, STATUS_NOMEM, "no memory for the weights");
    layout_init_random(&s->layout, &s->c, 1, *ret);
    return STATUS_OK;
}

static enum status pin(struct pool *p, struct error *err)
{
    struct cores_list l;
    cores_allowed(&l);
    if (l.n < pool_threads(p))
        return error_set(err, STATUS_INVALID, "%d threads cannot be pinned to %d cores", pool_threads(p),
                         l.n);
    enum status rc = pool_pin(p, l.cpus, pool_threads(p), err);
    return rc ? rc : pool_adopt(p, err);
}

enum status subject_open(const struct subject_options *o, struct subject *ret, struct error *err)
{
    struct subject s = {0};
    float *master = NULL;
    pool_thread_init();
    enum status rc = device_open("cpu", o->isa, o->threads, &s.d, err);
    if (rc || (o->pin && (rc = pin(s.d->pool, err))) || (rc = read_master(&s, o->models, &master, err)) ||
        (rc = weights_open(s.d, &s.c, &s.layout, o->dtype, false, &s.w, err))) {
        mem_free(master);
        subject_close(&s);
        return rc;
    }
    weights_set(s.w, master);
    mem_free(master);
    struct plan p;
    plan_init(&p, &s.layout, o->dtype);
    s.file_bytes = p.data_bytes;
    plan_done(&p);
    *ret = s;
    return STATUS_OK;
}

void subject_close(struct subject *s)
{
    weights_close(s->w);
    layout_done(&s->layout);
    device_close(s->d);
    *s = (struct subject){0};
}

enum status subject_submit(const struct subject *s, struct engine *e, int32_t n, int32_t length,
                           int32_t n_new, uint64_t round, struct error *err)
{
    int32_t ids[PROMPT_MAX];
    struct rng r;
    rng_init(&r, 1, 1);
    if (length > PROMPT_MAX)
        return error_set(err, STATUS_RANGE, "prompts of at most %d tokens", PROMPT_MAX);
    for (int32_t j = 0; j < n; j++) {
        for (int32_t i = 0; i < length; i++)
            ids[i] = (int32_t)rng_below(&r, (uint64_t)s->c.vocab);
        const struct engine_job job = {
            .msg = {.job = (round << 16) + (uint64_t)j + 1,
                    .run_seed = round,
                    .trajectory = (uint64_t)j,
                    .sampling =
                        {.temperature = 1, .top_p = 1, .max_new = n_new, .train = true, .ignore_eos = true},
                    .n_ids = length,
                    .ids = ids}};
        enum status rc = engine_submit(e, &job, err);
        if (rc)
            return rc;
    }
    return STATUS_OK;
}

double subject_seconds(void)
{
    return (double)clock_mono_ns(clock_system()) * 1e-9;
}

bool subject_dtype(const char *name, enum dtype *ret)
{
    static const enum dtype all[] = {DT_F32, DT_BF16, DT_FP8};
    static const char *const names[] = {"f32", "bf16", "fp8"};
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0) {
            *ret = all[i];
            return true;
        }
    return false;
}

// Names are ooze-b<pid in hex>-<version or spare>; ids of real runs are longer than any pid.
static void shm_sweep(void)
{
    DIR *d = opendir("/dev/shm");
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[280], *end;
        if (strncmp(e->d_name, "ooze-b", 6) != 0)
            continue;
        unsigned long pid = strtoul(e->d_name + 6, &end, 16);
        if (*end != '-' || end - e->d_name > 6 + 8 || (kill((pid_t)pid, 0) == 0 || errno != ESRCH))
            continue;
        snprintf(path, sizeof path, "/dev/shm/%s", e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
}

enum status subject_run(const char *bench, char ret_dir[64], char ret_run[RUNCONFIG_NAME], struct error *err)
{
    shm_sweep();
    snprintf(ret_dir, 64, "/tmp/ooze-bench-%s-XXXXXX", bench);
    if (!mkdtemp(ret_dir))
        return error_errno(err, errno, "a temporary folder for bench_%s", bench);
    snprintf(ret_run, RUNCONFIG_NAME, "b%lx", (unsigned long)getpid());
    return STATUS_OK;
}
