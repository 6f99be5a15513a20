// Schema tables: one row per configuration key says its path, type, place in a plain C struct, range, default
// and meaning. From the rows come the reader (YAML maps and dotted overrides → struct), the printer (struct →
// YAML that reads back to the same struct) and the reference documentation. base/runconfig.c holds the one
// table of a run.
//
// Invariants
//   1. A row's struct member is int64_t (INT, ENUM), uint64_t (U64), double (REAL), bool (BOOL), char[size]
//   (STRING),
//      char[max][size] plus an int64_t count (STRINGS), or a struct array plus an int64_t count (LIST).
//   2. Rows of one section ("rollout.…") stand together, so that the printer opens each section once.
//   3. Unused list slots and the bytes behind a string's NUL are zero: equal configurations are equal bytes.
#ifndef BASE_CONFIG_H
#define BASE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "base/yaml.h"

enum config_type {
    CONFIG_INT,
    CONFIG_U64,
    CONFIG_REAL,
    CONFIG_BOOL,
    CONFIG_STRING,
    CONFIG_ENUM,    // stored as the index of its name in `names`
    CONFIG_STRINGS, // list of strings
    CONFIG_LIST,    // list of sections, each described by `item`
};

enum config_flag {
    CONFIG_ABOVE_MIN = 1, // REAL: the minimum itself is out of range
    CONFIG_BELOW_MAX = 2, // REAL: the maximum itself is out of range
    CONFIG_WORD = 4,      // STRING: letters, digits, - and _, starting with a letter; or empty
    CONFIG_PATH = 8,      // STRING: a relative path counts from the folder of the YAML file that names it
    CONFIG_OR_BYTES = 32, // with CONFIG_PATH: the word `bytes` is no path
    CONFIG_PROGRAM = 16,  // STRINGS: the first one likewise, when it holds a slash
};

struct config_schema;

struct config_field {
    const char *path; // dotted, below the schema's struct: "rollout.kv_tokens"
    enum config_type type;
    size_t offset;
    double min, max;
    const char *def; // as one would write it; ENUM: "(…)" = filled by the rules, stored as -1 until then
    const char *doc; // a sentence, with the unit
    size_t size;     // STRING(S): bytes of one string; LIST: bytes of one item
    size_t count_offset; // STRINGS, LIST: int64_t number of items
    int max_items;
    const char *const *names; // ENUM: all names; STRING: the permitted values; NULL-terminated
    const struct config_schema *item;
    unsigned flags;
};

struct config_schema {
    const struct config_field *fields;
    int n_fields;
    // LIST items: the name under which a member is addressed ("stages.rl.steps"); NULL at the top.
    const char *(*item_name)(const void *item);
};

// Where each value of the struct came from, for errors of rules that look at several keys.
struct config_origin {
    size_t offset; // in the top struct
    const char *file;
    int line, column; // 0: an override
};
struct config_origins {
    struct config_origin *v;
    size_t n, cap;
};
void config_origins_done(struct config_origins *o);

// Zeroes nothing but what the schema names; writes every default.
void config_defaults(const struct config_schema *s, void *ret);

// Applies one parsed document; earlier values stay where it is silent. A list replaces the whole list; a map
// in a list's place changes single members, addressed by index or name. `folder` is what relative paths count
// from.
enum status config_apply(const struct config_schema *s, const struct yaml_node *root, const char *folder,
                         void *ret, struct config_origins *origins, struct error *err) OOZE_MUST_USE;

// "a.b.c=value"; the value is YAML ("[x, y]" is a list). Same rules as config_apply; paths count from
// `folder`.
enum status config_override(const struct config_schema *s, const char *text, const char *folder,
                            struct arena *arena, void *ret, struct config_origins *origins,
                            struct error *err) OOZE_MUST_USE;

// "FILE:LINE:COLUMN: " or "override: " of the member at `offset`; "" when it kept its default.
const char *config_where(const struct config_origins *o, size_t offset, char *buf, size_t n);

void config_print(const struct config_schema *s, const void *c, struct buf *out);

// Markdown: one table per section.
void config_print_docs(const struct config_schema *s, struct buf *out);

#endif
