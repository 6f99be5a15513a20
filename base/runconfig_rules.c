// Rules between the keys of a run's configuration, and the defaults that follow from other keys. See
// runconfig.h. Pure functions, any thread.
#include "base/runconfig_rules.h"

#include "base/cores.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct rules {
    struct run_config *c;
    const struct config_origins *origins;
    struct error *err;
    enum status rc; // first failure; later rules are skipped
};

// Fails at `member`, a pointer into the configuration; the text starts with the key at fault.
__attribute__((format(printf, 3, 4))) static void fail(struct rules *r, const void *member, const char *fmt,
                                                       ...)
{
    if (r->rc != STATUS_OK)
        return;
    char where[512], text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    size_t offset = (size_t)((const char *)member - (const char *)r->c);
    r->rc = error_set(r->err, STATUS_INVALID, "%s%s", config_where(r->origins, offset, where, sizeof(where)),
                      text);
}

static void set_text(char *dst, size_t n, const char *s)
{
    memset(dst, 0, n);
    memcpy(dst, s, strnlen(s, n - 1));
}

static void resolve_names(struct rules *r)
{
    struct run_config *c = r->c;
    if (!c->name[0])
        fail(r, c->name, "name: the run needs a name");
    if (!c->run_dir[0]) {
        char dir[RUNCONFIG_NAME + 8];
        snprintf(dir, sizeof(dir), "runs/%s", c->name);
        set_text(c->run_dir, sizeof(c->run_dir), dir);
    }
    for (int i = 0; i < c->n_stages; i++) {
        struct run_stage *s = &c->stages[i];
        if (!s->name[0])
            set_text(s->name, sizeof(s->name), runconfig_stage_name(s));
        for (int k = 0; k < i; k++)
            if (strcmp(c->stages[k].name, s->name) == 0)
                fail(r, s->name, "stages.%d.name: '%s' names stage %d already; give each stage a name", i,
                     s->name, k);
    }
    for (int i = 0; i < c->n_tasks; i++) {
        struct run_task *t = &c->tasks[i];
        if (!t->name[0])
            fail(r, t->name, "tasks.%d.name: a task needs a name", i);
        for (int k = 0; k < i; k++)
            if (strcmp(c->tasks[k].name, t->name) == 0)
                fail(r, t->name, "tasks.%d.name: '%s' names task %d already", i, t->name, k);
    }
}

static void resolve_model_folder(struct rules *r)
{
    struct run_model *m = &r->c->model;
    const struct {
        const char *key;
        const int64_t *value;
    } shape[] = {{"hidden", &m->hidden},         {"n_layers", &m->n_layers},        {"n_heads", &m->n_heads},
                 {"n_kv_heads", &m->n_kv_heads}, {"head_dim", &m->head_dim},        {"ffn", &m->ffn},
                 {"vocab", &m->vocab},           {"max_position", &m->max_position}};
    for (size_t i = 0; i < sizeof(shape) / sizeof(shape[0]); i++)
        if (*shape[i].value)
            fail(r, shape[i].value, "model.%s: the shape is read from model.path; give one or the other",
                 shape[i].key);
    if (m->arch[0])
        fail(r, m->arch, "model.arch: the architecture is read from model.path; give one or the other");
    if (m->rope_theta != 0)
        fail(r, &m->rope_theta, "model.rope_theta: is read from model.path; give one or the other");
    if (m->rms_eps != 0)
        fail(r, &m->rms_eps, "model.rms_eps: is read from model.path; give one or the other");
    if (m->tie_embeddings)
        fail(r, &m->tie_embeddings, "model.tie_embeddings: is read from model.path; give one or the other");
}

static void resolve_model_shape(struct rules *r)
{
    struct run_model *m = &r->c->model;
    if (!m->arch[0])
        set_text(m->arch, sizeof(m->arch), "llama");
    if (!m->hidden || !m->n_layers || !m->n_heads || !m->ffn) {
        const char *key = !m->hidden ? "hidden" : !m->n_layers ? "n_layers" : !m->n_heads ? "n_heads" : "ffn";
        fail(r, m, "model.%s: missing; give model.path, or a shape: hidden, n_layers, n_heads, ffn", key);
        return;
    }
    if (!m->n_kv_heads)
        m->n_kv_heads = m->n_heads;
    if (m->n_heads % m->n_kv_heads)
        fail(r, &m->n_kv_heads, "model.n_kv_heads: %lld does not divide n_heads %lld",
             (long long)m->n_kv_heads, (long long)m->n_heads);
    if (!m->head_dim && m->hidden % m->n_heads)
        fail(r, &m->n_heads, "model.n_heads: %lld does not divide hidden %lld; or give head_dim",
             (long long)m->n_heads, (long long)m->hidden);
    if (!m->head_dim)
        m->head_dim = m->hidden / m->n_heads;
    if (m->head_dim % 2)
        fail(r, &m->head_dim, "model.head_dim: %lld is odd; rotary positions turn pairs",
             (long long)m->head_dim);
    if (!m->max_position)
        m->max_position = 4096;
    if (m->rope_theta == 0)
        m->rope_theta = 10000;
    if (m->rms_eps == 0)
        m->rms_eps = 1e-5;
    if (!m->tokenizer[0])
        set_text(m->tokenizer, sizeof(m->tokenizer), "bytes");
}

