// Must-show: token ids equal Hugging Face's over 2 MB of mixed text, for six families of byte-level BPE, with
// markers and without, and the round trip is exact. Expected hashes and tokenizers:
// tests/golden/make_text.py.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "tests/unit/text/text_gen.h"
#include "text/tokenizer.h"

static struct text_gen gen;
static char *golden; // ids.bin
static size_t n_golden;
static const uint8_t *text_digest; // into golden
static const uint8_t *families;
static uint32_t n_chunks, n_families;
static struct buf whole;
static size_t *chunk_at; // n_chunks + 1 offsets into whole

static const char *golden_path(const char *name)
{
    static char path[4096];
    const char *root = getenv("OOZE_SOURCE_DIR");
    snprintf(path, sizeof path, "%s/tests/golden/%s", root ? root : ".", name);
    return path;
}

static uint32_t read_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static void load_seeds(void)
{
    struct error err;
    char *text;
    size_t n;
    assert_int_equal(file_read(golden_path("text_seeds.txt"), 1 << 20, &text, &n, &err), STATUS_OK);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        assert_true(gen.n_seeds < 64);
        size_t len = strlen(line);
        uint32_t *cps = malloc(len * sizeof *cps), k = 0;
        for (size_t i = 0; i < len;)
            i += utf8_decode(line + i, len - i, &cps[k++]);
        gen.seeds[gen.n_seeds] = cps;
        gen.n_seed[gen.n_seeds++] = k;
    }
    free(text);
}

// The first 8 bytes of SHA-256, as in make_text.py.
static void digest(const void *p, size_t n, uint8_t ret[8])
{
    char hex[HASH_HEX];
    hash_sha256_hex(p, n, hex);
    for (int i = 0; i < 8; i++) {
        char two[3] = {hex[2 * i], hex[2 * i + 1], 0};
        ret[i] = (uint8_t)strtoul(two, NULL, 16);
    }
}

static int setup(void **state)
{
    (void)state;
    struct error err;
    load_seeds();
    assert_int_equal(file_read(golden_path("text/ids.bin"), 8 << 20, &golden, &n_golden, &err), STATUS_OK);
    const uint8_t *p = (const uint8_t *)golden;
    assert_memory_equal(p, "OOZETXT1", 8);
    gen.n_ranges = read_u32(p + 8);
    uint32_t *ranges = malloc(gen.n_ranges * 8);
    memcpy(ranges, p + 12, gen.n_ranges * 8);
    gen.ranges = ranges;
    text_digest = p + 12 + gen.n_ranges * 8;
    n_chunks = read_u32(text_digest + 8);
    n_families = read_u32(text_digest + 12);
    families = text_digest + 16;
    chunk_at = calloc(n_chunks + 1, sizeof *chunk_at);
    for (uint32_t i = 0; i < n_chunks; i++) {
        text_gen_chunk(&gen, i, &whole);
        chunk_at[i + 1] = whole.len;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < gen.n_seeds; i++)
        free(gen.seeds[i]);
    free((void *)gen.ranges);
    free(chunk_at);
    free(golden);
    buf_done(&whole);
    return 0;
}

// Both generators make the same bytes, else nothing below means anything.
static void test_text_is_the_same(void **state)
{
    (void)state;
    uint8_t d[8];
    digest(whole.data, whole.len, d);
    assert_memory_equal(d, text_digest, 8);
    assert_true(whole.len >= 2u << 20);
}

static bool ids_match(const struct tokens *ids, const uint8_t *want)
{
    uint8_t d[8];
    digest(ids->ids, ids->n * sizeof *ids->ids, d);
    return memcmp(d, want, 8) == 0;
}

