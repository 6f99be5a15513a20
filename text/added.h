// Added tokens: the strings that are cut out of a text before anything else looks at it.
// Room-internal: tokenizer.h is the door. Immutable once built.
#ifndef TEXT_ADDED_H
#define TEXT_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_token {
    int32_t id;
    bool marker;      // special, or of the form <…> or […]: not recognised in plain text
    bool single_word; // only where no word character touches it
    bool lstrip;      // swallows the white space before it
    bool rstrip;      // and behind it
};

struct added_node { // of the trie: first child, next sibling
    uint8_t byte;
    int32_t child, sibling;
    int32_t token; // index, -1: no token ends here
};

struct added {
    struct added_token *tokens;
    int32_t n_tokens;
    struct added_node *nodes;
    int32_t n_nodes, cap_nodes;
    int32_t root[256]; // -1: no token begins with this byte
};

void added_init(struct added *a);
void added_done(struct added *a);
// The first token of a text wins. n > 0.
void added_put(struct added *a, const char *text, size_t n, struct added_token token);

// Walks the matches of a text from left to right, leftmost and then longest first.
struct added_walk {
    const char *text;
    size_t n;
    size_t from; // where the search goes on
    size_t done; // end of the last match, what it swallowed included
};
struct added_match {
    size_t at, end;
    int32_t id;
};
// False when there is no further match. Plain text lies between the end of one match and the start of the
// next.
bool added_next(const struct added *a, struct added_walk *w, bool with_markers, struct added_match *ret);

#endif
