// tokenizer_load: reads tokenizer.json into a tokenizer, refusing by name whatever it could not reproduce
// exactly.
//
// Runs once, on the opening thread. Pieces are kept as the bytes they stand for: byte-level BPE writes byte b
// as one visible character (GPT-2's table), and a piece made only of such characters is a word piece.
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/tokenizer_impl.h"
#include "text/unicode.h"

#define SPARSE_IDS 200000 // ids may leave holes, but not absurd ones

// Character of byte b: printable Latin-1 stands for itself, the 68 others follow from U+0100 on.
static void byte_of_letter(int16_t ret_byte[512])
{
    for (int i = 0; i < 512; i++)
        ret_byte[i] = -1;
    int next = 256;
    for (int b = 0; b < 256; b++) {
        bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        ret_byte[itself ? b : next++] = (int16_t)b;
    }
}

// The bytes that a vocabulary entry stands for; false when it is not written in byte letters.
static bool piece_bytes(const int16_t byte_of[512], const char *s, size_t n, struct buf *out)
{
    buf_clear(out);
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t len = utf8_decode(s + i, n - i, &cp);
        if (len == 0 || cp >= 512 || byte_of[cp] < 0)
            return false;
        buf_putc(out, (char)byte_of[cp]);
        i += len;
    }
    return n > 0;
}

static enum status load_vocab(struct tokenizer *t, const json_t *vocab, int32_t id_limit, const char *what,
                              struct error *err)
{
    int16_t byte_of[512];
    byte_of_letter(byte_of);
    struct buf bytes = {0};
    enum status st = STATUS_OK;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)vocab, key, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= id_limit) {
            st = error_set(err, STATUS_INVALID,
                           "%s: model.vocab[\"%.60s\"]: the id must be an integer in 0…%d", what, key,
                           id_limit - 1);
            break;
        }
        bool word = piece_bytes(byte_of, key, strlen(key), &bytes);
        bool fresh = word ? bpe_put_piece(&t->bpe, (int32_t)id, bytes.data, bytes.len, PIECE_WORD)
                          : bpe_put_piece(&t->bpe, (int32_t)id, key, strlen(key), 0);
        if (!fresh) {
            st = error_set(err, STATUS_INVALID, "%s: model.vocab[\"%.60s\"]: id %d is taken by another entry",
                           what, key, (int)id);
            break;
        }
    }
    buf_done(&bytes);
    return st;
}

static int32_t vocab_id(const json_t *vocab, const char *piece, size_t n)
{
    const json_t *v = json_object_getn(vocab, piece, n);
    return json_is_integer(v) ? (int32_t)json_integer_value(v) : -1;
}

// One merge, "left right" or ["left", "right"]; false when it has neither form.
static bool merge_parts(const json_t *m, const char **ret_left, size_t *ret_n_left, const char **ret_right,
                        size_t *ret_n_right)
{
    if (json_is_array(m) && json_array_size(m) == 2 && json_is_string(json_array_get(m, 0)) &&
        json_is_string(json_array_get(m, 1))) {
        *ret_left = json_string_value(json_array_get(m, 0));
        *ret_n_left = json_string_length(json_array_get(m, 0));
        *ret_right = json_string_value(json_array_get(m, 1));
        *ret_n_right = json_string_length(json_array_get(m, 1));
        return true;
    }
    const char *s = json_string_value(m), *space = s ? strchr(s, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return false;
    *ret_left = s;
    *ret_n_left = (size_t)(space - s);
    *ret_right = space + 1;
    *ret_n_right = strlen(space + 1);
    return true;
}

static enum status load_merges(struct tokenizer *t, const json_t *merges, const json_t *vocab,
                               const char *what, struct error *err)
{
    size_t n = json_array_size(merges);
    bpe_reserve_merges(&t->bpe, n);
    struct buf joined = {0};
    enum status st = STATUS_OK;
    uint32_t rank = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(merges, i);
        if (json_is_string(m) && strncmp(json_string_value(m), "#version", 8) == 0)
            continue;
        const char *left, *right;
        size_t n_left, n_right;
        if (!merge_parts(m, &left, &n_left, &right, &n_right)) {
            st = error_set(err, STATUS_INVALID,
                           "%s: model.merges[%zu] must be \"left right\" or [left, right]", what, i);
            break;
        }
        buf_clear(&joined);
        buf_append(&joined, left, n_left);
        buf_append(&joined, right, n_right);
        int32_t l = vocab_id(vocab, left, n_left), r = vocab_id(vocab, right, n_right);
        int32_t id = joined.len ? vocab_id(vocab, joined.data, joined.len) : -1;
        if (l < 0 || r < 0 || id < 0) {
            st = error_set(err, STATUS_INVALID,
                           "%s: model.merges[%zu]: \"%.*s\" + \"%.*s\" is not in model.vocab", what, i,
                           (int)(n_left > 40 ? 40 : n_left), left, (int)(n_right > 40 ? 40 : n_right), right);
            break;
        }
        if (t->bpe.pieces[id].flags & PIECE_MARKER) {
            st = error_set(err, STATUS_UNSUPPORTED, "%s: model.merges[%zu] makes the special token %d", what,
                           i, id);
            break;
        }
        bpe_put_merge(&t->bpe, l, r, rank++, id);
    }
    buf_done(&joined);
    return st;
}

