// Shapes of a model: from Hugging Face config.json, from a run's YAML, and back to config.json. Every impossible or
// unimplemented value is refused here, once, so that the rest of the room can trust a struct model_config. Any thread;
// no state.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "kernels/kernels.h"
#include "model/arch/arch.h"
#include "model/config.h"

#define CONFIG_BYTES_MAX ((size_t)4 << 20)
#define DIM_MAX          ((int64_t)1 << 20)
#define VOCAB_MAX        ((int64_t)1 << 24)
#define POSITION_MAX     ((int64_t)1 << 24)

// ---- checks -----------------------------------------------------------------------------------------------------

static enum status shape_check(const struct model_config *c, const char *what, struct error *err)
{
    const struct {
        const char *name;
        int64_t value, max;
    } dims[] = {
        {"hidden size", c->hidden, DIM_MAX},      {"number of layers", c->n_layers, 4096},
        {"number of heads", c->n_heads, 4096},    {"number of key/value heads", c->n_kv_heads, 4096},
        {"head size", c->head_dim, 4096},         {"feed-forward size", c->ffn, DIM_MAX},
        {"vocabulary size", c->vocab, VOCAB_MAX}, {"largest position", c->max_position, POSITION_MAX},
    };
    for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++)
        if (dims[i].value < 1 || dims[i].value > dims[i].max)
            return error_set(err, STATUS_RANGE, "%s: %s %lld is outside [1, %lld]", what, dims[i].name,
                             (long long)dims[i].value, (long long)dims[i].max);
    if (c->n_heads % c->n_kv_heads)
        return error_set(err, STATUS_INVALID, "%s: %lld heads cannot share %lld key/value heads evenly", what,
                         (long long)c->n_heads, (long long)c->n_kv_heads);
    if (c->head_dim % 2)
        return error_set(err, STATUS_INVALID, "%s: head size %lld is odd; rotary embedding needs pairs", what,
                         (long long)c->head_dim);
    if (!(c->rms_eps > 0) || !(c->rms_eps < 1))
        return error_set(err, STATUS_RANGE, "%s: RMSNorm epsilon %g is outside (0, 1)", what,
                         (double)c->rms_eps);
    if (!(c->rope_theta > 1) || !isfinite(c->rope_theta))
        return error_set(err, STATUS_RANGE, "%s: rope_theta %g must be above 1", what, c->rope_theta);
    return STATUS_OK;
}

// head_dim 0 = hidden / heads, which must then divide.
static enum status head_dim_fill(struct model_config *c, const char *what, struct error *err)
{
    if (c->head_dim)
        return STATUS_OK;
    if (c->n_heads < 1 || c->hidden % c->n_heads)
        return error_set(err, STATUS_INVALID,
                         "%s: hidden size %lld is not a multiple of %lld heads; give head_dim", what,
                         (long long)c->hidden, (long long)c->n_heads);
    c->head_dim = c->hidden / c->n_heads;
    return STATUS_OK;
}

// ---- config.json in -----------------------------------------------------------------------------------------------

// Rotary embedding is said in two ways: rope_theta + rope_scaling (transformers 4) or rope_parameters (5).
static enum status rope_read(const json_t *j, const char *what, struct model_config *c, struct error *err)
{
    const json_t *p = json_object_get(j, "rope_parameters");
    const json_t *scaling = p && !json_is_null(p) ? p : json_object_get(j, "rope_scaling");
    const char *type = "default";
    double partial = 1;
    enum status rc = json_get_real(j, "rope_theta", false, 10000, 1, 1e12, what, &c->rope_theta, err);
    if (!rc)
        rc = json_get_real(j, "partial_rotary_factor", false, 1, 0, 1, what, &partial, err);
    c->rope_scaling.factor = 1;
    if (rc || !scaling || json_is_null(scaling))
        goto out;
    rc = json_get_real(scaling, "rope_theta", false, c->rope_theta, 1, 1e12, what, &c->rope_theta, err);
    if (!rc)
        rc = json_get_real(scaling, "partial_rotary_factor", false, partial, 0, 1, what, &partial, err);
    if (!rc)
        rc = json_get_string(scaling, "type", false, type, what, &type, err);
    if (!rc)
        rc = json_get_string(scaling, "rope_type", false, type, what, &type, err);
    if (rc || strcmp(type, "default") == 0)
        goto out;
    if (strcmp(type, "llama3") != 0)
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: rope type \"%.40s\" is not implemented (default, llama3 are)", what, type);
    rc = json_get_real(scaling, "factor", true, 0, 1, 1e6, what, &c->rope_scaling.factor, err);
    if (!rc)
        rc = json_get_real(scaling, "low_freq_factor", true, 0, 1e-6, 1e6, what,
                           &c->rope_scaling.low_freq_factor, err);
    if (!rc)
        rc = json_get_real(scaling, "high_freq_factor", true, 0, 1e-6, 1e6, what,
                           &c->rope_scaling.high_freq_factor, err);
    if (!rc)
        rc = json_get_int(scaling, "original_max_position_embeddings", true, 0, 1, POSITION_MAX, what,
                          &c->rope_scaling.original_max_position, err);
    if (!rc && !(c->rope_scaling.high_freq_factor > c->rope_scaling.low_freq_factor))
        rc = error_set(err, STATUS_INVALID, "%s: high_freq_factor must be above low_freq_factor", what);
