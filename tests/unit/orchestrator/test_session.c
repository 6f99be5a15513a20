// Token in, token out: what a session holds turn by turn, and what it refuses. Byte tokenizer, chat family "tiny".
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "orchestrator/session.h"

enum { EOS = 258 };

static struct tokenizer *tokenizer;
static struct chat *chat;

static int set_up(void **state)
{
    struct error err;
    (void)state;
    assert_int_equal(
        tokenizer_open_bytes(tokenizer_tiny_specials, tokenizer_n_tiny_specials, &tokenizer, &err),
        STATUS_OK);
    assert_int_equal(chat_open_template(NULL, "test", tokenizer, &chat, &err), STATUS_OK);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    chat_close(chat);
    tokenizer_close(tokenizer);
    return 0;
}

static struct session open_session(const char *messages)
{
    struct session s;
    struct error err;
    json_t *j;
    assert_int_equal(json_parse(messages, strlen(messages), "test", &j, &err), STATUS_OK);
    if (session_open(&s, chat, j, NULL, &err))
        fail_msg("%s", err.text);
    json_decref(j);
    return s;
}

static const int32_t answer[] = {'h', 'i', EOS};
static const float logprobs[] = {-1, -0.5f, 0};

static void test_turns(void **state)
{
    (void)state;
    struct session s = open_session("[{\"role\":\"user\",\"content\":\"ab\"}]");
    struct error err;
    struct msg_span spans[] = {{3, 0, 1}, {4, 1, 3}};
    size_t prompt = s.tokens.n;
    assert_true(prompt >= 2 && s.turn_at == (int32_t)prompt && s.open_turn);
    assert_int_equal(session_sampled(&s, answer, logprobs, 3, spans, 2, &err), STATUS_OK);
    assert_int_equal(s.tokens.n, prompt + 3);
    assert_memory_equal(s.tokens.ids + prompt, answer, sizeof answer); // the very ids
    for (size_t i = 0; i < s.tokens.n; i++)
        assert_int_equal(s.tokens.mask[i], i >= prompt);
    assert_int_equal(s.version_min, 3);
    assert_int_equal(s.version_max, 4);
    assert_int_equal(s.n_sampled, 3);

    struct toolcall_parsed parsed;
    session_parse(&s, "1", &parsed);
    assert_string_equal(json_string_value(json_object_get(parsed.message, "content")), "hi");
    toolcall_parsed_done(&parsed);
    assert_int_equal(json_array_size(s.messages), 2);

    json_t *more = json_pack("[{s:s, s:s}]", "role", "user", "content", "c<EOS>");
    int32_t from;
    assert_int_equal(session_tail(&s, more, &from, &err), STATUS_OK);
    json_decref(more);
    assert_int_equal(from, (int32_t)prompt + 3);
    int n_eos = 0;
    for (size_t i = (size_t)from; i < s.tokens.n; i++) {
        assert_int_equal(s.tokens.mask[i], 0);
        n_eos += s.tokens.ids[i] == EOS;
    }
    assert_int_equal(n_eos, 0); // content forges no turn
    assert_int_equal(s.turn_at, (int32_t)s.tokens.n);
    // Prefix equality: what was held is untouched.
    assert_memory_equal(s.tokens.ids + prompt, answer, sizeof answer);
    session_close(&s);
}

// A turn cut off by its limit gets the end token with mask 0.
static void test_cut_turn(void **state)
{
    (void)state;
    struct session s = open_session("[{\"role\":\"user\",\"content\":\"ab\"}]");
    struct error err;
    struct msg_span span = {0, 0, 2};
    assert_int_equal(session_sampled(&s, answer, logprobs, 2, &span, 1, &err), STATUS_OK);
    struct toolcall_parsed parsed;
    session_parse(&s, "1", &parsed);
    toolcall_parsed_done(&parsed);
    json_t *more = json_pack("[{s:s, s:s}]", "role", "user", "content", "c");
    int32_t from;
    assert_int_equal(session_tail(&s, more, &from, &err), STATUS_OK);
    json_decref(more);
    assert_int_equal(s.tokens.ids[from], chat_close_id(chat));
    assert_int_equal(s.tokens.mask[from], 0);
    session_close(&s);
}

