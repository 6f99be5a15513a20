// Tokenizer: lookups, added-token rules, byte tokenizers, invalid UTF-8, streams, long words, and every refusal by name.
// That the ids are right is test_golden's matter.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/utf8.h"
#include "text/tokenizer.h"

static const char *golden_path(const char *name)
{
    static char path[4096];
    const char *root = getenv("OOZE_SOURCE_DIR");
    snprintf(path, sizeof path, "%s/tests/golden/text/%s", root ? root : ".", name);
    return path;
}

static struct tokenizer *open_golden(const char *name)
{
    struct error err;
    struct tokenizer *t = NULL;
    if (tokenizer_open(golden_path(name), &t, &err))
        fail_msg("%s", err.text);
    return t;
}

static struct tokenizer *open_text(const char *json)
{
    struct error err;
    struct tokenizer *t = NULL;
    if (tokenizer_open_json(json, strlen(json), "test.json", &t, &err))
        fail_msg("%s", err.text);
    return t;
}

// Encodes and writes the ids as "1 2 3".
static void expect_ids(const struct tokenizer *t, const char *text, size_t n, enum tokenizer_mode mode,
                       const char *want)
{
    struct error err;
    struct tokens ids = {0};
    struct buf b = {0};
    assert_int_equal(tokenizer_encode(t, text, n, mode, 0, &ids, &err), STATUS_OK);
    for (size_t i = 0; i < ids.n; i++)
        buf_printf(&b, "%s%d", i ? " " : "", ids.ids[i]);
    assert_string_equal(b.data ? b.data : "", want);
    buf_done(&b);
    tokens_done(&ids);
}

// A vocabulary of a few letters, with one merge.
#define BPE_HEAD                                                                                             \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"\\u0120\":4,\"<s>\":5},"     \
    "\"merges\":[\"a b\"]}"
#define BPE_TAIL ",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}}"

static void test_merges_and_missing_bytes(void **state)
{
    (void)state;
    struct tokenizer *t = open_text(BPE_HEAD BPE_TAIL);
    expect_ids(t, "aabb", 4, TOKENIZER_PLAIN, "0 3 1");
    expect_ids(t, "ab ab", 5, TOKENIZER_PLAIN, "3 4 3");
    expect_ids(t, "xabx", 4, TOKENIZER_PLAIN, "3"); // x has no token and there is no unknown token
    expect_ids(t, "", 0, TOKENIZER_PLAIN, "");
    assert_int_equal(tokenizer_missing_bytes(t), 252);
    assert_int_equal(tokenizer_vocab_size(t), 6);
    assert_int_equal(tokenizer_find(t, "ab", 2), 3);
    assert_int_equal(tokenizer_find(t, " ", 1), 4);
    assert_int_equal(tokenizer_find(t, "zz", 2), -1);
    size_t n;
    assert_memory_equal(tokenizer_piece(t, 4, &n), " ", 1);
    assert_null(tokenizer_piece(t, 6, &n));
    assert_null(tokenizer_piece(t, -1, &n));
    assert_int_equal(tokenizer_eos(t), -1);
    tokenizer_close(t);
}

static void test_added_tokens(void **state)
{
    (void)state;
    struct tokenizer *t =
        open_text(BPE_HEAD ",\"added_tokens\":[{\"id\":5,\"content\":\"<s>\",\"special\":true},"
                           "{\"id\":6,\"content\":\"<s>>\",\"lstrip\":true,\"normalized\":false},{\"id\":7,"
                           "\"content\":\"cab\",\"rstrip\":true},"
                           "{\"id\":8,\"content\":\"caa\",\"single_word\":true}]" BPE_TAIL);
    expect_ids(t, "a<s>b", 5, TOKENIZER_MARKERS, "0 5 1");
    expect_ids(t, "a<s>b", 5, TOKENIZER_PLAIN, "0 1");       // '<', 's', '>' have no token here
    expect_ids(t, "a <s>>b", 7, TOKENIZER_MARKERS, "0 6 1"); // longest first; lstrip takes the space
    expect_ids(t, "acab  b", 7, TOKENIZER_PLAIN, "0 7 1");   // rstrip takes both
    expect_ids(t, "a caa b", 7, TOKENIZER_PLAIN, "0 4 8 4 1");
    expect_ids(t, "acaa", 4, TOKENIZER_PLAIN, "0 2 0 0"); // inside a word
    assert_true(tokenizer_is_marker(t, 5));
    assert_true(tokenizer_is_marker(t, 6)); // not special, but of a marker's form
    assert_false(tokenizer_is_marker(t, 7));
    tokenizer_close(t);
}

