// Pre-tokenizers: the chain of splits that cuts a text into the words that BPE merges within.
// Handles Sequence, Split (String or Regex, every behaviour, invert), Digits and ByteLevel of tokenizer.json;
// ByteLevel must come last. Room-internal: tokenizer.h is the door. Immutable once built.
#ifndef TEXT_PRETOKEN_H
#define TEXT_PRETOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/status.h"

#define PRETOKEN_MAX_STAGES 16

struct pretoken_stage;
struct pretoken {
    struct pretoken_stage *stages;
    int n_stages;
};

// spec: the "pre_tokenizer" member. what: the file, for errors.
enum status pretoken_open(struct pretoken *p, const json_t *spec, const char *what,
                          struct error *err) OOZE_MUST_USE;
void pretoken_done(struct pretoken *p);

struct pretoken_span {
    uint32_t at, n;
};
struct pretoken_spans {
    struct pretoken_span *v;
    size_t n, cap;
};
struct pretoken_scratch { // of one call
    struct pretoken_spans a, b;
    struct buf text; // the text with the spaces of add_prefix_space put in
    void *match;     // pcre2_match_data
    void *context;   // pcre2_match_context
};
void pretoken_scratch_done(struct pretoken_scratch *s);

// Cuts text[0, n) (valid UTF-8, n < 2^31). *ret_text is text or a copy in the scratch; the spans index it, in
// order, none empty. Valid until the next call with the same scratch.
enum status pretoken_run(const struct pretoken *p, const char *text, size_t n, struct pretoken_scratch *s,
                         const char **ret_text, const struct pretoken_spans **ret_spans,
                         struct error *err) OOZE_MUST_USE;

#endif
