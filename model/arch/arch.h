// An architecture: a reader of its config.json and the list of blocks of each layer. One row of arch.def, one file.
#ifndef MODEL_ARCH_ARCH_H
#define MODEL_ARCH_ARCH_H

#include "base/json.h"
#include "model/config.h"

struct block;

struct arch {
    const char *name;     // "llama"; also model_type of config.json
    const char *hf_class; // architectures[0]
    // What the architecture fixes before config.json or the run's YAML is read: biases, norms, defaults.
    void (*config_defaults)(struct model_config *c);
    // Fields of config.json beyond the common ones; refuses, by name, what the blocks do not do. `what` = path.
    enum status (*config_read)(const json_t *j, const char *what, struct model_config *c, struct error *err);
    // Adds to config.json what the common writer does not know.
    void (*config_write)(const struct model_config *c, json_t *j);
    // The blocks of one layer in order, NULL at the end.
    const struct block *const *(*blocks)(const struct model_config *c, int32_t layer);
};

// NULL when unknown.
const struct arch *arch_find(const char *name);
// "llama, qwen2, qwen3"
const char *arch_names(void);

// Attention, then MLP, in every layer.
const struct block *const *arch_blocks_dense(const struct model_config *c, int32_t layer);

// Refuses obj.key unless it is absent, null or false.
enum status arch_refuse_true(const json_t *obj, const char *key, const char *what,
                             struct error *err) OOZE_MUST_USE;
// Refuses sliding-window attention in any spelling.
enum status arch_refuse_sliding(const json_t *obj, const char *what, struct error *err) OOZE_MUST_USE;

#define X(name) extern const struct arch arch_##name;
#include "model/arch/arch.def"
#undef X

#endif