static void test_bytes(void **state)
{
    (void)state;
    struct error err;
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_open_bytes(tokenizer_tiny_specials, tokenizer_n_tiny_specials, &t, &err),
                     STATUS_OK);
    assert_true(tokenizer_is_bytes(t));
    assert_int_equal(tokenizer_pad(t), 256);
    assert_int_equal(tokenizer_bos(t), 257);
    assert_int_equal(tokenizer_eos(t), 258);
    assert_int_equal(tokenizer_find(t, "</CALL>", 7), 260);
    assert_int_equal(tokenizer_find(t, "\xFF", 1), 255);
    expect_ids(t, "\xFF<EOS>\0", 7, TOKENIZER_MARKERS, "255 258 0");
    expect_ids(t, "<EOS>", 5, TOKENIZER_PLAIN, "60 69 79 83 62");
    char dir[] = "/tmp/ooze-tok-XXXXXX";
    assert_non_null(mkdtemp(dir));
    assert_int_equal(tokenizer_save(t, dir, &err), STATUS_OK);
    tokenizer_close(t);
    assert_int_equal(tokenizer_open(dir, &t, &err), STATUS_OK);
    assert_true(tokenizer_is_bytes(t));
    assert_int_equal(tokenizer_vocab_size(t), 264);
    assert_int_equal(tokenizer_eos(t), 258);
    tokenizer_close(t);
    assert_int_equal(file_remove_tree(dir, &err), STATUS_OK);
    const char *twice[] = {"EOS", "EOS"}, *odd[] = {"a b"};
    assert_int_equal(tokenizer_open_bytes(twice, 2, &t, &err), STATUS_INVALID);
    assert_int_equal(tokenizer_open_bytes(odd, 1, &t, &err), STATUS_INVALID);
}

static void test_companion_files(void **state)
{
    (void)state;
    struct error err;
    struct tokenizer *t = open_golden("qwen.json"), *again = NULL;
    char dir[] = "/tmp/ooze-tok-XXXXXX", path[128];
    assert_non_null(mkdtemp(dir));
    assert_int_equal(tokenizer_save(t, dir, &err), STATUS_OK);
    static const char config[] =
        "{\"eos_token\":{\"content\":\"<|im_end|>\"},\"pad_token\":\"<|endoftext|>\",\"bos_token\":null}";
    static const char generation[] = "{\"bos_token_id\":7,\"eos_token_id\":[1,2]}";
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    assert_int_equal(file_write_atomic(path, config, sizeof config - 1, 0600, &err), STATUS_OK);
    snprintf(path, sizeof path, "%s/generation_config.json", dir);
    assert_int_equal(file_write_atomic(path, generation, sizeof generation - 1, 0600, &err), STATUS_OK);
    assert_int_equal(tokenizer_open(dir, &again, &err), STATUS_OK);
    assert_int_equal(tokenizer_eos(again), tokenizer_find(t, "<|im_end|>", 10));
    assert_int_equal(tokenizer_pad(again), tokenizer_find(t, "<|endoftext|>", 13));
    assert_int_equal(tokenizer_bos(again), 7);
    tokenizer_close(again);
    tokenizer_close(t);
    assert_int_equal(file_remove_tree(dir, &err), STATUS_OK);
}

// Bytes that are no UTF-8 are read as utf8_repair writes them, whole and in streams.
static void test_invalid_utf8(void **state)
{
    (void)state;
    struct error err;
    struct tokenizer *t = open_golden("llama3.json");
    static const char bad[] = "ok \xFF\xC3(\xE2\x82\xF0\x9F\x98 end\xE2\x82";
    struct buf want = {0}, back = {0}, stream = {0};
    struct tokens ids = {0};
    utf8_repair(&want, bad, sizeof bad - 1);
    assert_int_equal(tokenizer_encode(t, bad, sizeof bad - 1, TOKENIZER_PLAIN, 0, &ids, &err), STATUS_OK);
    tokenizer_decode(t, ids.ids, ids.n, true, &back);
    assert_string_equal(back.data, want.data);
    struct detokenizer d; // the raw bytes as a model might sample them
    detokenizer_init(&d, t, false);
    for (size_t i = 0; i < sizeof bad - 1; i++)
        detokenizer_push(&d, tokenizer_find(t, bad + i, 1), &stream);
    detokenizer_finish(&d, &stream);
    assert_string_equal(stream.data, want.data);
    buf_done(&want);
    buf_done(&back);
    buf_done(&stream);
    tokens_done(&ids);
    tokenizer_close(t);
}

// Equal ranks merge from the left, in words of every length (short ones are scanned, long ones have a heap).
static void test_leftmost_first(void **state)
{
    (void)state;
    struct tokenizer *t =
        open_text("{\"model\":{\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\"a a\"]}" BPE_TAIL);
    for (size_t n = 3; n < 200; n += 2) {
        struct error err;
        struct tokens ids = {0};
        char text[200];
        memset(text, 'a', n);
        assert_int_equal(tokenizer_encode(t, text, n, TOKENIZER_PLAIN, 0, &ids, &err), STATUS_OK);
        assert_int_equal(ids.n, n / 2 + 1);
        for (size_t i = 0; i < ids.n; i++)
            assert_int_equal(ids.ids[i], i + 1 < ids.n);
        tokens_done(&ids);
    }
    tokenizer_close(t);
}

