// Qwen3 (Qwen team 2025, arXiv 2505.09388), dense: the Llama blocks with RMSNorm over each head of q and k before the
// rotary embedding; head_dim is a field of its own, 128 unless said. Any thread; no state.
#include "model/arch/arch.h"

static void config_defaults(struct model_config *c)
{
    c->head_dim = 128;
    c->qkv_bias = false;
    c->qk_norm = true;
}

static enum status config_read(const json_t *j, const char *what, struct model_config *c, struct error *err)
{
    (void)c;
    enum status rc = arch_refuse_true(j, "attention_bias", what, err);
    return rc ? rc : arch_refuse_sliding(j, what, err);
}

static void config_write(const struct model_config *c, json_t *j)
{
    (void)c;
    json_object_set_new(j, "attention_bias", json_false());
    json_object_set_new(j, "use_sliding_window", json_false());
}

const struct arch arch_qwen3 = {"qwen3",     "Qwen3ForCausalLM", config_defaults,
                                config_read, config_write,       arch_blocks_dense};
