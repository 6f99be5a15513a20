// YAML reader over libyaml's event parser: see yaml.h. Pure functions on caller-owned memory, any thread.
// Events rather than libyaml's own document loader, because only they let the caps act before memory is
// spent.
#include "base/yaml.h"

#include <string.h>
#include <yaml.h>

struct reader {
    yaml_parser_t parser;
    const char *file, *data; // the text itself: for the place of a byte that is no UTF-8
    struct arena *arena;
    struct error *err;
    int n_nodes;
};

static enum status reader_fail(struct reader *r, enum status s, const yaml_mark_t *at, const char *what)
{
    return error_set(r->err, s, "%s:%zu:%zu: %s", r->file, at->line + 1, at->column + 1, what);
}

static enum status reader_next(struct reader *r, yaml_event_t *event)
{
    if (yaml_parser_parse(&r->parser, event))
        return STATUS_OK;
    yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR)
        return error_set(r->err, STATUS_NOMEM, "%s: out of memory", r->file);
    yaml_mark_t at = p->problem_mark;
    if (p->error == YAML_READER_ERROR) { // knows only an offset
        at = (yaml_mark_t){0};
        for (size_t i = 0; i < p->problem_offset; i++) {
            at.column = r->data[i] == '\n' ? 0 : at.column + 1;
            at.line += r->data[i] == '\n';
        }
    }
    return reader_fail(r, STATUS_INVALID, &at, p->problem ? p->problem : "not YAML");
}

static enum status read_node(struct reader *r, yaml_event_t *event, int depth, struct yaml_node **ret);

static enum status new_node(struct reader *r, const yaml_event_t *event, enum yaml_kind kind,
                            struct yaml_node **ret)
{
    if (++r->n_nodes > YAML_NODES)
        return reader_fail(r, STATUS_LIMIT, &event->start_mark, "too many values in one document");
    struct yaml_node *node = arena_zalloc(r->arena, sizeof(*node));
    if (!node)
        return error_set(r->err, STATUS_NOMEM, "%s: out of memory", r->file);
    node->kind = kind;
    node->file = r->file;
    node->line = (int)event->start_mark.line + 1;
    node->column = (int)event->start_mark.column + 1;
    *ret = node;
    return STATUS_OK;
}

static enum status read_scalar(struct reader *r, yaml_event_t *event, struct yaml_node **ret)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t n = event->data.scalar.length;
    if (event->data.scalar.anchor || event->data.scalar.tag)
        return reader_fail(r, STATUS_INVALID, &event->start_mark, "anchors and tags are not used here");
    if (memchr(text, 0, n))
        return reader_fail(r, STATUS_INVALID, &event->start_mark, "a zero byte inside a value");
    enum status rc = new_node(r, event, YAML_SCALAR, ret);
    if (rc != STATUS_OK)
        return rc;
    (*ret)->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    (*ret)->text = arena_strndup(r->arena, text, n);
    return (*ret)->text ? STATUS_OK : error_set(r->err, STATUS_NOMEM, "%s: out of memory", r->file);
}

static enum status read_list(struct reader *r, yaml_event_t *start, int depth, struct yaml_node **ret)
{
    if (start->data.sequence_start.anchor || start->data.sequence_start.tag)
        return reader_fail(r, STATUS_INVALID, &start->start_mark, "anchors and tags are not used here");
    enum status rc = new_node(r, start, YAML_LIST, ret);
    struct yaml_node **end = rc == STATUS_OK ? &(*ret)->child : NULL;
    while (rc == STATUS_OK) {
        yaml_event_t event;
        rc = reader_next(r, &event);
        if (rc != STATUS_OK)
            break;
        bool last = event.type == YAML_SEQUENCE_END_EVENT;
        if (!last)
            rc = read_node(r, &event, depth + 1, end);
        yaml_event_delete(&event);
        if (last)
            break;
        if (rc == STATUS_OK) {
            end = &(*end)->next;
            (*ret)->n++;
        }
    }
    return rc;
}