// A megabyte without a space is merged in n log n, not n².
static void test_long_words(void **state)
{
    (void)state;
    struct error err;
    struct tokenizer *t = open_golden("qwen.json");
    struct buf text = {0}, back = {0};
    for (int i = 0; i < 1 << 20; i++)
        buf_putc(&text, (char)('a' + (i * 7 + i / 31) % 26));
    struct tokens ids = {0};
    int64_t start = clock_mono_ms(clock_system());
    assert_int_equal(tokenizer_encode(t, text.data, text.len, TOKENIZER_PLAIN, 0, &ids, &err), STATUS_OK);
    assert_true(clock_mono_ms(clock_system()) - start < 20000);
    tokenizer_decode(t, ids.ids, ids.n, false, &back);
    assert_int_equal(back.len, text.len);
    assert_memory_equal(back.data, text.data, text.len);
    buf_done(&text);
    buf_done(&back);
    tokens_done(&ids);
    tokenizer_close(t);
}

static void test_behaviors(void **state)
{
    (void)state;
    static const struct {
        const char *behavior, *want;
    } cases[] = {
        // "a-b--c": which pieces a split at '-' makes shows in which merges "x-" and "-x" can happen
        {"Removed", "0 1 2"},          {"Isolated", "0 3 1 3 3 2"}, {"MergedWithPrevious", "4 5 3 2"},
        {"MergedWithNext", "0 6 3 7"}, {"Contiguous", "0 3 1 8 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[1024];
        snprintf(json, sizeof json,
                 "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"-\":3,\"a-\":4,\"b-\":5,"
                 "\"-b\":6,\"-c\":7,"
                 "\"--\":8},\"merges\":[\"a -\",\"b -\",\"- b\",\"- c\",\"- "
                 "-\"]},\"pre_tokenizer\":{\"type\":\"Sequence\","
                 "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"%s\","
                 "\"invert\":false},"
                 "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}}",
                 cases[i].behavior);
        struct tokenizer *t = open_text(json);
        expect_ids(t, "a-b--c", 6, TOKENIZER_PLAIN, cases[i].want);
        tokenizer_close(t);
    }
}

static void refuse(const char *json, enum status want, const char *expect)
{
    struct error err = {0};
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_open_json(json, strlen(json), "model/tokenizer.json", &t, &err), want);
    assert_null(t);
    if (!strstr(err.text, expect) || !strstr(err.text, "model/tokenizer.json"))
        fail_msg("\"%s\" does not name the file and \"%s\"", err.text, expect);
}

static void test_refusals(void **state)
{
    (void)state;
    refuse("{\"model\":", STATUS_INVALID, "1:");
    refuse("[]", STATUS_TYPE, "object");
    refuse("{\"type\":\"sentencepiece\"}", STATUS_UNSUPPORTED, "sentencepiece");
    refuse("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", STATUS_UNSUPPORTED, "Unigram");
    refuse("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", STATUS_UNSUPPORTED, "WordPiece");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[],\"byte_fallback\":true}}",
           STATUS_UNSUPPORTED, "byte_fallback");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[],\"dropout\":0.1}}", STATUS_UNSUPPORTED,
           "dropout");
    refuse(BPE_HEAD "}", STATUS_UNSUPPORTED, "pre_tokenizer");
    refuse(BPE_HEAD ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", STATUS_UNSUPPORTED, "Metaspace");
    refuse(BPE_HEAD ",\"normalizer\":{\"type\":\"Lowercase\"}" BPE_TAIL, STATUS_UNSUPPORTED, "Lowercase");
    refuse(BPE_HEAD ",\"added_tokens\":[{\"id\":4,\"content\":\"<s>\"}]" BPE_TAIL, STATUS_INVALID,
           "added_tokens[0]");
    refuse(BPE_HEAD ",\"added_tokens\":[{\"id\":900000000,\"content\":\"<t>\"}]" BPE_TAIL, STATUS_RANGE,
           "added_tokens[0]");
    refuse("{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}" BPE_TAIL, STATUS_INVALID, "taken");
    refuse("{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}" BPE_TAIL, STATUS_INVALID, "model.vocab");
    refuse("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}" BPE_TAIL, STATUS_INVALID,
           "model.merges[0]");
    refuse("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[7]}" BPE_TAIL, STATUS_INVALID, "model.merges[0]");
    refuse(BPE_HEAD ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
                    "\"pattern\":{\"Regex\":\"(\"},"
                    "\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\"}]}}",
           STATUS_UNSUPPORTED, "pattern");
    refuse("{\"type\":\"ooze-bytes\",\"specials\":[\"EOS\",7]}", STATUS_TYPE, "specials[1]");
    refuse("{\"type\":\"ooze-bytes\",\"specials\":[],\"extra\":1}", STATUS_INVALID, "extra");
    struct error err;
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_open("/nonexistent/model", &t, &err), STATUS_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges_and_missing_bytes),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_companion_files),
        cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_leftmost_first),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_behaviors),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