static bool looks_like_marker(const char *s, size_t n)
{
    return n >= 3 && ((s[0] == '<' && s[n - 1] == '>') || (s[0] == '[' && s[n - 1] == ']'));
}

static enum status put_added(struct tokenizer *t, const char *text, size_t n, bool special, bool normalized,
                             struct added_token token, const char *what, struct error *err)
{
    token.marker = special || looks_like_marker(text, n);
    uint8_t flags = PIECE_ADDED | (token.marker ? PIECE_MARKER : 0);
    if (token.id < t->bpe.n_ids && (t->bpe.pieces[token.id].flags & PIECE_PRESENT)) {
        struct bpe_piece *p = &t->bpe.pieces[token.id];
        if (p->flags & PIECE_WORD) { // kept as bytes: an added token stands for its own text
            if (token.marker)
                p->flags &= (uint8_t)~PIECE_WORD;
        } else if (p->n != n || memcmp(t->bpe.blob.data + p->at, text, n) != 0) {
            return error_set(err, STATUS_INVALID, "%s: added_tokens: id %d of \"%.60s\" is taken", what,
                             token.id, text);
        }
        p->flags |= flags;
    } else {
        bpe_put_piece(&t->bpe, token.id, text, n, flags);
    }
    if (!normalized || !t->nfc) {
        added_put(normalized ? &t->normalized : &t->raw, text, n, token);
        return STATUS_OK;
    }
    struct buf composed = {0};
    enum status st = unicode_nfc(text, n, &composed, err);
    if (!st && composed.len)
        added_put(&t->normalized, composed.data, composed.len, token);
    buf_done(&composed);
    return st;
}

static enum status load_added(struct tokenizer *t, const json_t *list, const json_t *vocab, int32_t id_limit,
                              const char *what, struct error *err)
{
    if (list && !json_is_array(list))
        return error_set(err, STATUS_TYPE, "%s: added_tokens must be an array", what);
    for (size_t i = 0; i < json_array_size(list); i++) {
        char where[512];
        snprintf(where, sizeof where, "%.400s: added_tokens[%zu]", what, i);
        const json_t *item = json_array_get(list, i);
        struct added_token token = {0};
        bool special = false, normalized = false;
        int64_t id = 0;
        const char *text;
        enum status st = json_get_int(item, "id", true, 0, 0, id_limit - 1, where, &id, err);
        if (!st)
            st = json_get_string(item, "content", true, NULL, where, &text, err);
        if (!st)
            st = json_get_bool(item, "special", false, false, where, &special, err);
        if (!st)
            st = json_get_bool(item, "normalized", false, !special, where, &normalized, err);
        if (!st)
            st = json_get_bool(item, "single_word", false, false, where, &token.single_word, err);
        if (!st)
            st = json_get_bool(item, "lstrip", false, false, where, &token.lstrip, err);
        if (!st)
            st = json_get_bool(item, "rstrip", false, false, where, &token.rstrip, err);
        if (st)
            return st;
        size_t n = json_string_length(json_object_get(item, "content"));
        if (n == 0)
            continue;
        int32_t in_vocab = vocab_id(vocab, text, n);
        if (in_vocab >= 0 && in_vocab != id)
            return error_set(err, STATUS_INVALID, "%s: \"%.60s\" has id %d here and %d in model.vocab", where,
                             text, (int)id, in_vocab);
        token.id = (int32_t)id;
        st = put_added(t, text, n, special, normalized, token, where, err);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status load_normalizer(struct tokenizer *t, const json_t *spec, const char *what,
                                   struct error *err)
{
    if (!spec || json_is_null(spec))
        return STATUS_OK;
    const char *type = json_string_value(json_object_get(spec, "type"));
    if (type && strcmp(type, "NFC") == 0) {
        t->nfc = true;
        return STATUS_OK;
    }
    if (type && strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(spec, "normalizers");
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *inner = json_array_get(list, i);
            const char *name = json_string_value(json_object_get(inner, "type"));
            if (!name || strcmp(name, "NFC") != 0)
                return error_set(err, STATUS_UNSUPPORTED,
                                 "%s: normalizer \"%.40s\" is not handled (only NFC is)", what,
                                 name ? name : "?");
            t->nfc = true;
        }
        return STATUS_OK;
    }
    return error_set(err, STATUS_UNSUPPORTED, "%s: normalizer \"%.40s\" is not handled (only NFC is)", what,
                     type ? type : "?");
}

// Settings of BPE that would change ids and that byte-level tokenizers do not use.
static enum status check_model(const json_t *model, const char *what, struct error *err)
{
    const char *type = json_string_value(json_object_get(model, "type"));
    if (json_object_get(model, "type") && (!type || strcmp(type, "BPE") != 0)) // GPT-2's own file has no type
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: model.type \"%.40s\" is not handled (byte-level BPE and ooze-bytes are)", what,
                         type ? type : "?");
    static const char *const unset[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const json_t *v = json_object_get(model, unset[i]);
        if (v && !json_is_null(v) && !(json_is_string(v) && json_string_length(v) == 0))
            return error_set(err, STATUS_UNSUPPORTED, "%s: model.%s is set: only byte-level BPE is handled",
                             what, unset[i]);
    }
    const json_t *dropout = json_object_get(model, "dropout");
    if (json_is_number(dropout) && json_number_value(dropout) != 0)
        return error_set(err, STATUS_UNSUPPORTED, "%s: model.dropout must be null: ids would be random",
                         what);
    if (json_is_true(json_object_get(model, "byte_fallback")))
        return error_set(err, STATUS_UNSUPPORTED,
                         "%s: model.byte_fallback is set: only byte-level BPE is handled", what);
    if (!json_is_object(json_object_get(model, "vocab")) || !json_is_array(json_object_get(model, "merges")))
        return error_set(err, STATUS_UNSUPPORTED, "%s: model needs a vocab object and a merges array (BPE)",
                         what);
    return STATUS_OK;
}

