// pretoken: the splits before BPE, each stage cutting every span of the stage before it.
//
// Patterns run in PCRE2 with UTF and UCP. Hugging Face runs them in Oniguruma, whose shorthand classes differ
// a little, so the pattern is translated first: \s is the property White_Space (PCRE2's \s also takes
// U+180E), \w is word by UTS 18, and a script name is the script itself, not its extensions. The Unicode
// tables are those of PCRE2 (14 in 10.42): characters newer than that may split differently. Runs on the
// caller's thread; compiled patterns are immutable and shared, match data belong to the scratch.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretoken.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/unicode.h"

#define MATCH_LIMIT 20000000 // steps of one match; beyond it the pattern is pathological

enum stage_kind { STAGE_REGEX, STAGE_DIGITS, STAGE_PREFIX_SPACE };
enum stage_behavior { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };

struct pretoken_stage {
    enum stage_kind kind;
    enum stage_behavior behavior;
    bool invert;
    pcre2_code *code;
};

// GPT-2's pattern, which ByteLevel applies itself when use_regex is set.
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static void spans_push(struct pretoken_spans *s, uint32_t at, uint32_t end)
{
    if (end <= at)
        return;
    if (s->n == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 256;
        s->v = mem_grow(s->v, s->cap, sizeof *s->v);
    }
    s->v[s->n++] = (struct pretoken_span){at, end - at};
}

// Oniguruma's pattern in PCRE2's words; false when it uses what PCRE2 would read differently (class
// intersection).
static bool translate_pattern(const char *pattern, size_t n, struct buf *out)
{
    static const struct {
        const char *from, *to;
    } words[] = {
        {"\\s", "\\p{White_Space}"},           {"\\S", "\\P{White_Space}"},
        {"\\p{Han}", "\\p{sc:Han}"},           {"\\p{Hiragana}", "\\p{sc:Hiragana}"},
        {"\\p{Katakana}", "\\p{sc:Katakana}"}, {"\\p{Hangul}", "\\p{sc:Hangul}"},
    };
    int class_depth = 0;
    for (size_t i = 0; i < n;) {
        if (pattern[i] == '\\' && i + 1 < n) {
            size_t step = 2;
            const char *to = NULL;
            for (size_t w = 0; w < sizeof words / sizeof *words && !to; w++) {
                size_t len = strlen(words[w].from);
                if (n - i >= len && memcmp(pattern + i, words[w].from, len) == 0) {
                    to = words[w].to;
                    step = len;
                }
            }
            if (!to && pattern[i + 1] == 'w')
                to = class_depth ? "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
                                 : "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]";
            if (!to && pattern[i + 1] == 'W') {
                if (class_depth)
                    return false;
                to = "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]";
            }
            if (to)
                buf_puts(out, to);
            else
                buf_append(out, pattern + i, step);
            i += step;
            continue;
        }
        if (class_depth && pattern[i] == '&' && i + 1 < n && pattern[i + 1] == '&')
            return false;
        if (pattern[i] == '[') {
            if (class_depth && !(i + 1 < n && pattern[i + 1] == ':'))
                return false; // a class in a class
            class_depth++;
        } else if (pattern[i] == ']' && class_depth) {
            class_depth--;
        }
        buf_putc(out, pattern[i++]);
    }
    return true;
}

