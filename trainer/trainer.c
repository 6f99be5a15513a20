// trainer: opening, closing, the initial model. See trainer.h. Compute thread.
#include "trainer/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cores.h"
#include "base/file.h"
#include "base/json.h"
#include "kernels/peak.h"
#include "model/folder.h"

#define PEAK_REPETITIONS 20 // some six milliseconds

static enum dtype dtype_of(int64_t d)
{
    return d == RUN_F32 ? DT_F32 : d == RUN_BF16 ? DT_BF16 : DT_FP8;
}

enum dtype trainer_dtype(const struct run_config *c)
{
    return dtype_of(c->trainer.dtype);
}

enum dtype rollout_dtype(const struct run_config *c)
{
    return dtype_of(c->rollout.dtype);
}

enum kv_choice run_kv_choice(const struct run_config *c)
{
    static const enum kv_choice choices[] = {[RUN_KV_DTYPE_AUTO] = KV_AUTO,
                                             [RUN_KV_DTYPE_F32] = KV_F32,
                                             [RUN_KV_DTYPE_BF16] = KV_BF16,
                                             [RUN_KV_DTYPE_FP8] = KV_FP8};
    return choices[c->rollout.kv_dtype];
}

// bos and eos of a randomly initialised model come from the tokenizer that `ooze run` prepared: generation_config.json.
static enum status read_special_ids(const char *dir, struct model_config *m, struct error *err)
{
    char path[RUNCONFIG_PATH];
    json_t *j = NULL;
    enum status rc = file_join(path, sizeof path, dir, "generation_config.json", err);
    if (rc || !file_exists(path))
        return rc;
    rc = json_parse_file(path, 1 << 20, &j, err);
    if (rc)
        return rc;
    const json_t *bos = json_object_get(j, "bos_token_id"), *eos = json_object_get(j, "eos_token_id");
    m->bos_id = json_is_integer(bos) ? json_integer_value(bos) : -1;
    m->n_eos = 0;
    size_t n = json_is_array(eos) ? json_array_size(eos) : json_is_integer(eos) ? 1 : 0;
    for (size_t i = 0; i < n && !rc; i++) {
        const json_t *v = json_is_array(eos) ? json_array_get(eos, i) : eos;
        int64_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id >= m->vocab || i >= MODEL_EOS_MAX)
            rc = error_set(err, STATUS_INVALID, "%s: eos_token_id must be at most %d ids below %lld", path,
                           MODEL_EOS_MAX, (long long)m->vocab);
        else
            m->eos_ids[m->n_eos++] = id;
    }
    if (!rc && m->bos_id >= m->vocab)
        rc = error_set(err, STATUS_INVALID, "%s: bos_token_id must be below %lld", path, (long long)m->vocab);
    json_decref(j);
    return rc;
}

static enum status read_model(struct trainer *t, const char *run_dir, struct error *err)
{
    const struct run_model *m = &t->config->model;
    char dir[RUNCONFIG_PATH] = "";
    enum status rc = STATUS_OK;
    if (*run_dir) {
        rc = file_join(dir, sizeof dir, run_dir, "tokenizer", err);
        if (rc)
            return rc;
        if (!file_exists(dir))
            *dir = 0;
    }
    snprintf(t->tokenizer_dir, sizeof t->tokenizer_dir, "%s", *dir ? dir : m->path);
    if (*m->path)
        return model_config_read(m->path, &t->model, err);
    rc = model_config_from_run(m, &t->model, err);
    if (!rc && *dir)
        rc = read_special_ids(dir, &t->model, err);
    return rc;
}