static void refused(const int32_t *ids, const float *lp, int32_t n, const struct msg_span *spans,
                    int32_t n_spans)
{
    struct session s = open_session("[{\"role\":\"user\",\"content\":\"ab\"}]");
    struct error err;
    size_t before = s.tokens.n;
    assert_int_equal(session_sampled(&s, ids, lp, n, spans, n_spans, &err), STATUS_INVALID);
    assert_int_equal(s.tokens.n, before);
    session_close(&s);
}

static void test_refusals(void **state)
{
    (void)state;
    const struct msg_span whole = {1, 0, 3}, gap[] = {{1, 0, 1}, {1, 2, 3}}, back[] = {{4, 0, 1}, {3, 1, 3}},
                          shorter = {1, 0, 2};
    const float nan_lp[] = {-1, NAN, -1}, positive[] = {-1, 0.5f, -1};
    const int32_t negative[] = {1, -1, 2};
    refused(answer, logprobs, 3, gap, 2);
    refused(answer, logprobs, 3, back, 2);
    refused(answer, logprobs, 3, &shorter, 1);
    refused(answer, nan_lp, 3, &whole, 1);
    refused(answer, positive, 3, &whole, 1);
    refused(negative, logprobs, 3, &whole, 1);
    refused(answer, logprobs, 0, &whole, 1);
    // Twice without being asked.
    struct session s = open_session("[{\"role\":\"user\",\"content\":\"ab\"}]");
    struct error err;
    assert_int_equal(session_sampled(&s, answer, logprobs, 3, &whole, 1, &err), STATUS_OK);
    assert_int_equal(session_sampled(&s, answer, logprobs, 3, &whole, 1, &err), STATUS_INVALID);
    session_close(&s);
}

static void test_bad_messages(void **state)
{
    (void)state;
    struct session s;
    struct error err;
    json_t *empty = json_array(), *bad = json_pack("[{s:s, s:i}]", "role", "user", "content", 3);
    assert_int_not_equal(session_open(&s, chat, NULL, NULL, &err), STATUS_OK);
    assert_int_not_equal(session_open(&s, chat, empty, NULL, &err), STATUS_OK);
    assert_int_not_equal(session_open(&s, chat, bad, NULL, &err), STATUS_OK);
    json_decref(empty);
    json_decref(bad);
}

// What the ledger gives back is what was there.
static void test_restore(void **state)
{
    (void)state;
    struct session a = open_session("[{\"role\":\"user\",\"content\":\"ab\"}]");
    struct session b = {.chat = chat, .version_min = -1, .version_max = -1, .messages = json_array()};
    struct error err;
    struct msg_span span = {2, 0, 3};
    int32_t n = (int32_t)a.tokens.n;
    assert_int_equal(session_restore(&b, 0, 0, a.tokens.ids, n, false, &err), STATUS_OK);
    assert_true(b.open_turn && b.turn_at == n);
    assert_int_equal(session_sampled(&a, answer, logprobs, 3, &span, 1, &err), STATUS_OK);
    assert_int_equal(session_restore(&b, 0, n, answer, 3, true, &err), STATUS_OK);
    assert_true(!b.open_turn && b.turn_at == n && b.n_sampled == 3);
    assert_int_equal(a.tokens.n, b.tokens.n);
    assert_memory_equal(a.tokens.ids, b.tokens.ids, a.tokens.n * 4);
    assert_memory_equal(a.tokens.mask, b.tokens.mask, a.tokens.n);
    assert_int_equal(session_restore(&b, 0, 0, answer, 3, false, &err),
                     STATUS_CORRUPT); // a hole or an overlap
    assert_int_equal(session_restore(&b, 2, 0, answer, 3, false, &err), STATUS_CORRUPT);
    session_close(&a);
    session_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_turns),        cmocka_unit_test(test_cut_turn), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_bad_messages), cmocka_unit_test(test_restore),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