static void resolve_tokenizer(struct rules *r)
{
    struct run_model *m = &r->c->model;
    bool bytes = strcmp(m->tokenizer, "bytes") == 0;
    if (bytes && strcmp(m->chat_template, "auto") == 0)
        set_text(m->chat_template, sizeof(m->chat_template), "tiny");
    if (!bytes && m->n_specials)
        fail(r, m->specials, "model.specials: only the byte tokenizer takes them (model.tokenizer: bytes)");
    for (int i = 0; i < m->n_specials; i++) {
        if (!m->specials[i][0])
            fail(r, m->specials, "model.specials: token %d is empty", i);
        for (int k = 0; k < i; k++)
            if (strcmp(m->specials[i], m->specials[k]) == 0)
                fail(r, m->specials, "model.specials: '%s' is given twice", m->specials[i]);
    }
    if (m->path[0])
        return;
    if (!m->vocab && !bytes)
        fail(r, &m->vocab, "model.vocab: missing; with a tokenizer folder say how many tokens the model has");
    if (!m->vocab)
        m->vocab = 256 + m->n_specials;
    if (bytes && m->vocab < 256 + m->n_specials)
        fail(r, &m->vocab, "model.vocab: %lld is less than 256 bytes and %lld specials", (long long)m->vocab,
             (long long)m->n_specials);
}

static void check_rl(struct rules *r, struct run_stage *s)
{
    const char *n = s->name;
    struct run_config *c = r->c;
    if (c->n_tasks == 0)
        fail(r, s, "stages.%s: an rl stage needs tasks", n);
    if (s->loss == RUN_LOSS_SFT)
        fail(r, &s->loss, "stages.%s.loss: sft is the loss of sft stages", n);
    if ((s->advantage == RUN_ADV_GRPO || s->advantage == RUN_ADV_RLOO) && s->group_size < 2)
        fail(r, &s->group_size, "stages.%s.group_size: grpo and rloo compare answers, at least 2", n);
    if (s->loss == RUN_LOSS_ICEPOP && s->old_logprob == RUN_OLD_ROLLOUT)
        fail(r, &s->old_logprob,
             "stages.%s.old_logprob: icepop compares trainer and rollout; it needs recompute", n);
    if (!(s->sampling.temperature > 0))
        fail(r, &s->sampling.temperature, "stages.%s.sampling.temperature: training needs more than 0", n);
    if (s->sampling.top_k != 0)
        fail(r, &s->sampling.top_k,
             "stages.%s.sampling.top_k: truncated sampling biases every ratio; training needs 0", n);
    if (s->sampling.top_p != 1)
        fail(r, &s->sampling.top_p,
             "stages.%s.sampling.top_p: truncated sampling biases every ratio; training needs 1", n);
    if (s->sampling.min_p != 0)
        fail(r, &s->sampling.min_p,
             "stages.%s.sampling.min_p: truncated sampling biases every ratio; training needs 0", n);
    if (s->updates_per_batch > s->groups_per_step * s->group_size)
        fail(r, &s->updates_per_batch, "stages.%s.updates_per_batch: more updates than answers in a step", n);
    if (s->max_context > c->rollout.kv_tokens)
        fail(r, &s->max_context, "stages.%s.max_context: %lld tokens do not fit rollout.kv_tokens %lld", n,
             (long long)s->max_context, (long long)c->rollout.kv_tokens);
    if (s->sampling.max_new_tokens > s->max_context)
        s->sampling.max_new_tokens = s->max_context;
}

static void check_sft(struct rules *r, struct run_stage *s)
{
    if (!s->data[0])
        fail(r, s, "stages.%s.data: an sft stage needs a JSONL file", s->name);
    if (s->loss != RUN_LOSS_SFT)
        fail(r, &s->loss, "stages.%s.loss: an sft stage has the loss sft, not %s", s->name,
             runconfig_loss_name(s->loss));
    if (s->updates_per_batch > s->batch_rows)
        fail(r, &s->updates_per_batch, "stages.%s.updates_per_batch: more updates than rows in a step",
             s->name);
}