static enum status compile_pattern(const char *pattern, size_t n, bool literal, const char *what,
                                   pcre2_code **ret_code, struct error *err)
{
    struct buf text = {0};
    enum status st = STATUS_OK;
    if (literal)
        buf_append(&text, pattern, n);
    else if (!translate_pattern(pattern, n, &text)) {
        st = error_set(
            err, STATUS_UNSUPPORTED,
            "%s: pre_tokenizer pattern \"%.200s\": nested or intersected character classes are not handled",
            what, pattern);
        goto out;
    }
    int code = 0;
    PCRE2_SIZE at = 0;
    uint32_t flags =
        PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    if (!cc) {
        st = error_set(err, STATUS_NOMEM, "%s: compiling a pre_tokenizer pattern", what);
        goto out;
    }
    pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(cc, 50);
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)(text.data ? text.data : ""), text.len, flags, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (!compiled) {
        PCRE2_UCHAR message[128] = "";
        pcre2_get_error_message(code, message, sizeof message);
        st = error_set(err, STATUS_UNSUPPORTED, "%s: pre_tokenizer pattern \"%.200s\" at byte %zu: %s", what,
                       pattern, at, (char *)message);
        goto out;
    }
    pcre2_jit_compile(compiled,
                      PCRE2_JIT_COMPLETE); // without JIT (another CPU, a sandbox) the interpreter matches
    *ret_code = compiled;
out:
    buf_done(&text);
    return st;
}

static enum status stage_put(struct pretoken *p, struct pretoken_stage stage, const char *what,
                             struct error *err)
{
    if (p->n_stages == PRETOKEN_MAX_STAGES) {
        if (stage.code)
            pcre2_code_free(stage.code);
        return error_set(err, STATUS_UNSUPPORTED, "%s: pre_tokenizer has more than %d stages", what,
                         PRETOKEN_MAX_STAGES);
    }
    p->stages = mem_grow(p->stages, (size_t)p->n_stages + 1, sizeof *p->stages);
    p->stages[p->n_stages++] = stage;
    return STATUS_OK;
}

static enum status open_split(struct pretoken *p, const json_t *spec, const char *what, struct error *err)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
                                        "Contiguous"};
    struct pretoken_stage stage = {.kind = STAGE_REGEX};
    const char *behavior;
    enum status st = json_get_string(spec, "behavior", true, NULL, what, &behavior, err);
    if (st)
        return st;
    size_t b = 0;
    while (b < 5 && strcmp(names[b], behavior) != 0)
        b++;
    if (b == 5)
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: pre_tokenizer Split: behavior \"%.40s\" is not handled", what, behavior);
    stage.behavior = (enum stage_behavior)b;
    if ((st = json_get_bool(spec, "invert", false, false, what, &stage.invert, err)))
        return st;
    const json_t *pattern = json_object_get(spec, "pattern");
    const json_t *literal = json_object_get(pattern, "String");
    const json_t *text = literal ? literal : json_object_get(pattern, "Regex");
    if (!json_is_string(text))
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: pre_tokenizer Split: pattern must be {\"Regex\": …} or {\"String\": …}", what);
    st = compile_pattern(json_string_value(text), json_string_length(text), literal != NULL, what,
                         &stage.code, err);
    return st ? st : stage_put(p, stage, what, err);
}

static enum status open_byte_level(struct pretoken *p, const json_t *spec, const char *what,
                                   struct error *err)
{
    bool prefix, regex;
    enum status st = json_get_bool(spec, "add_prefix_space", false, true, what, &prefix, err);
    if (!st)
        st = json_get_bool(spec, "use_regex", false, true, what, &regex, err);
    if (!st && prefix)
        st = stage_put(p, (struct pretoken_stage){.kind = STAGE_PREFIX_SPACE}, what, err);
    if (st || !regex)
        return st;
    struct pretoken_stage stage = {.kind = STAGE_REGEX, .behavior = ISOLATED};
    st = compile_pattern(gpt2_pattern, sizeof gpt2_pattern - 1, false, what, &stage.code, err);
    return st ? st : stage_put(p, stage, what, err);
}