enum status trainer_open(const struct run_config *c, const char *run_dir, struct trainer **ret,
                         struct error *err)
{
    struct trainer *t = mem_must(1, sizeof *t);
    t->config = c;
    arena_init(&t->arena, 0);
    struct cores_share *share = mem_must(1, sizeof *share);
    struct cores_list allowed;
    cores_allowed(&allowed);
    enum status rc = cores_for_trainer(c, &allowed, share, err);
    if (!rc)
        rc = device_open("cpu", c->trainer.isa, share->threads, &t->device, err);
    if (!rc)
        rc = pool_pin(t->device->pool, share->pin.cpus, share->pin.n, err);
    free(share);
    if (!rc)
        rc = read_model(t, run_dir, err);
    if (!rc)
        rc = layout_open(&t->model, &t->layout, err);
    if (!rc)
        rc = optimizer_init(&t->optimizer, &t->layout, err);
    if (!rc) {
        t->master = mem_alloc((size_t)t->layout.total * sizeof(float));
        t->grads = mem_alloc((size_t)t->layout.total * sizeof(float));
        if (!t->master || !t->grads)
            rc = error_set(err, STATUS_NOMEM,
                           "no memory for weights and gradients of %lld parameters (%lld MiB each)",
                           (long long)t->layout.n_parameters, (long long)(t->layout.total >> 18));
    }
    if (!rc)
        rc = weights_open(t->device, &t->model, &t->layout, trainer_dtype(c), true, &t->weights, err);
    if (rc) {
        trainer_close(t);
        return rc;
    }
    for (int32_t i = 0; i < t->layout.n; i++)
        if (t->layout.params[i].kind == PARAM_MATRIX)
            t->matrix_parameters += (double)(t->layout.params[i].rows * t->layout.params[i].cols);
    t->peak_flops = peak_flops(t->device, DT_F32, PEAK_REPETITIONS);
    *ret = t;
    return STATUS_OK;
}

void trainer_close(struct trainer *t)
{
    if (!t)
        return;
    train_close(t->train);
    weights_close(t->weights);
    mem_free(t->snapshot);
    mem_free(t->grads);
    mem_free(t->master);
    optimizer_done(&t->optimizer);
    layout_done(&t->layout);
    arena_done(&t->arena);
    device_close(t->device);
    free(t);
}

void trainer_sync_weights(struct trainer *t)
{
    weights_set(t->weights, t->master);
}

enum status trainer_restart(struct trainer *t, struct error *err)
{
    if (*t->config->model.path) {
        float *master = NULL;
        enum status rc = model_folder_read(t->config->model.path, &t->model, &t->layout, &master, err);
        if (rc)
            return rc;
        mem_free(t->master);
        t->master = master;
    } else {
        memset(t->master, 0, (size_t)t->layout.total * sizeof(float));
        layout_init_random(&t->layout, &t->model, t->config->seed, t->master);
    }
    optimizer_reset(&t->optimizer, &t->layout);
    t->step = 0;
    t->stage = 0;
    t->reset_pending = false;
    trainer_sync_weights(t);
    return STATUS_OK;
}

// trainer.recompute: bits are the same either way, so what the host has may decide.
static bool recomputes(const struct trainer *t, int32_t rows)
{
    if (t->config->trainer.recompute != RUN_RECOMPUTE_AUTO)
        return t->config->trainer.recompute == RUN_RECOMPUTE_TRUE;
    double host = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGE_SIZE);
    return (double)train_bytes(&t->model, trainer_dtype(t->config), rows, false) > host / 4;
}

enum status trainer_reserve(struct trainer *t, int32_t rows, struct error *err)
{
    int32_t budget = (int32_t)t->config->trainer.micro_batch_tokens, want = 256;
    if (rows <= t->train_rows)
        return STATUS_OK;
    while (want < rows && want < 1 << 30)
        want *= 2;
    if (want > budget)
        want = rows > budget ? rows : budget;
    train_close(t->train);
    t->train = NULL;
    t->train_rows = 0;
    enum status rc = train_open(t->device, &t->model, &t->layout, trainer_dtype(t->config),
                                kv_dtype_choose(run_kv_choice(t->config), trainer_dtype(t->config)), want,
                                recomputes(t, want), &t->train, err);
    if (rc)
        return error_prefix(err, "micro-batches of %d tokens (trainer.micro_batch_tokens, trainer.recompute)",
                            want);
    t->train_rows = want;
    return STATUS_OK;
}