// One "key: value". The key's event is consumed by the caller.
static enum status read_member(struct reader *r, yaml_event_t *key, int depth, const struct yaml_node *map,
                               struct yaml_node **ret)
{
    if (key->type != YAML_SCALAR_EVENT)
        return reader_fail(r, STATUS_INVALID, &key->start_mark, "a key must be a plain word");
    struct yaml_node *name;
    enum status rc = read_scalar(r, key, &name);
    if (rc != STATUS_OK)
        return rc;
    for (const struct yaml_node *m = map->child; m; m = m->next)
        if (strcmp(m->key, name->text) == 0)
            return error_set(r->err, STATUS_INVALID, "%s:%d:%d: key '%.64s' is given twice, first on line %d",
                             r->file, name->line, name->column, name->text, m->key_line);
    yaml_event_t event;
    rc = reader_next(r, &event);
    if (rc != STATUS_OK)
        return rc;
    struct yaml_node *value = NULL;
    rc = read_node(r, &event, depth + 1, &value);
    yaml_event_delete(&event);
    if (rc != STATUS_OK)
        return rc;
    value->key = name->text;
    value->key_line = name->line;
    value->key_column = name->column;
    *ret = value;
    return STATUS_OK;
}

static enum status read_map(struct reader *r, yaml_event_t *start, int depth, struct yaml_node **ret)
{
    if (start->data.mapping_start.anchor || start->data.mapping_start.tag)
        return reader_fail(r, STATUS_INVALID, &start->start_mark, "anchors and tags are not used here");
    enum status rc = new_node(r, start, YAML_MAP, ret);
    struct yaml_node **end = rc == STATUS_OK ? &(*ret)->child : NULL;
    while (rc == STATUS_OK) {
        yaml_event_t event;
        rc = reader_next(r, &event);
        if (rc != STATUS_OK)
            break;
        bool last = event.type == YAML_MAPPING_END_EVENT;
        struct yaml_node *member = NULL;
        if (!last)
            rc = read_member(r, &event, depth, *ret, &member);
        yaml_event_delete(&event);
        if (last)
            break;
        if (rc == STATUS_OK) {
            *end = member;
            end = &member->next;
            // duplicate keys are looked for one by one: the cap keeps that from growing quadratic
            if (++(*ret)->n > 1024)
                rc = reader_fail(r, STATUS_LIMIT, &start->start_mark, "more than 1024 keys in one map");
        }
    }
    return rc;
}

static enum status read_node(struct reader *r, yaml_event_t *event, int depth, struct yaml_node **ret)
{
    if (depth > YAML_DEPTH)
        return reader_fail(r, STATUS_LIMIT, &event->start_mark, "nested deeper than 64 levels");
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return read_scalar(r, event, ret);
    case YAML_SEQUENCE_START_EVENT:
        return read_list(r, event, depth, ret);
    case YAML_MAPPING_START_EVENT:
        return read_map(r, event, depth, ret);
    case YAML_ALIAS_EVENT:
        return reader_fail(r, STATUS_INVALID, &event->start_mark,
                           "aliases are not used here: write the value out");
    default:
        return reader_fail(r, STATUS_INVALID, &event->start_mark, "a value was expected");
    }
}

// stream start, [document start, node, document end], stream end
static enum status read_stream(struct reader *r, struct yaml_node **ret)
{
    struct yaml_node *root = NULL;
    for (;;) {
        yaml_event_t event;
        enum status rc = reader_next(r, &event);
        if (rc != STATUS_OK)
            return rc;
        yaml_event_type_t type = event.type;
        if (type == YAML_DOCUMENT_START_EVENT && root)
            rc = reader_fail(r, STATUS_INVALID, &event.start_mark, "a second document: one file holds one");
        else if (type != YAML_STREAM_START_EVENT && type != YAML_STREAM_END_EVENT &&
                 type != YAML_DOCUMENT_START_EVENT && type != YAML_DOCUMENT_END_EVENT)
            rc = read_node(r, &event, 1, &root);
        if (rc == STATUS_OK && type == YAML_STREAM_END_EVENT && !root) {
            rc = new_node(r, &event, YAML_MAP, &root);
        }
        yaml_event_delete(&event);
        if (rc != STATUS_OK)
            return rc;
        if (type == YAML_STREAM_END_EVENT)
            break;
    }
    *ret = root;
    return STATUS_OK;
}

enum status yaml_parse(const char *data, size_t n, const char *file, struct arena *arena,
                       struct yaml_node **ret, struct error *err)
{
    struct reader r = {.file = file, .data = data, .arena = arena, .err = err};
    if (n > YAML_BYTES)
        return error_set(err, STATUS_LIMIT, "%s: larger than %zu bytes", file, YAML_BYTES);
    if (!yaml_parser_initialize(&r.parser))
        return error_set(err, STATUS_NOMEM, "%s: out of memory", file);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)data, n);
    struct yaml_node *root = NULL;
    enum status rc = read_stream(&r, &root);
    yaml_parser_delete(&r.parser);
    if (rc == STATUS_OK)
        *ret = root;
    return rc;
}