out:
    if (!rc && partial != 1)
        rc = error_set(err, STATUS_UNSUPPORTED, "%s: partial_rotary_factor %g: only 1 is implemented", what,
                       partial);
    return rc;
}

// eos_token_id: absent, null, one id or a list. Ids outside the vocabulary are refused; a repeated one is kept once.
static enum status eos_read(const json_t *j, const char *what, struct model_config *c, struct error *err)
{
    const json_t *e = json_object_get(j, "eos_token_id");
    size_t n = json_is_array(e) ? json_array_size(e) : e && !json_is_null(e) ? 1 : 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_is_array(e) ? json_array_get(e, i) : e;
        int64_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id >= c->vocab)
            return error_set(err, STATUS_RANGE, "%s: eos_token_id is not a token of the vocabulary [0, %lld)",
                             what, (long long)c->vocab);
        bool have = false;
        for (int64_t k = 0; k < c->n_eos; k++)
            have = have || c->eos_ids[k] == id;
        if (!have && c->n_eos == MODEL_EOS_MAX)
            return error_set(err, STATUS_LIMIT, "%s: more than %d end tokens", what, MODEL_EOS_MAX);
        if (!have)
            c->eos_ids[c->n_eos++] = id;
    }
    return STATUS_OK;
}

static enum status quantization_check(const json_t *j, const char *what, struct error *err)
{
    const json_t *q = json_object_get(j, "quantization_config");
    const char *method = "";
    if (!q || json_is_null(q))
        return STATUS_OK;
    enum status rc = json_get_string(q, "quant_method", false, "", what, &method, err);
    if (rc)
        return rc;
    const json_t *block = json_object_get(q, "weight_block_size");
    if (strcmp(method, "fp8") != 0 || json_integer_value(json_array_get(block, 0)) != FP8_BLOCK ||
        json_integer_value(json_array_get(block, 1)) != FP8_BLOCK)
        return error_set(
            err, STATUS_UNSUPPORTED,
            "%s: quantization_config \"%.40s\": only fp8 with weight_block_size [128, 128] is implemented",
            what, method);
    return STATUS_OK;
}

static enum status shape_read(const json_t *j, const char *what, struct model_config *c, struct error *err)
{
    double eps = 0;
    const struct {
        const char *key;
        bool required;
        int64_t *dst;
    } ints[] = {
        {"hidden_size", true, &c->hidden},
        {"num_hidden_layers", true, &c->n_layers},
        {"num_attention_heads", true, &c->n_heads},
        {"num_key_value_heads", false, &c->n_kv_heads},
        {"head_dim", false, &c->head_dim},
        {"intermediate_size", true, &c->ffn},
        {"vocab_size", true, &c->vocab},
        {"max_position_embeddings", true, &c->max_position},
    };
    for (size_t i = 0; i < sizeof(ints) / sizeof(ints[0]); i++) {
        if (ints[i].dst == &c->n_kv_heads)
            c->n_kv_heads = c->n_heads;
        enum status rc = json_get_int(j, ints[i].key, ints[i].required, *ints[i].dst, 1, VOCAB_MAX, what,
                                      ints[i].dst, err);
        if (rc)
            return rc;
    }
    enum status rc = json_get_real(j, "rms_norm_eps", false, 1e-6, 0, 1, what, &eps, err);
    c->rms_eps = (float)eps;
    if (!rc)
        rc = json_get_bool(j, "tie_word_embeddings", false, false, what, &c->tie_embeddings, err);
    if (!rc)
        rc = json_get_real(j, "initializer_range", false, 0.02, 0, 10, what, &c->init_std, err);
    return rc;
}

