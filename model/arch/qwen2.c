// Qwen2 and Qwen2.5 (Qwen team 2024, arXiv 2407.10671): the Llama blocks with biases on q, k and v. Any thread; no
// state.
#include "model/arch/arch.h"

static void config_defaults(struct model_config *c)
{
    c->qkv_bias = true;
    c->qk_norm = false;
}

static enum status config_read(const json_t *j, const char *what, struct model_config *c, struct error *err)
{
    (void)c;
    return arch_refuse_sliding(j, what, err);
}

static void config_write(const struct model_config *c, json_t *j)
{
    (void)c;
    json_object_set_new(j, "use_sliding_window", json_false());
}

const struct arch arch_qwen2 = {"qwen2",     "Qwen2ForCausalLM", config_defaults,
                                config_read, config_write,       arch_blocks_dense};
