// Fuzz: tokenizer.json documents and texts. The first byte chooses: '{' or '[' starts a document, which is opened and, if
// that works, used; anything else, the rest is a text for two fixed tokenizers, whose round trip must be exact and
// whose plain mode must give no marker.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "tests/fuzz/fuzz.h"
#include "text/tokenizer.h"

// All 256 bytes have a token; Split with the pattern of Qwen 2, as real ones have it.
static struct tokenizer *fixed_bpe(void)
{
    struct buf b = {0};
    struct error err;
    struct tokenizer *t = NULL;
    buf_puts(&b, "{\"added_tokens\":[{\"id\":300,\"content\":\"<|x|>\",\"special\":true},{\"id\":301,"
                 "\"content\":\"<y>\",\"lstrip\":"
                 "true,\"rstrip\":true}],\"model\":{\"type\":\"BPE\",\"vocab\":{");
    int next = 256;
    for (int i = 0; i < 256; i++) {
        bool itself = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        buf_printf(&b, "\"\\u%04x\":%d,", (unsigned)(itself ? i : next++), i);
    }
    buf_puts(&b, "\"th\":256,\"\\u0120t\":257,\"he\":258,\"aa\":259,\"aaaa\":260},\"merges\":[\"t "
                 "h\",\"\\u0120 t\",\"h e\",\"a a\","
                 "\"aa "
                 "aa\"]},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
                 "\"behavior\":\"Isolated\","
                 "\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{"
                 "L}+|\\\\p{N}| "
                 "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}},{"
                 "\"type\":\"ByteLevel\","
                 "\"add_prefix_space\":false,\"use_regex\":false}]}}");
    if (tokenizer_open_json(b.data, b.len, "fixed", &t, &err))
        abort();
    buf_done(&b);
    return t;
}

static void check_text(const struct tokenizer *t, const char *text, size_t n)
{
    struct error err;
    struct buf want = {0}, back = {0}, stream = {0};
    struct tokens plain = {0}, marked = {0};
    if (tokenizer_is_bytes(t))
        buf_append(&want, text, n);
    else
        utf8_repair(&want, text, n);
    if (tokenizer_encode(t, text, n, TOKENIZER_PLAIN, 1, &plain, &err) == STATUS_OK) {
        for (size_t i = 0; i < plain.n; i++)
            if (tokenizer_is_marker(t, plain.ids[i]))
                abort();
        tokenizer_decode(t, plain.ids, plain.n, false, &back);
        if (back.len != want.len || (back.len && memcmp(back.data, want.data, back.len) != 0))
            abort();
        struct detokenizer d;
        detokenizer_init(&d, t, false);
        for (size_t i = 0; i < plain.n; i++)
            detokenizer_push(&d, plain.ids[i], &stream);
        detokenizer_finish(&d, &stream);
        buf_clear(&back);
        utf8_repair(&back, want.data ? want.data : "", want.len);
        if (back.len != stream.len || (back.len && memcmp(back.data, stream.data, back.len) != 0))
            abort();
    }
    if (tokenizer_encode(t, text, n, TOKENIZER_MARKERS, 0, &marked, &err) == STATUS_OK)
        for (size_t i = 0; i < marked.n; i++)
            if (marked.ids[i] < 0 || marked.ids[i] >= tokenizer_vocab_size(t))
                abort();
    buf_done(&want);
    buf_done(&back);
    buf_done(&stream);
    tokens_done(&plain);
    tokens_done(&marked);
}

static void check_document(const char *json, size_t n)
{
    struct error err;
    struct tokenizer *t = NULL;
    struct tokens ids = {0};
    struct buf back = {0};
    if (tokenizer_open_json(json, n, "fuzz", &t, &err))
        return;
    static const char text[] = "the <s> cat's 12 \xF0\x9F\x98\x80 \n\n aa<EOS>e\xCC\x81";
    for (int mode = TOKENIZER_PLAIN; mode <= TOKENIZER_MARKERS; mode++)
        if (tokenizer_encode(t, text, sizeof text - 1, (enum tokenizer_mode)mode, 0, &ids, &err) == STATUS_OK)
            tokenizer_decode(t, ids.ids, ids.n, true, &back);
    buf_done(&back);
    tokens_done(&ids);
    tokenizer_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *bpe, *bytes; // live as long as the process
    struct error err;
    if (!bpe) {
        bpe = fixed_bpe();
        if (tokenizer_open_bytes(tokenizer_tiny_specials, tokenizer_n_tiny_specials, &bytes, &err))
            abort();
    }
    if (size == 0)
        return 0;
    if (data[0] == '{' || data[0] == '[') {
        check_document((const char *)data, size);
    } else {
        check_text(bpe, (const char *)data + 1, size - 1);
        check_text(bytes, (const char *)data + 1, size - 1);
    }
    return 0;
}