static enum status config_read(const json_t *j, const char *what, struct model_config *c, struct error *err)
{
    const char *type = NULL, *act = NULL;
    enum status rc = json_get_string(j, "model_type", true, NULL, what, &type, err);
    if (rc)
        return rc;
    const struct arch *arch = arch_find(type);
    if (!arch)
        return error_set(err, STATUS_UNSUPPORTED, "%s: model_type \"%.40s\" is not implemented (%s are)",
                         what, type, arch_names());
    snprintf(c->arch, sizeof(c->arch), "%s", arch->name);
    arch->config_defaults(c);
    rc = json_get_string(j, "hidden_act", false, "silu", what, &act, err);
    if (!rc && strcmp(act, "silu") != 0)
        rc = error_set(err, STATUS_UNSUPPORTED, "%s: hidden_act \"%.40s\": only silu is implemented", what,
                       act);
    if (!rc)
        rc = shape_read(j, what, c, err);
    if (!rc)
        rc = head_dim_fill(c, what, err);
    if (!rc)
        rc = rope_read(j, what, c, err);
    if (!rc)
        rc = shape_check(c, what, err);
    if (!rc)
        rc = json_get_int(j, "bos_token_id", false, -1, -1, c->vocab - 1, what, &c->bos_id, err);
    if (!rc)
        rc = eos_read(j, what, c, err);
    if (!rc)
        rc = quantization_check(j, what, err);
    if (!rc)
        rc = arch->config_read(j, what, c, err);
    return rc;
}

enum status model_config_read(const char *dir, struct model_config *ret, struct error *err)
{
    struct model_config c = {0};
    char path[4096];
    json_t *j = NULL, *gen = NULL;
    enum status rc = file_join(path, sizeof(path), dir, "config.json", err);
    if (!rc)
        rc = json_parse_file(path, CONFIG_BYTES_MAX, &j, err);
    if (!rc)
        rc = config_read(j, path, &c, err);
    // Chat models list further end tokens in generation_config.json.
    if (!rc)
        rc = file_join(path, sizeof(path), dir, "generation_config.json", err);
    if (!rc && file_exists(path)) {
        rc = json_parse_file(path, CONFIG_BYTES_MAX, &gen, err);
        if (!rc)
            rc = eos_read(gen, path, &c, err);
    }
    if (!rc)
        *ret = c;
    json_decref(j);
    json_decref(gen);
    return rc;
}

// ---- from YAML ------------------------------------------------------------------------------------------------------

enum status model_config_from_run(const struct run_model *m, struct model_config *ret, struct error *err)
{
    const struct arch *arch = arch_find(m->arch);
    if (!arch)
        return error_set(err, STATUS_UNSUPPORTED, "model.arch \"%.40s\" is not implemented (%s are)", m->arch,
                         arch_names());
    struct model_config c = {0};
    snprintf(c.arch, sizeof(c.arch), "%s", arch->name);
    arch->config_defaults(&c);
    c.hidden = m->hidden;
    c.n_layers = m->n_layers;
    c.n_heads = m->n_heads;
    c.n_kv_heads = m->n_kv_heads ? m->n_kv_heads : m->n_heads;
    c.head_dim = m->head_dim;
    c.ffn = m->ffn;
    c.vocab = m->vocab;
    c.max_position = m->max_position;
    c.rms_eps = (float)m->rms_eps;
    c.rope_theta = m->rope_theta;
    c.rope_scaling.factor = 1;
    c.tie_embeddings = m->tie_embeddings;
    c.init_std = 0.02;
    c.bos_id = -1;
    enum status rc = head_dim_fill(&c, "model", err);
    if (!rc)
        rc = shape_check(&c, "model", err);
    if (!rc)
        *ret = c;
    return rc;
}

// ---- config.json out ------------------------------------------------------------------------------------------------

