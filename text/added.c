// added: a byte trie over the added tokens and the walk that cuts them out. See added.h.
//
// The rules are those of Hugging Face's AddedVocabulary: leftmost-longest; a match that is refused (a marker
// in plain text, or a single_word token inside a word) is stepped over whole; white space taken by lstrip
// never reaches back into the match before.
#include "text/added.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/unicode.h"

void added_init(struct added *a)
{
    *a = (struct added){0};
    memset(a->root, 0xFF, sizeof a->root);
}

void added_done(struct added *a)
{
    free(a->tokens);
    free(a->nodes);
    added_init(a);
}

static int32_t new_node(struct added *a, uint8_t byte, int32_t sibling)
{
    if (a->n_nodes == a->cap_nodes) {
        a->cap_nodes = a->cap_nodes ? a->cap_nodes * 2 : 64;
        a->nodes = mem_grow(a->nodes, (size_t)a->cap_nodes, sizeof *a->nodes);
    }
    a->nodes[a->n_nodes] = (struct added_node){byte, -1, sibling, -1};
    return a->n_nodes++;
}

static int32_t find_child(const struct added *a, int32_t node, uint8_t byte)
{
    int32_t child = a->nodes[node].child;
    while (child >= 0 && a->nodes[child].byte != byte)
        child = a->nodes[child].sibling;
    return child;
}

void added_put(struct added *a, const char *text, size_t n, struct added_token token)
{
    uint8_t first = (uint8_t)text[0];
    if (a->root[first] < 0)
        a->root[first] = new_node(a, first, -1);
    int32_t node = a->root[first];
    for (size_t i = 1; i < n; i++) {
        int32_t child = find_child(a, node, (uint8_t)text[i]);
        if (child < 0) {
            child = new_node(a, (uint8_t)text[i], a->nodes[node].child);
            a->nodes[node].child = child;
        }
        node = child;
    }
    if (a->nodes[node].token >= 0)
        return;
    a->tokens = mem_grow(a->tokens, (size_t)a->n_tokens + 1, sizeof *a->tokens);
    a->tokens[a->n_tokens] = token;
    a->nodes[node].token = a->n_tokens++;
}

// Start of the character that ends at s[at), at > 0; the text is valid UTF-8 or (byte tokenizer) arbitrary
// bytes.
static size_t char_before(const char *s, size_t at)
{
    size_t i = at - 1;
    while (i > 0 && at - i < 4 && ((uint8_t)s[i] & 0xC0) == 0x80)
        i--;
    return i;
}

static bool ends_with_word(const char *s, size_t n)
{
    uint32_t cp;
    if (n == 0)
        return false;
    size_t at = char_before(s, n);
    return utf8_decode(s + at, n - at, &cp) && unicode_is_word(cp);
}

static bool starts_with_word(const char *s, size_t n)
{
    uint32_t cp;
    return utf8_decode(s, n, &cp) && unicode_is_word(cp);
}

static size_t skip_space_back(const char *s, size_t at, size_t floor)
{
    while (at > floor) {
        uint32_t cp;
        size_t prev = char_before(s, at);
        if (prev < floor || !utf8_decode(s + prev, at - prev, &cp) || !unicode_is_space(cp))
            break;
        at = prev;
    }
    return at;
}

static size_t skip_space(const char *s, size_t at, size_t n)
{
    uint32_t cp;
    for (size_t len; (len = utf8_decode(s + at, n - at, &cp)) && unicode_is_space(cp);)
        at += len;
    return at;
}

// Longest token that starts at text[at]; -1 for none.
static int32_t longest_at(const struct added *a, const char *text, size_t at, size_t n, size_t *ret_end)
{
    int32_t best = -1;
    int32_t node = a->root[(uint8_t)text[at]];
    for (size_t i = at + 1; node >= 0; i++) {
        if (a->nodes[node].token >= 0) {
            best = a->nodes[node].token;
            *ret_end = i;
        }
        if (i == n)
            break;
        node = find_child(a, node, (uint8_t)text[i]);
    }
    return best;
}

bool added_next(const struct added *a, struct added_walk *w, bool with_markers, struct added_match *ret)
{
    if (a->n_tokens == 0)
        return false;
    const char *s = w->text;
    while (w->from < w->n) {
        size_t at = w->from, end = 0;
        int32_t i = a->root[(uint8_t)s[at]] < 0 ? -1 : longest_at(a, s, at, w->n, &end);
        if (i < 0) {
            w->from++;
            continue;
        }
        w->from = end;
        const struct added_token *t = &a->tokens[i];
        if (t->marker && !with_markers)
            continue;
        if (t->single_word && (ends_with_word(s, at) || starts_with_word(s + end, w->n - end)))
            continue;
        if (end <= w->done) // white space that the token before has swallowed
            continue;
        if (at < w->done)
            at = w->done;
        if (t->lstrip)
            at = skip_space_back(s, at, w->done);
        if (t->rstrip)
            end = skip_space(s, end, w->n);
        *ret = (struct added_match){at, end, t->id};
        w->done = end;
        return true;
    }
    return false;
}
