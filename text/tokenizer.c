// tokenizer: opening, encoding, decoding. See tokenizer.h for the kinds and the invariants.
//
// A text goes through: repair (if it is not UTF-8) → added tokens cut out of the raw text → NFC of what lies
// between → added tokens cut out of that → pre-tokenizer → BPE. Runs on the caller's thread; a tokenizer is
// immutable once open.
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "text/tokenizer_impl.h"
#include "text/unicode.h"

#define FILE_MAX_BYTES   ((size_t)256 << 20)
#define CONFIG_MAX_BYTES ((size_t)16 << 20)
#define TEXT_MAX_BYTES   ((size_t)1 << 30)
#define CACHE_FROM_BYTES 4096 // shorter texts are done before a cache pays

const char *const tokenizer_tiny_specials[] = {"PAD", "BOS", "EOS", "CALL", "/CALL", "RES", "/RES", "ANS"};
const size_t tokenizer_n_tiny_specials = sizeof tokenizer_tiny_specials / sizeof *tokenizer_tiny_specials;

static struct tokenizer *tokenizer_new(void)
{
    struct tokenizer *t = mem_must(1, sizeof *t);
    bpe_init(&t->bpe);
    added_init(&t->raw);
    added_init(&t->normalized);
    t->bos = t->eos = t->pad = -1;
    return t;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    bpe_done(&t->bpe);
    pretoken_done(&t->pretoken);
    added_done(&t->raw);
    added_done(&t->normalized);
    buf_done(&t->source);
    free(t);
}

static enum status load_bytes_file(struct tokenizer *t, const json_t *doc, const char *what,
                                   struct error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)doc, key, value)
    {
        if (strcmp(key, "type") != 0 && strcmp(key, "specials") != 0)
            return error_set(err, STATUS_INVALID, "%s: unknown member \"%.60s\" of an ooze-bytes tokenizer",
                             what, key);
    }
    const json_t *list = json_object_get(doc, "specials");
    size_t n = json_array_size(list);
    if (!json_is_array(list))
        return error_set(err, STATUS_TYPE, "%s: specials must be an array of names", what);
    const char **names = mem_must(n + 1, sizeof *names);
    enum status st = STATUS_OK;
    for (size_t i = 0; i < n && !st; i++) {
        const json_t *name = json_array_get(list, i);
        if (json_is_string(name))
            names[i] = json_string_value(name);
        else
            st = error_set(err, STATUS_TYPE, "%s: specials[%zu] must be a string", what, i);
    }
    if (!st)
        st = tokenizer_load_bytes(t, names, n, what, err);
    free(names);
    return st;
}

enum status tokenizer_open_json(const char *data, size_t n, const char *what,
                                struct tokenizer **ret_tokenizer, struct error *err)
{
    json_t *doc = NULL;
    enum status st = json_parse(data, n, what, &doc, err);
    if (st)
        return st;
    struct tokenizer *t = tokenizer_new();
    const json_t *type = json_object_get(doc, "type");
    if (!json_is_object(doc))
        st = error_set(err, STATUS_TYPE, "%s: a tokenizer must be a JSON object", what);
    else if (!type)
        st = tokenizer_load_bpe(t, doc, what, err);
    else if (json_is_string(type) && strcmp(json_string_value(type), "ooze-bytes") == 0)
        st = load_bytes_file(t, doc, what, err);
    else
        st = error_set(err, STATUS_UNSUPPORTED, "%s: tokenizer type \"%.40s\" is not handled", what,
                       json_is_string(type) ? json_string_value(type) : "?");
    json_decref(doc);
    if (st) {
        tokenizer_close(t);
        return st;
    }
    buf_append(&t->source, data, n);
    *ret_tokenizer = t;
    return STATUS_OK;
}