static enum status open_stage(struct pretoken *p, const json_t *spec, bool last, const char *what,
                              struct error *err)
{
    const char *type;
    enum status st = json_get_string(spec, "type", true, NULL, what, &type, err);
    if (st)
        return st;
    if ((strcmp(type, "ByteLevel") == 0) != last)
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: pre_tokenizer \"%.40s\" %s: only byte-level chains (… then ByteLevel, once, at "
                         "the end) are handled",
                         what, type, last ? "comes last" : "comes before the end");
    if (last)
        return open_byte_level(p, spec, what, err);
    if (strcmp(type, "Split") == 0)
        return open_split(p, spec, what, err);
    if (strcmp(type, "Digits") == 0) {
        bool individual;
        if ((st = json_get_bool(spec, "individual_digits", false, false, what, &individual, err)))
            return st;
        struct pretoken_stage stage = {.kind = STAGE_DIGITS, .behavior = individual ? ISOLATED : CONTIGUOUS};
        return stage_put(p, stage, what, err);
    }
    return error_set(err, STATUS_UNSUPPORTED, "%s: pre_tokenizer \"%.40s\" is not handled", what, type);
}

enum status pretoken_open(struct pretoken *p, const json_t *spec, const char *what, struct error *err)
{
    *p = (struct pretoken){0};
    const char *type = json_string_value(json_object_get(spec, "type"));
    if (!type)
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: pre_tokenizer is missing: only byte-level BPE is handled", what);
    enum status st = STATUS_OK;
    if (strcmp(type, "Sequence") != 0) {
        st = open_stage(p, spec, true, what, err);
    } else {
        const json_t *list = json_object_get(spec, "pretokenizers");
        size_t n = json_array_size(list);
        if (n == 0)
            st = error_set(err, STATUS_UNSUPPORTED, "%s: pre_tokenizer Sequence is empty", what);
        for (size_t i = 0; i < n && !st; i++)
            st = open_stage(p, json_array_get(list, i), i + 1 == n, what, err);
    }
    if (st)
        pretoken_done(p);
    return st;
}

void pretoken_done(struct pretoken *p)
{
    for (int i = 0; i < p->n_stages; i++)
        pcre2_code_free(p->stages[i].code);
    free(p->stages);
    *p = (struct pretoken){0};
}

void pretoken_scratch_done(struct pretoken_scratch *s)
{
    free(s->a.v);
    free(s->b.v);
    buf_done(&s->text);
    pcre2_match_data_free(s->match);
    pcre2_match_context_free(s->context);
    *s = (struct pretoken_scratch){0};
}

// Collects the parts of one span under a behaviour. Parts come in order, alternating freely.
struct splitter {
    struct pretoken_spans *out;
    const struct pretoken_stage *stage;
    size_t first;       // index in out of this span's first part
    bool after_match;   // the part before was a match
    uint32_t held_from; // MERGED_WITH_NEXT: start of a match that waits for its successor
    bool holding;
};

static void split_part(struct splitter *s, uint32_t at, uint32_t end, bool match)
{
    match ^= s->stage->invert;
    if (at == end)
        return;
    bool merge = false;
    switch (s->stage->behavior) {
    case REMOVED:
        if (!match)
            spans_push(s->out, at, end);
        return;
    case ISOLATED:
        break;
    case MERGED_WITH_PREVIOUS:
        merge = match && !s->after_match;
        break;
    case CONTIGUOUS:
        merge = match == s->after_match;
        break;
    case MERGED_WITH_NEXT: // a match joins the following part, unless that is a match too
        if (match) {
            if (s->holding)
                spans_push(s->out, s->held_from, at);
            s->held_from = at;
            s->holding = true;
        } else {
            spans_push(s->out, s->holding ? s->held_from : at, end);
            s->holding = false;
        }
        return;
    }
    s->after_match = match;
    if (merge && s->out->n > s->first)
        s->out->v[s->out->n - 1].n = end - s->out->v[s->out->n - 1].at;
    else
        spans_push(s->out, at, end);
}