static void resolve_stage(struct rules *r, struct run_stage *s)
{
    struct run_config *c = r->c;
    bool rl = s->kind == RUN_STAGE_RL;
    if (s->loss < 0)
        s->loss = rl ? RUN_LOSS_TWO_SIDED_IS : RUN_LOSS_SFT;
    if (s->aggregation == RUN_AGG_DEFAULT)
        s->aggregation = s->loss == RUN_LOSS_ICEPOP ? RUN_AGG_SEQUENCE_MEAN : RUN_AGG_TOKEN_MEAN;
    int64_t most = c->model.max_position ? c->model.max_position : INT64_MAX;
    if (!s->max_context)
        s->max_context = most < 4096 ? most : 4096;
    if (!s->max_tokens)
        s->max_tokens = most < 4096 ? most : 4096;
    int64_t *longest = rl ? &s->max_context : &s->max_tokens;
    const char *key = rl ? "max_context" : "max_tokens";
    if (*longest > most)
        fail(r, longest, "stages.%s.%s: %lld tokens are more than model.max_position %lld", s->name, key,
             (long long)*longest, (long long)most);
    if (*longest > c->trainer.micro_batch_tokens)
        fail(r, longest,
             "stages.%s.%s: %lld tokens do not fit trainer.micro_batch_tokens %lld; lower one or raise the "
             "other",
             s->name, key, (long long)*longest, (long long)c->trainer.micro_batch_tokens);
    if (s->optimizer.warmup_steps > s->steps)
        fail(r, &s->optimizer.warmup_steps,
             "stages.%s.optimizer.warmup_steps: longer than the stage's %lld steps", s->name,
             (long long)s->steps);
    if (rl)
        check_rl(r, s);
    else
        check_sft(r, s);
}

static void check_task(struct rules *r, struct run_task *t)
{
    if (!t->url[0] && t->n_command == 0)
        fail(r, t, "tasks.%s: needs a url or a command", t->name);
    if (t->url[0] && t->n_command)
        fail(r, t->url, "tasks.%s.url: give a url or a command, not both", t->name);
    if (t->url[0] && strncmp(t->url, "http://", 7) != 0 && strncmp(t->url, "https://", 8) != 0)
        fail(r, t->url, "tasks.%s.url: '%.100s' does not start with http:// or https://", t->name, t->url);
    if (t->n_command && !t->command[0][0])
        fail(r, t->command, "tasks.%s.command: the program is empty", t->name);
}

// Whether this host has the CPUs is asked where the threads start: the file may have been written elsewhere.
static void check_pin(struct rules *r, const char *key, const char *pin)
{
    struct cores_list l;
    struct error err;
    if (*pin && strcmp(pin, "off") != 0 && strcmp(pin, "auto") != 0 && cores_parse(pin, &l, &err))
        fail(r, pin, "%s: %s; or off, or auto", key, err.text);
}

static void check_processes(struct rules *r)
{
    struct run_config *c = r->c;
    check_pin(r, "trainer.pin", c->trainer.pin);
    check_pin(r, "rollout.pin", c->rollout.pin);
    int64_t page = c->rollout.page_tokens;
    if (page & (page - 1))
        fail(r, &c->rollout.page_tokens, "rollout.page_tokens: %lld is no power of two", (long long)page);
    if (c->rollout.kv_tokens < page)
        fail(r, &c->rollout.kv_tokens, "rollout.kv_tokens: less than one page of %lld", (long long)page);
    if (c->rollout.prefill_chunk > c->rollout.max_batch_tokens)
        fail(r, &c->rollout.prefill_chunk, "rollout.prefill_chunk: more than rollout.max_batch_tokens %lld",
             (long long)c->rollout.max_batch_tokens);
    if (c->orchestrator.silence_ms <= c->orchestrator.ping_interval_ms)
        fail(r, &c->orchestrator.silence_ms,
             "orchestrator.silence_ms: must be more than ping_interval_ms %lld",
             (long long)c->orchestrator.ping_interval_ms);
    if (c->orchestrator.listen[0] && strncmp(c->orchestrator.listen, "tcp://", 6) != 0)
        fail(r, c->orchestrator.listen, "orchestrator.listen: '%.60s' does not start with tcp://",
             c->orchestrator.listen);
    int64_t lag = 0;
    for (int i = 0; i < c->n_stages; i++)
        if (c->stages[i].kind == RUN_STAGE_RL && c->stages[i].max_lag > lag)
            lag = c->stages[i].max_lag;
    if (!c->trainer.keep_weights)
        c->trainer.keep_weights = lag + 2;
    if (c->trainer.keep_weights < lag + 2)
        fail(r, &c->trainer.keep_weights, "trainer.keep_weights: %lld is less than max_lag + 2 = %lld",
             (long long)c->trainer.keep_weights, (long long)lag + 2);
}

enum status runconfig_resolve(struct run_config *c, const struct config_origins *origins, struct error *err)
{
    struct rules r = {.c = c, .origins = origins, .err = err};
    if (c->n_stages == 0)
        fail(&r, c->stages, "stages: a run needs at least one stage");
    resolve_names(&r);
    if (c->model.path[0])
        resolve_model_folder(&r);
    else
        resolve_model_shape(&r);
    if (r.rc != STATUS_OK)
        return r.rc; // the rules below divide by and compare with what these have filled
    resolve_tokenizer(&r);
    for (int i = 0; i < c->n_stages; i++)
        resolve_stage(&r, &c->stages[i]);
    for (int i = 0; i < c->n_tasks; i++)
        check_task(&r, &c->tasks[i]);
    check_processes(&r);
    return r.rc;
}