enum status tokenizer_open_bytes(const char *const *specials, size_t n_specials,
                                 struct tokenizer **ret_tokenizer, struct error *err)
{
    struct tokenizer *t = tokenizer_new();
    enum status st = tokenizer_load_bytes(t, specials, n_specials, "byte tokenizer", err);
    if (st) {
        tokenizer_close(t);
        return st;
    }
    buf_puts(&t->source, "{\"type\":\"ooze-bytes\",\"specials\":[");
    for (size_t i = 0; i < n_specials; i++)
        buf_printf(&t->source, "%s\"%s\"", i ? "," : "", specials[i]);
    buf_puts(&t->source, "]}\n");
    *ret_tokenizer = t;
    return STATUS_OK;
}

// An id from a companion file: "x_token": text or {content: text} first, then "x_token_id": id or [id, …].
static int32_t companion_id(const struct tokenizer *t, const json_t *doc, const char *name)
{
    char key[32];
    snprintf(key, sizeof key, "%s_token", name);
    const json_t *v = json_object_get(doc, key);
    if (json_is_object(v))
        v = json_object_get(v, "content");
    if (json_is_string(v))
        return tokenizer_find(t, json_string_value(v), json_string_length(v));
    snprintf(key, sizeof key, "%s_token_id", name);
    v = json_object_get(doc, key);
    if (json_is_array(v))
        v = json_array_get(v, 0);
    json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    return id >= 0 && id < t->bpe.n_ids ? (int32_t)id : -1;
}

// bos, eos and pad out of the files beside tokenizer.json; the first file that knows one decides.
static enum status load_companions(struct tokenizer *t, const char *dir, struct error *err)
{
    static const char *const names[] = {"tokenizer_config.json", "generation_config.json", "config.json"};
    for (int i = 0; i < 3; i++) {
        char path[4096];
        enum status st = file_join(path, sizeof path, dir, names[i], err);
        if (st)
            return st;
        if (!file_exists(path))
            continue;
        json_t *doc = NULL;
        if ((st = json_parse_file(path, CONFIG_MAX_BYTES, &doc, err)))
            return st;
        if (t->bos < 0)
            t->bos = companion_id(t, doc, "bos");
        if (t->eos < 0)
            t->eos = companion_id(t, doc, "eos");
        if (t->pad < 0)
            t->pad = companion_id(t, doc, "pad");
        json_decref(doc);
    }
    return STATUS_OK;
}

enum status tokenizer_open(const char *path, struct tokenizer **ret_tokenizer, struct error *err)
{
    char file[4096];
    struct stat sb;
    bool folder = stat(path, &sb) == 0 && S_ISDIR(sb.st_mode);
    enum status st = STATUS_OK;
    if (folder)
        st = file_join(file, sizeof file, path, "tokenizer.json", err);
    else if ((size_t)snprintf(file, sizeof file, "%s", path) >= sizeof file)
        st = error_set(err, STATUS_LIMIT, "%.200s…: the path is too long", path);
    if (st)
        return st;
    char *data = NULL;
    size_t n = 0;
    if ((st = file_read(file, FILE_MAX_BYTES, &data, &n, err)))
        return st;
    struct tokenizer *t = NULL;
    st = tokenizer_open_json(data, n, file, &t, err);
    free(data);
    if (!st && folder && !t->bytes)
        st = load_companions(t, path, err);
    if (st) {
        tokenizer_close(t);
        return st;
    }
    *ret_tokenizer = t;
    return STATUS_OK;
}

enum status tokenizer_save(const struct tokenizer *t, const char *model_dir, struct error *err)
{
    char path[4096];
    enum status st = file_join(path, sizeof path, model_dir, "tokenizer.json", err);
    return st ? st : file_write_atomic(path, t->source.data, t->source.len, 0644, err);
}

bool tokenizer_is_bytes(const struct tokenizer *t)
{
    return t->bytes;
}

int32_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->bpe.n_ids;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

int32_t tokenizer_pad(const struct tokenizer *t)
{
    return t->pad;
}