static void test_ids_equal_hugging_face(void **state)
{
    (void)state;
    struct error err;
    struct tokens ids = {0};
    assert_true(n_families >= 3);
    size_t stride = 16 + (size_t)n_chunks * 16 + 8;
    for (uint32_t f = 0; f < n_families; f++) {
        const uint8_t *family = families + f * stride;
        char name[32];
        snprintf(name, sizeof name, "text/%.16s.json", (const char *)family);
        struct tokenizer *t = NULL;
        enum status st = tokenizer_open(golden_path(name), &t, &err);
        if (st)
            fail_msg("%s", err.text);
        uint32_t n_bad = 0, first_bad = UINT32_MAX;
        for (uint32_t i = 0; i < n_chunks; i++) {
            const char *text = whole.data + chunk_at[i];
            size_t n = chunk_at[i + 1] - chunk_at[i];
            for (int plain = 0; plain < 2; plain++) {
                tokens_clear(&ids);
                assert_int_equal(
                    tokenizer_encode(t, text, n, plain ? TOKENIZER_PLAIN : TOKENIZER_MARKERS, 0, &ids, &err),
                    STATUS_OK);
                if (!ids_match(&ids, family + 16 + i * 16 + (size_t)plain * 8)) {
                    n_bad++;
                    if (first_bad == UINT32_MAX)
                        first_bad = i;
                }
            }
        }
        tokens_clear(&ids);
        int64_t start = clock_mono_ns(clock_system());
        assert_int_equal(tokenizer_encode(t, whole.data, whole.len, TOKENIZER_MARKERS, 0, &ids, &err),
                         STATUS_OK);
        double s = (double)(clock_mono_ns(clock_system()) - start) * 1e-9;
        bool whole_ok = ids_match(&ids, family + 16 + (size_t)n_chunks * 16);
        print_message("%-16s %zu bytes, %zu ids, %.1f MB/s, chunks that differ: %u%s\n", name, whole.len,
                      ids.n, (double)whole.len / s * 1e-6, n_bad, whole_ok ? "" : ", whole text differs");
        tokenizer_close(t);
        if (n_bad || !whole_ok)
            fail_msg("%s: chunk %u is the first that differs", name, first_bad);
    }
    tokens_done(&ids);
}

// Decoding gives the text again, byte for byte, where nothing is normalised or stripped.
static void test_round_trip(void **state)
{
    (void)state;
    static const char *const names[] = {"text/smollm.json", "text/llama3.json", "text/glm.json",
                                        "text/o200k.json"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        struct error err;
        struct tokenizer *t = NULL;
        assert_int_equal(tokenizer_open(golden_path(names[k]), &t, &err), STATUS_OK);
        assert_int_equal(tokenizer_missing_bytes(t), 0);
        for (int plain = 0; plain < 2; plain++) {
            struct tokens ids = {0};
            struct buf back = {0};
            assert_int_equal(tokenizer_encode(t, whole.data, whole.len,
                                              plain ? TOKENIZER_PLAIN : TOKENIZER_MARKERS, 1, &ids, &err),
                             STATUS_OK);
            for (size_t i = 0; plain && i < ids.n; i++)
                assert_false(tokenizer_is_marker(t, ids.ids[i]));
            tokenizer_decode(t, ids.ids, ids.n, false, &back);
            assert_int_equal(back.len, whole.len);
            assert_memory_equal(back.data, whole.data, whole.len);
            struct detokenizer d;
            struct buf stream = {0};
            detokenizer_init(&d, t, false);
            for (size_t i = 0; i < ids.n; i++) {
                size_t before = stream.len;
                detokenizer_push(&d, ids.ids[i], &stream);
                if (utf8_valid_prefix(stream.data + before, stream.len - before) != stream.len - before)
                    fail_msg("half a character left at token %zu", i);
            }
            detokenizer_finish(&d, &stream);
            assert_int_equal(stream.len, whole.len);
            assert_memory_equal(stream.data, whole.data, whole.len);
            buf_done(&stream);
            buf_done(&back);
            tokens_done(&ids);
        }
        tokenizer_close(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_is_the_same),
        cmocka_unit_test(test_ids_equal_hugging_face),
        cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