enum status tokenizer_load_bpe(struct tokenizer *t, const json_t *doc, const char *what, struct error *err)
{
    const json_t *model = json_object_get(doc, "model");
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *added = json_object_get(doc, "added_tokens");
    enum status st = check_model(model, what, err);
    if (!st)
        st = load_normalizer(t, json_object_get(doc, "normalizer"), what, err);
    if (!st)
        st = pretoken_open(&t->pretoken, json_object_get(doc, "pre_tokenizer"), what, err);
    if (st)
        return st;
    size_t limit = json_object_size(vocab) + json_array_size(added) + SPARSE_IDS;
    int32_t id_limit = limit < BPE_MAX_IDS ? (int32_t)limit : BPE_MAX_IDS;
    st = load_vocab(t, vocab, id_limit, what, err);
    if (!st)
        st = load_added(t, added, vocab, id_limit, what, err);
    if (!st)
        st = load_merges(t, json_object_get(model, "merges"), vocab, what, err);
    if (!st)
        st = json_get_bool(model, "ignore_merges", false, false, what, &t->bpe.ignore_merges, err);
    if (!st)
        st = json_get_bool(model, "fuse_unk", false, false, what, &t->bpe.fuse_unknown, err);
    if (st)
        return st;
    bpe_index_pieces(&t->bpe);
    const json_t *unk = json_object_get(model, "unk_token");
    if (json_is_string(unk))
        t->bpe.unknown = vocab_id(vocab, json_string_value(unk), json_string_length(unk));
    if (t->bpe.n_ids == 0)
        return error_set(err, STATUS_INVALID, "%s: model.vocab is empty", what);
    return STATUS_OK;
}

static bool special_name_ok(const char *s)
{
    size_t n = strlen(s);
    return n >= 1 && n <= 32 &&
           strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-/") == n;
}

enum status tokenizer_load_bytes(struct tokenizer *t, const char *const *specials, size_t n, const char *what,
                                 struct error *err)
{
    t->bytes = true;
    if (n > 4096)
        return error_set(err, STATUS_LIMIT, "%s: %zu specials (at most 4096)", what, n);
    for (int b = 0; b < 256; b++)
        bpe_put_piece(&t->bpe, b, &(char){(char)b}, 1, PIECE_WORD);
    for (size_t i = 0; i < n; i++) {
        if (!special_name_ok(specials[i]))
            return error_set(err, STATUS_INVALID,
                             "%s: specials[%zu] \"%.40s\": 1…32 letters, digits, _, - or /", what, i,
                             specials[i]);
        for (size_t k = 0; k < i; k++)
            if (strcmp(specials[i], specials[k]) == 0)
                return error_set(err, STATUS_INVALID, "%s: specials[%zu] \"%s\" appears twice", what, i,
                                 specials[i]);
        char text[40];
        int len = snprintf(text, sizeof text, "<%s>", specials[i]);
        int32_t id = 256 + (int32_t)i;
        enum status st =
            put_added(t, text, (size_t)len, true, false, (struct added_token){.id = id}, what, err);
        if (st)
            return st;
        if (strcmp(specials[i], "BOS") == 0)
            t->bos = id;
        if (strcmp(specials[i], "EOS") == 0)
            t->eos = id;
        if (strcmp(specials[i], "PAD") == 0)
            t->pad = id;
    }
    bpe_index_pieces(&t->bpe);
    return STATUS_OK;
}