int tokenizer_missing_bytes(const struct tokenizer *t)
{
    int n = 0;
    for (int b = 0; b < 256; b++)
        n += t->bpe.byte_id[b] < 0;
    return n;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *s, size_t n)
{
    int32_t id = bpe_find(&t->bpe, s, n, PIECE_ADDED);
    return id >= 0 ? id : bpe_find(&t->bpe, s, n, PIECE_PRESENT);
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *ret_n)
{
    *ret_n = 0;
    if (id < 0 || id >= t->bpe.n_ids || !(t->bpe.pieces[id].flags & PIECE_PRESENT))
        return NULL;
    *ret_n = t->bpe.pieces[id].n;
    return t->bpe.blob.data + t->bpe.pieces[id].at;
}

bool tokenizer_is_marker(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->bpe.n_ids && (t->bpe.pieces[id].flags & PIECE_MARKER);
}

// The state of one encode call.
struct encode {
    const struct tokenizer *t;
    bool markers;
    uint8_t mask;
    struct tokens *out;
    struct pretoken_scratch pretoken;
    struct bpe_scratch bpe;
    struct buf normal;
};

static enum status encode_words(struct encode *e, const char *text, size_t n, struct error *err)
{
    if (n == 0)
        return STATUS_OK;
    if (e->t->bytes) {
        for (size_t i = 0; i < n; i++)
            tokens_push(e->out, (uint8_t)text[i], e->mask);
        return STATUS_OK;
    }
    const struct pretoken_spans *spans;
    enum status st = pretoken_run(&e->t->pretoken, text, n, &e->pretoken, &text, &spans, err);
    if (st)
        return st;
    for (size_t i = 0; i < spans->n; i++)
        bpe_encode_word(&e->t->bpe, text + spans->v[i].at, spans->v[i].n, &e->bpe, e->mask, e->out);
    return STATUS_OK;
}

// What lies between two raw added tokens.
static enum status encode_segment(struct encode *e, const char *text, size_t n, struct error *err)
{
    if (e->t->nfc && unicode_may_compose(text, n)) {
        buf_clear(&e->normal);
        enum status st = unicode_nfc(text, n, &e->normal, err);
        if (st)
            return st;
        text = e->normal.data;
        n = e->normal.len;
    }
    struct added_walk w = {.text = text, .n = n};
    struct added_match m;
    size_t plain = 0;
    while (added_next(&e->t->normalized, &w, e->markers, &m)) {
        enum status st = encode_words(e, text + plain, m.at - plain, err);
        if (st)
            return st;
        tokens_push(e->out, m.id, e->mask);
        plain = m.end;
    }
    return encode_words(e, text + plain, n - plain, err);
}

enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, enum tokenizer_mode mode,
                             uint8_t mask, struct tokens *out, struct error *err)
{
    if (n > TEXT_MAX_BYTES)
        return error_set(err, STATUS_LIMIT, "a text of %zu bytes (at most %zu)", n, TEXT_MAX_BYTES);
    struct encode e = {.t = t, .markers = mode == TOKENIZER_MARKERS, .mask = mask, .out = out};
    struct buf repaired = {0};
    if (!t->bytes && utf8_valid_prefix(text, n) < n) {
        utf8_repair(&repaired, text, n);
        text = repaired.data;
        n = repaired.len;
    }
    if (n >= CACHE_FROM_BYTES)
        bpe_scratch_enable_cache(&e.bpe);
    size_t before = out->n, plain = 0;
    enum status st = STATUS_OK;
    struct added_walk w = {.text = text, .n = n};
    struct added_match m;
    while (!st && added_next(&t->raw, &w, e.markers, &m)) {
        st = encode_segment(&e, text + plain, m.at - plain, err);
        if (!st)
            tokens_push(out, m.id, mask);
        plain = m.end;
    }
    if (!st)
        st = encode_segment(&e, text + plain, n - plain, err);
    if (st)
        out->n = before;
    pretoken_scratch_done(&e.pretoken);
    bpe_scratch_done(&e.bpe);
    buf_done(&e.normal);
    buf_done(&repaired);
    return st;
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_markers,
                      struct buf *out)
{
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *piece = tokenizer_piece(t, ids[i], &len);
        if (piece && !(skip_markers && tokenizer_is_marker(t, ids[i])))
            buf_append(out, piece, len);
    }
}
