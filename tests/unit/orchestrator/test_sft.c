// Rows of supervised data: masks, limits, errors with file and line, and the order they are drawn in.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "orchestrator/sft.h"

static struct tokenizer *tokenizer;
static struct chat *chat;
static char path[64];

static int set_up(void **state)
{
    struct error err;
    (void)state;
    assert_int_equal(
        tokenizer_open_bytes(tokenizer_tiny_specials, tokenizer_n_tiny_specials, &tokenizer, &err),
        STATUS_OK);
    assert_int_equal(chat_open_template(NULL, "test", tokenizer, &chat, &err), STATUS_OK);
    snprintf(path, sizeof path, "/tmp/ooze-sft-%d.jsonl", (int)getpid());
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    chat_close(chat);
    tokenizer_close(tokenizer);
    return 0;
}

static enum status read_text(struct sft_data *d, const char *text, int64_t max_tokens, struct error *err)
{
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0600, err), STATUS_OK);
    *d = (struct sft_data){0};
    return sft_data_read(d, path, chat, max_tokens, err);
}

#define USER      "{\"role\":\"user\",\"content\":\"abc\"}"
#define ASSISTANT "{\"role\":\"assistant\",\"content\":\"xy\"}"
#define UNTRAINED "{\"role\":\"assistant\",\"content\":\"xy\",\"train\":false}"
#define ROW(m)    "{\"messages\":[" m "]}\n"

static int trained(const struct sft_data *d, int64_t row)
{
    int n = 0;
    for (int32_t i = 0; i < d->rows[row].n; i++)
        n += d->tokens.mask[d->rows[row].at + (size_t)i];
    return n;
}

static void test_masks(void **state)
{
    (void)state;
    struct sft_data d;
    struct error err;
    if (read_text(&d, ROW(USER "," ASSISTANT) "\n" ROW(USER "," UNTRAINED "," USER "," ASSISTANT), 100, &err))
        fail_msg("%s", err.text);
    assert_int_equal(d.n_rows, 2);       // the empty line is none
    assert_int_equal(trained(&d, 0), 3); // x, y and the end token
    assert_int_equal(trained(&d, 1), 3); // only the second answer
    assert_true(d.rows[1].n > d.rows[0].n);
    assert_int_equal(d.tokens.mask[d.rows[0].at], 0);
    sft_data_done(&d);
}

static void refused(const char *text, int64_t max_tokens, const char *where, const char *what)
{
    struct sft_data d;
    struct error err;
    char prefix[96];
    assert_int_not_equal(read_text(&d, text, max_tokens, &err), STATUS_OK);
    snprintf(prefix, sizeof prefix, "%s%s", path, where);
    if (strncmp(err.text, prefix, strlen(prefix)) != 0 || !strstr(err.text, what))
        fail_msg("error is: %s", err.text);
}

static void test_errors_name_the_line(void **state)
{
    (void)state;
    refused(ROW(USER "," ASSISTANT) "{\"messages\":\n", 100, ":2: ", "");
    refused(ROW(USER "," ASSISTANT) ROW(USER "," ASSISTANT), 5, ":1: ", "max_tokens");
    refused(ROW(USER "," ASSISTANT) "\n" ROW(USER), 100, ":3: ", "trained");
    refused(ROW(USER "," UNTRAINED), 100, ":1: ", "trained");
    refused("{\"messages\":[]}\n", 100, ":1: ", "messages");
    refused("{\"messages\":[{\"role\":\"robot\",\"content\":\"x\"}]}", 100, ":1: ", "");
    refused("\n\n", 100, ": ", "no rows");
}

// Every epoch holds every row once, in another order; the order is a function of the seed.
static void test_order(void **state)
{
    (void)state;
    enum { N = 37 };
    int64_t epoch, differ = 0;
    for (int64_t e = 0; e < 3; e++) {
        bool seen[N] = {false};
        for (int64_t i = 0; i < N; i++) {
            int64_t r = sft_row_at(9, 0, N, e * N + i, &epoch);
            assert_int_equal(epoch, e);
            assert_true(r >= 0 && r < N && !seen[r]);
            seen[r] = true;
            int64_t ignored;
            differ += r != sft_row_at(9, 0, N, (e + 1) * N + i, &ignored);
            assert_int_equal(r, sft_row_at(9, 0, N, e * N + i, &ignored));
        }
    }
    assert_true(differ > 3 * N / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_masks),
                                       cmocka_unit_test(test_errors_name_the_line),
                                       cmocka_unit_test(test_order)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
