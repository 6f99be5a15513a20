// Llama (Touvron et al. 2023; Llama 3, 2024; SmolLM2): pre-norm attention with rotary embedding and grouped heads, then a
// SwiGLU feed-forward; no biases. Any thread; no state.
#include "model/arch/arch.h"

static void config_defaults(struct model_config *c)
{
    c->qkv_bias = false;
    c->qk_norm = false;
}

static enum status config_read(const json_t *j, const char *what, struct model_config *c, struct error *err)
{
    (void)c;
    enum status rc = arch_refuse_true(j, "attention_bias", what, err);
    if (!rc)
        rc = arch_refuse_true(j, "mlp_bias", what, err);
    return rc;
}

static void config_write(const struct model_config *c, json_t *j)
{
    (void)c;
    json_object_set_new(j, "attention_bias", json_false());
    json_object_set_new(j, "mlp_bias", json_false());
}

const struct arch arch_llama = {"llama",     "LlamaForCausalLM", config_defaults,
                                config_read, config_write,       arch_blocks_dense};
