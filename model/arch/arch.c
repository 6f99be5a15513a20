// The table of architectures and the refusals they share. Any thread; no state.
#include "model/arch/arch.h"

#include <string.h>

#include "model/block.h"

static const struct arch *const table[] = {
#define X(name) &arch_##name,
#include "model/arch/arch.def"
#undef X
};

const struct arch *arch_find(const char *name)
{
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (strcmp(table[i]->name, name) == 0)
            return table[i];
    return NULL;
}

const char *arch_names(void)
{
    static const char names[] =
#define X(name) ", " #name
#include "model/arch/arch.def"
#undef X
        ;
    return names + 2;
}

const struct block *const *arch_blocks_dense(const struct model_config *c, int32_t layer)
{
    static const struct block *const list[] = {&block_attention, &block_mlp, NULL};
    (void)c;
    (void)layer;
    return list;
}

enum status arch_refuse_true(const json_t *obj, const char *key, const char *what, struct error *err)
{
    const json_t *m = json_object_get(obj, key);
    if (!m || json_is_null(m) || json_is_false(m))
        return STATUS_OK;
    return error_set(err, STATUS_UNSUPPORTED, "%s: \"%s\" must be false: ooze does not implement it", what,
                     key);
}

enum status arch_refuse_sliding(const json_t *obj, const char *what, struct error *err)
{
    enum status rc = arch_refuse_true(obj, "use_sliding_window", what, err);
    if (rc)
        return rc;
    const json_t *types = json_object_get(obj, "layer_types");
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *s = json_string_value(json_array_get(types, i));
        if (!s || strcmp(s, "full_attention") != 0)
            return error_set(err, STATUS_UNSUPPORTED,
                             "%s: layer_types[%zu] is \"%.40s\"; only \"full_attention\" is implemented",
                             what, i, s ? s : "?");
    }
    return STATUS_OK;
}
