// YAML text → a tree of nodes that remember where they stood. The only door to yaml.h (libyaml).
//
// A configuration needs less than YAML offers, and the rest of it is where surprises live, so this reader
// refuses what libyaml lets through: duplicate keys, anchors and aliases, tags, several documents, keys that
// are not plain text, depth over YAML_DEPTH, more than YAML_NODES nodes.
#ifndef BASE_YAML_H
#define BASE_YAML_H

#include <stdbool.h>
#include <stddef.h>

#include "base/mem.h"
#include "base/status.h"

#define YAML_DEPTH 64
#define YAML_NODES 100000
#define YAML_BYTES ((size_t)4 << 20) // of one document

enum yaml_kind { YAML_SCALAR, YAML_LIST, YAML_MAP };

struct yaml_node {
    enum yaml_kind kind;
    const char *file; // as given to yaml_parse; NULL in a tree made by hand
    int line, column; // from 1
    bool quoted;      // scalar: written with quotes, or as a block
    const char *text; // scalar
    const char *key;  // of this node in its map
    int key_line, key_column;
    struct yaml_node *child; // first item or member
    struct yaml_node *next;  // sibling
    int n;                   // items or members
};

// Parses one document. Nodes and texts live in `arena`; `file` names the source in errors and is not copied.
// An empty document is an empty map. STATUS_INVALID with file:line:column, STATUS_LIMIT beyond the caps.
enum status yaml_parse(const char *data, size_t n, const char *file, struct arena *arena,
                       struct yaml_node **ret, struct error *err) OOZE_MUST_USE;

#endif