static enum status split_regex(struct splitter *s, const char *text, struct pretoken_span span,
                               struct pretoken_scratch *sc, struct error *err)
{
    const char *subject = text + span.at;
    size_t prev = 0, from = 0;
    const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(sc->match);
    while (from <= span.n) {
        int rc = pcre2_match(s->stage->code, (PCRE2_SPTR)subject, span.n, from, PCRE2_NO_UTF_CHECK, sc->match,
                             sc->context);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT) // the interpreter keeps its stack on the heap
            rc = pcre2_match(s->stage->code, (PCRE2_SPTR)subject, span.n, from,
                             PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, sc->match, sc->context);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0) {
            PCRE2_UCHAR message[128] = "";
            pcre2_get_error_message(rc, message, sizeof message);
            return error_set(err, STATUS_LIMIT, "pre-tokenizer pattern at byte %zu of a text of %u: %s", from,
                             span.n, (char *)message);
        }
        size_t at = ov[0] < from ? from : ov[0], end = ov[1] < at ? at : ov[1];
        split_part(s, span.at + (uint32_t)prev, span.at + (uint32_t)at, false);
        split_part(s, span.at + (uint32_t)at, span.at + (uint32_t)end, true);
        prev = end;
        from = end;
        if (at == end) { // an empty match cuts here; look on behind the next character
            from++;
            while (from < span.n && ((uint8_t)subject[from] & 0xC0) == 0x80)
                from++;
        }
    }
    split_part(s, span.at + (uint32_t)prev, span.at + span.n, false);
    return STATUS_OK;
}

static void split_digits(struct splitter *s, const char *text, struct pretoken_span span)
{
    uint32_t prev = span.at, end = span.at + span.n;
    for (uint32_t i = span.at; i < end;) {
        uint32_t cp;
        uint32_t len = (uint32_t)utf8_decode(text + i, end - i, &cp);
        if (unicode_is_numeric(cp)) {
            split_part(s, prev, i, false);
            split_part(s, i, i + len, true);
            prev = i + len;
        }
        i += len;
    }
    split_part(s, prev, end, false);
}

// Puts a space before every span that does not begin with one; the spans then index the copy in the scratch.
static const char *prefix_spaces(const char *text, struct pretoken_spans *spans, struct pretoken_scratch *sc)
{
    struct buf out = {0};
    for (size_t i = 0; i < spans->n; i++) {
        struct pretoken_span *v = &spans->v[i];
        size_t at = out.len;
        if (text[v->at] != ' ')
            buf_putc(&out, ' ');
        buf_append(&out, text + v->at, v->n);
        *v = (struct pretoken_span){(uint32_t)at, (uint32_t)(out.len - at)};
    }
    buf_done(&sc->text);
    sc->text = out;
    return out.data ? out.data : "";
}

enum status pretoken_run(const struct pretoken *p, const char *text, size_t n, struct pretoken_scratch *sc,
                         const char **ret_text, const struct pretoken_spans **ret_spans, struct error *err)
{
    if (!sc->match) {
        sc->match = pcre2_match_data_create(1, NULL);
        sc->context = pcre2_match_context_create(NULL);
        if (!sc->match || !sc->context)
            return error_set(err, STATUS_NOMEM, "pre-tokenizer match data");
        pcre2_set_match_limit(sc->context, MATCH_LIMIT);
    }
    struct pretoken_spans *in = &sc->a, *out = &sc->b;
    in->n = 0;
    spans_push(in, 0, (uint32_t)n);
    for (int k = 0; k < p->n_stages; k++) {
        const struct pretoken_stage *stage = &p->stages[k];
        if (stage->kind == STAGE_PREFIX_SPACE) {
            text = prefix_spaces(text, in, sc);
            continue;
        }
        out->n = 0;
        for (size_t i = 0; i < in->n; i++) {
            struct splitter s = {.out = out, .stage = stage, .first = out->n};
            if (stage->kind == STAGE_DIGITS) {
                split_digits(&s, text, in->v[i]);
            } else {
                enum status st = split_regex(&s, text, in->v[i], sc, err);
                if (st)
                    return st;
            }
            if (s.holding)
                spans_push(out, s.held_from, in->v[i].at + in->v[i].n);
        }
        struct pretoken_spans *swap = in;
        in = out;
        out = swap;
    }
    *ret_text = text;
    *ret_spans = in;
    return STATUS_OK;
}