static void rope_write(const struct model_config *c, json_t *j)
{
    json_object_set_new(j, "rope_theta", json_real(c->rope_theta));
    if (c->rope_scaling.factor == 1) {
        json_object_set_new(j, "rope_scaling", json_null());
        return;
    }
    json_t *s = json_object();
    json_object_set_new(s, "rope_type", json_string("llama3"));
    json_object_set_new(s, "factor", json_real(c->rope_scaling.factor));
    json_object_set_new(s, "low_freq_factor", json_real(c->rope_scaling.low_freq_factor));
    json_object_set_new(s, "high_freq_factor", json_real(c->rope_scaling.high_freq_factor));
    json_object_set_new(s, "original_max_position_embeddings",
                        json_integer(c->rope_scaling.original_max_position));
    json_object_set_new(j, "rope_scaling", s);
}

static void tokens_write(const struct model_config *c, json_t *j)
{
    json_object_set_new(j, "bos_token_id", c->bos_id < 0 ? json_null() : json_integer(c->bos_id));
    json_t *eos = json_array();
    for (int64_t i = 0; i < c->n_eos; i++)
        json_array_append_new(eos, json_integer(c->eos_ids[i]));
    if (c->n_eos == 1)
        json_object_set_new(j, "eos_token_id", json_integer(c->eos_ids[0]));
    else
        json_object_set_new(j, "eos_token_id", c->n_eos ? json_incref(eos) : json_null());
    json_decref(eos);
}

static void quantization_write(json_t *j)
{
    json_t *q = json_object(), *block = json_array(), *skip = json_array();
    json_array_append_new(block, json_integer(FP8_BLOCK));
    json_array_append_new(block, json_integer(FP8_BLOCK));
    json_array_append_new(skip, json_string("lm_head"));
    json_object_set_new(q, "quant_method", json_string("fp8"));
    json_object_set_new(q, "fmt", json_string("e4m3"));
    json_object_set_new(q, "activation_scheme", json_string("dynamic"));
    json_object_set_new(q, "weight_block_size", block);
    json_object_set_new(q, "modules_to_not_convert", skip);
    json_object_set_new(j, "quantization_config", q);
}

enum status model_config_write(const struct model_config *c, enum dtype dtype, const char *dir,
                               struct error *err)
{
    const struct arch *arch = arch_find(c->arch);
    char path[4096];
    enum status rc = file_join(path, sizeof(path), dir, "config.json", err);
    if (rc)
        return rc;
    if (!arch)
        return error_set(err, STATUS_UNSUPPORTED, "architecture \"%.40s\" is not implemented", c->arch);
    json_t *j = json_object(), *names = json_array();
    json_array_append_new(names, json_string(arch->hf_class));
    json_object_set_new(j, "architectures", names);
    json_object_set_new(j, "model_type", json_string(arch->name));
    json_object_set_new(j, "hidden_size", json_integer(c->hidden));
    json_object_set_new(j, "num_hidden_layers", json_integer(c->n_layers));
    json_object_set_new(j, "num_attention_heads", json_integer(c->n_heads));
    json_object_set_new(j, "num_key_value_heads", json_integer(c->n_kv_heads));
    json_object_set_new(j, "head_dim", json_integer(c->head_dim));
    json_object_set_new(j, "intermediate_size", json_integer(c->ffn));
    json_object_set_new(j, "vocab_size", json_integer(c->vocab));
    json_object_set_new(j, "max_position_embeddings", json_integer(c->max_position));
    char eps[32]; // the shortest decimal of the float, not the digits of its widening
    snprintf(eps, sizeof(eps), "%.7g", (double)c->rms_eps);
    json_object_set_new(j, "rms_norm_eps", json_real(strtod(eps, NULL)));
    rope_write(c, j);
    json_object_set_new(j, "tie_word_embeddings", json_boolean(c->tie_embeddings));
    json_object_set_new(j, "hidden_act", json_string("silu"));
    json_object_set_new(j, "attention_dropout", json_real(0));
    json_object_set_new(j, "initializer_range", json_real(c->init_std));
    tokens_write(c, j);
    json_object_set_new(j, "torch_dtype", json_string(dtype == DT_F32 ? "float32" : "bfloat16"));
    json_object_set_new(j, "use_cache", json_true());
    if (dtype == DT_FP8)
        quantization_write(j);
    arch->config_write(c, j);
    char *text = json_dumps(j, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    json_decref(j);
    if (!text)
        return error_set(err, STATUS_NOMEM, "no memory for %s", path);
    rc = file_write_atomic(path, text, strlen(text), 0644, err);
    free(text);
    return rc;
}
