// Schema tables, the reading half: YAML nodes and overrides → struct. See config.h; config_print.c is the
// other half. Pure functions on caller-owned memory, any thread.
#include "base/config.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/config_value.h"

// ---- nearest key -----------------------------------------------------------------------------------------

// Levenshtein distance of two short words; long ones count as far apart.
static int edit_distance(const char *a, const char *b)
{
    int n = (int)strlen(a), m = (int)strlen(b), row[65];
    if (n > 64 || m > 64)
        return INT_MAX;
    for (int j = 0; j <= m; j++)
        row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

struct nearest {
    int distance;
    char path[256];
};

static void nearest_offer(struct nearest *best, const char *word, const char *candidate, const char *path)
{
    int d = edit_distance(word, candidate);
    if (d < best->distance) {
        best->distance = d;
        snprintf(best->path, sizeof(best->path), "%s", path);
    }
}

// Nearest key to `word` below `prefix` ("" or "rollout."): the components of this level first, then, for a
// word that is exactly the last component of a key elsewhere, that key's full path.
static void nearest_find(const struct config_schema *s, const char *prefix, const char *word,
                         struct nearest *best)
{
    size_t n_prefix = strlen(prefix);
    for (int i = 0; i < s->n_fields; i++) {
        const char *path = s->fields[i].path, *dot;
        if (strncmp(path, prefix, n_prefix) == 0) {
            char part[128];
            snprintf(part, sizeof(part), "%s", path + n_prefix);
            if ((dot = strchr(path + n_prefix, '.')))
                part[dot - path - n_prefix] = 0;
            nearest_offer(best, word, part, part);
        }
    }
    if (best->distance <= 1)
        return;
    for (int i = 0; i < s->n_fields; i++) {
        const struct config_field *f = &s->fields[i];
        const char *dot = strrchr(f->path, '.');
        if (strcmp(dot ? dot + 1 : f->path, word) == 0)
            nearest_offer(best, word, word, f->path);
        for (int k = 0; f->item && k < f->item->n_fields; k++) {
            char path[256];
            const char *sub = f->item->fields[k].path;
            dot = strrchr(sub, '.');
            snprintf(path, sizeof(path), "%s.NAME.%s", f->path, sub);
            if (strcmp(dot ? dot + 1 : sub, word) == 0)
                nearest_offer(best, word, word, path);
        }
    }
}

static enum status unknown_key(const struct config_apply_state *a, const struct config_schema *s,
                               const char *shown, const char *prefix, const struct yaml_node *n)
{
    struct nearest best = {.distance = INT_MAX};
    nearest_find(s, prefix, n->key, &best);
    char where[512], hint[300] = "";
    struct yaml_node at = *n;
    at.line = n->key_line;
    at.column = n->key_column;
    if (best.distance <= 1 + (int)strlen(n->key) / 2)
        snprintf(hint, sizeof(hint), "; did you mean '%s'?", best.path);
    else
        snprintf(hint, sizeof(hint), "; docs/configuration.md lists the keys");
    return error_set(a->err, STATUS_INVALID, "%sunknown key '%s%.64s'%s",
                     config_value_where(&at, where, sizeof(where)), shown, n->key, hint);
}

// ---- origins ---------------------------------------------------------------------------------------------

void config_origins_done(struct config_origins *o)
{
    if (!o)
        return;
    free(o->v);
    *o = (struct config_origins){0};
}

static void origin_note(const struct config_apply_state *a, const void *member, const struct yaml_node *n)
{
    struct config_origins *o = a->origins;
    if (o->n == o->cap) {
        o->cap = o->cap ? o->cap * 2 : 64;
        o->v = mem_grow(o->v, o->cap, sizeof(*o->v));
    }
    o->v[o->n++] =
        (struct config_origin){(size_t)((const char *)member - a->top), n->file, n->line, n->column};
}

const char *config_where(const struct config_origins *o, size_t offset, char *buf, size_t n)
{
    buf[0] = 0;
    for (size_t i = o->n; i-- > 0;) {
        if (o->v[i].offset != offset)
            continue;
        struct yaml_node at = {.file = o->v[i].file, .line = o->v[i].line, .column = o->v[i].column};
        return config_value_where(&at, buf, n);
    }
    return buf;
}

// ---- lists -----------------------------------------------------------------------------------------------

static enum status apply_map(const struct config_apply_state *a, const struct config_schema *s,
                             const struct yaml_node *map, const char *prefix, const char *shown, char *base);

static enum status store_list(const struct config_apply_state *a, const struct config_field *f,
                              const char *shown, const struct yaml_node *n, char *base)
{
    char *dst = base + f->offset;
    if (n->n > f->max_items)
        return config_value_fail(a, STATUS_LIMIT, n, shown, "too many items");
    memset(dst, 0, f->size * (size_t)f->max_items);
    *(int64_t *)(base + f->count_offset) = n->n;
    int i = 0;
    for (const struct yaml_node *item = n->child; item; item = item->next, i++) {
        char where[256], *slot = dst + f->size * (size_t)i;
        snprintf(where, sizeof(where), "%.200s.%d", shown, i);
        if (item->kind != YAML_MAP)
            return config_value_fail(a, STATUS_TYPE, item, where, "a map of keys expected");
        config_defaults(f->item, slot);
        origin_note(a, slot, item);
        snprintf(where, sizeof(where), "%.200s.%d.", shown, i);
        enum status rc = apply_map(a, f->item, item, "", where, slot);
        if (rc != STATUS_OK)
            return rc;
    }
    return STATUS_OK;
}

// "stages: {rl: {steps: 10}}" and the override stages.rl.steps=10: members by name, or by index from 0.
static enum status change_list(const struct config_apply_state *a, const struct config_field *f,
                               const char *shown, const struct yaml_node *map, char *base)
{
    int64_t n_items = *(int64_t *)(base + f->count_offset);
    for (const struct yaml_node *m = map->child; m; m = m->next) {
        int64_t k = -1;
        if (!config_value_int(m->key, &k)) {
            for (k = n_items - 1; k >= 0; k--)
                if (strcmp(f->item->item_name(base + f->offset + f->size * (size_t)k), m->key) == 0)
                    break;
        }
        char where[320];
        if (k < 0 || k >= n_items) {
            snprintf(where, sizeof(where), "no member '%.64s' among the %d given before", m->key,
                     (int)n_items);
            return config_value_fail(a, STATUS_NOTFOUND, m, shown, where);
        }
        snprintf(where, sizeof(where), "%.200s.%.64s", shown, m->key);
        if (m->kind != YAML_MAP)
            return config_value_fail(a, STATUS_TYPE, m, where, "a map of keys expected");
        snprintf(where, sizeof(where), "%.200s.%.64s.", shown, m->key);
        enum status rc = apply_map(a, f->item, m, "", where, base + f->offset + f->size * (size_t)k);
        if (rc != STATUS_OK)
            return rc;
    }
    return STATUS_OK;
}

// ---- maps ------------------------------------------------------------------------------------------------

static const struct config_field *find_field(const struct config_schema *s, const char *path,
                                             bool *ret_section)
{
    size_t n = strlen(path);
    *ret_section = false;
    for (int i = 0; i < s->n_fields; i++) {
        if (strcmp(s->fields[i].path, path) == 0)
            return &s->fields[i];
        if (strncmp(s->fields[i].path, path, n) == 0 && s->fields[i].path[n] == '.')
            *ret_section = true;
    }
    return NULL;
}

static enum status apply_field(const struct config_apply_state *a, const struct config_field *f,
                               const char *shown, const struct yaml_node *n, char *base)
{
    origin_note(a, base + f->offset, n);
    if (f->type == CONFIG_STRINGS)
        return config_value_strings(a, f, shown, n, base);
    if (f->type != CONFIG_LIST)
        return config_value_scalar(a, f, shown, n, base + f->offset);
    if (n->kind == YAML_MAP)
        return change_list(a, f, shown, n, base);
    if (n->kind == YAML_LIST)
        return store_list(a, f, shown, n, base);
    return config_value_fail(a, STATUS_TYPE, n, shown, "a list of maps expected");
}

// prefix: the schema's path so far with its dot ("rollout."); shown: the same for people, list members
// included.
static enum status apply_map(const struct config_apply_state *a, const struct config_schema *s,
                             const struct yaml_node *map, const char *prefix, const char *shown, char *base)
{
    enum status rc = STATUS_OK;
    for (const struct yaml_node *m = map->child; m && rc == STATUS_OK; m = m->next) {
        char path[256], label[400];
        bool section = false;
        const struct config_field *f = NULL;
        if (strlen(m->key) <= 64 && !strchr(m->key, '.')) {
            snprintf(path, sizeof(path), "%.128s%s", prefix, m->key);
            f = find_field(s, path, &section);
        }
        snprintf(label, sizeof(label), "%s%.64s", shown, m->key);
        if (f) {
            rc = apply_field(a, f, label, m, base);
        } else if (!section) {
            rc = unknown_key(a, s, shown, prefix, m);
        } else if (m->kind != YAML_MAP) {
            rc = config_value_fail(a, STATUS_TYPE, m, label, "a map of keys expected");
        } else {
            char deeper[256];
            snprintf(deeper, sizeof(deeper), "%.254s.", path);
            snprintf(label, sizeof(label), "%.300s%.64s.", shown, m->key);
            rc = apply_map(a, s, m, deeper, label, base);
        }
    }
    return rc;
}

enum status config_apply(const struct config_schema *s, const struct yaml_node *root, const char *folder,
                         void *ret, struct config_origins *origins, struct error *err)
{
    struct config_apply_state a = {.origins = origins, .folder = folder, .top = ret, .err = err};
    if (root->kind != YAML_MAP)
        return error_set(err, STATUS_TYPE, "%s:%d:%d: a map of keys expected", root->file, root->line,
                         root->column);
    return apply_map(&a, s, root, "", "", ret);
}

// An override marks its nodes with line 0, and with its own text in place of a file's name.
static void mark_override(struct yaml_node *n, const char *text)
{
    n->file = text;
    n->line = n->key_line = 0;
    for (struct yaml_node *c = n->child; c; c = c->next) // depth is bounded by yaml_parse
        mark_override(c, text);
}

enum status config_override(const struct config_schema *s, const char *text, const char *folder,
                            struct arena *arena, void *ret, struct config_origins *origins, struct error *err)
{
    const char *equals = strchr(text, '=');
    if (!equals || equals == text || text[0] == '.')
        return error_set(err, STATUS_INVALID, "override '%.200s': write KEY=VALUE, e.g. trainer.dtype=f32",
                         text);
    const char *kept = arena_strndup(arena, text, strlen(text));
    struct yaml_node *node;
    if (!kept)
        return error_set(err, STATUS_NOMEM, "out of memory");
    enum status rc = yaml_parse(equals + 1, strlen(equals + 1), "value", arena, &node, err);
    if (rc != STATUS_OK) {
        error_prefix(err, "override '%.200s'", text);
        return rc;
    }
    mark_override(node, kept);
    // a.b=v becomes {a: {b: v}}, built from the inside
    for (const char *end = equals, *start; end > text; end = start - 1) {
        start = end;
        while (start > text && start[-1] != '.')
            start--;
        struct yaml_node *map = arena_zalloc(arena, sizeof(*map));
        char *key = arena_strndup(arena, start, (size_t)(end - start));
        if (!map || !key)
            return error_set(err, STATUS_NOMEM, "out of memory");
        *map = (struct yaml_node){.kind = YAML_MAP, .file = kept, .child = node, .n = 1};
        node->key = key;
        node = map;
        if (start == text)
            break;
    }
    return config_apply(s, node, folder, ret, origins, err);
}

// ---- defaults --------------------------------------------------------------------------------------------

static void default_value(const struct config_field *f, char *base)
{
    struct yaml_node n = {.kind = YAML_SCALAR, .file = "default", .text = f->def};
    struct error err;
    struct config_apply_state a = {.folder = "", .top = base, .err = &err};
    char *dst = base + f->offset;
    if (f->type == CONFIG_STRINGS || f->type == CONFIG_LIST) {
        memset(dst, 0, f->size * (size_t)f->max_items);
        *(int64_t *)(base + f->count_offset) = 0;
        return;
    }
    if (f->type == CONFIG_ENUM && f->def[0] == '(') {
        *(int64_t *)dst = -1;
        return;
    }
    n.quoted = f->type == CONFIG_STRING;
    if (n.quoted && f->def[0] == '(')
        n.text = "";
    enum status rc = config_value_scalar(&a, f, f->path, &n, dst);
    assert(rc == STATUS_OK && "a default of the table breaks its own row");
    (void)rc;
}

void config_defaults(const struct config_schema *s, void *ret)
{
    for (int i = 0; i < s->n_fields; i++)
        default_value(&s->fields[i], ret);
}
