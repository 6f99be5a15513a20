// Between the files of config: one YAML value → one member of a struct. Not for other rooms.
#ifndef BASE_CONFIG_VALUE_H
#define BASE_CONFIG_VALUE_H

#include "base/config.h"

struct config_apply_state {
    struct config_origins *origins;
    const char *folder;
    char *top; // the whole struct, for offsets
    struct error *err;
};

// "FILE:LINE:COLUMN: ", or "override '…': " for a value that came by one.
const char *config_value_where(const struct yaml_node *n, char *buf, size_t size);
// "WHERE: PATH: WHAT"; returns s.
enum status config_value_fail(const struct config_apply_state *a, enum status s, const struct yaml_node *n,
                              const char *path, const char *what);
// A decimal whole number that fits; false for anything else.
bool config_value_int(const char *text, int64_t *ret);
// Stores n at dst by the row f, after checking type, range and names. `shown` is the key for people.
enum status config_value_scalar(const struct config_apply_state *a, const struct config_field *f,
                                const char *shown, const struct yaml_node *n, void *dst) OOZE_MUST_USE;
// The same for a row of kind STRINGS; base is the struct that the row's offsets count from.
enum status config_value_strings(const struct config_apply_state *a, const struct config_field *f,
                                 const char *shown, const struct yaml_node *n, char *base) OOZE_MUST_USE;

#endif
