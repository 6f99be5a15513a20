// Completions taken apart: each format, thinking, and what is malformed stays text and is said to be so.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text/toolcall.h"

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"calc\",\"parameters\":{\"type\":\"object\","
    "\"properties\":"
    "{\"expr\":{\"type\":\"string\"},\"n\":{\"type\":\"integer\"}},\"required\":[\"expr\"]}}}]";

static void check(enum toolcall_format format, const char *text, size_t n, const char *want,
                  const char *want_reason)
{
    struct error err;
    json_t *tools = NULL;
    assert_int_equal(json_parse(tools_text, sizeof tools_text - 1, "tools", &tools, &err), STATUS_OK);
    struct toolcall_parsed p;
    toolcall_parse(format, text, n, tools, "x", &p);
    char *got = json_text(p.message);
    assert_string_equal(got, want);
    assert_int_equal(p.malformed, want_reason != NULL);
    if (want_reason && !strstr(p.reason, want_reason))
        fail_msg("\"%s\" does not say \"%s\"", p.reason, want_reason);
    free(got);
    toolcall_parsed_done(&p);
    toolcall_parsed_done(&p);
    json_decref(tools);
}

#define CHECK(format, text, want, reason) check(format, text, sizeof(text) - 1, want, reason)
#define CALL(i, name, args)                                                                                  \
    "{\"id\":\"call_x_" i "\",\"type\":\"function\",\"function\":{\"name\":\"" name                          \
    "\",\"arguments\":\"" args "\"}}"

static void test_plain(void **state)
{
    (void)state;
    CHECK(TOOLCALL_NONE, "Hi <tool_call>", "{\"role\":\"assistant\",\"content\":\"Hi <tool_call>\"}", NULL);
    CHECK(TOOLCALL_HERMES, "", "{\"role\":\"assistant\",\"content\":\"\"}", NULL);
    CHECK(TOOLCALL_NONE, "a\xFF", "{\"role\":\"assistant\",\"content\":\"a\xEF\xBF\xBD\"}", NULL);
}

static void test_thinking(void **state)
{
    (void)state;
    CHECK(TOOLCALL_HERMES, "<think>\nhm\n</think>\n\nYes.",
          "{\"role\":\"assistant\",\"reasoning_content\":\"hm\",\"content\":\"Yes.\"}", NULL);
    CHECK(TOOLCALL_GLM, "hm</think>Yes.",
          "{\"role\":\"assistant\",\"reasoning_content\":\"hm\",\"content\":\"Yes.\"}", NULL);
    CHECK(TOOLCALL_HERMES, "<think>\n\n</think>\n\nYes.", "{\"role\":\"assistant\",\"content\":\"Yes.\"}",
          NULL);
    CHECK(TOOLCALL_HERMES, "<think>cut off",
          "{\"role\":\"assistant\",\"reasoning_content\":\"cut off\",\"content\":\"\"}", NULL);
    // A call inside thinking is a thought.
    CHECK(TOOLCALL_HERMES, "<think><tool_call>{}</tool_call></think>No.",
          "{\"role\":\"assistant\",\"reasoning_content\":\"<tool_call>{}</tool_call>\",\"content\":\"No.\"}",
          NULL);
}

static void test_hermes(void **state)
{
    (void)state;
    CHECK(TOOLCALL_HERMES,
          "<tool_call>\n{\"name\": \"calc\", \"arguments\": {\"expr\": \"1+1\"}}\n</tool_call>",
          "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[" CALL("0", "calc",
                                                                           "{\\\"expr\\\":\\\"1+1\\\"}") "]}",
          NULL);
    CHECK(TOOLCALL_HERMES,
          "Look.\n<tool_call>{\"name\":\"a\",\"arguments\":{}}</tool_call>\n<tool_call>{\"name\":\"b\"}</"
          "tool_call>",
          "{\"role\":\"assistant\",\"content\":\"Look.\",\"tool_calls\":[" CALL("0", "a", "{}") "," CALL(
              "1", "b", "{}") "]}",
          NULL);
    CHECK(TOOLCALL_HERMES, "<tool_call>{\"name\":\"a\",\"arguments\":\"{\\\"k\\\":1}\"}</tool_call>",
          "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[" CALL("0", "a", "{\\\"k\\\":1}") "]}",
          NULL);
}

static void test_hermes_malformed(void **state)
{
    (void)state;
    CHECK(TOOLCALL_HERMES,
          "x<tool_call>{\"name\":", "{\"role\":\"assistant\",\"content\":\"x<tool_call>{\\\"name\\\":\"}",
          "</tool_call> is missing");
    CHECK(TOOLCALL_HERMES, "<tool_call>{oops}</tool_call>",
          "{\"role\":\"assistant\",\"content\":\"<tool_call>{oops}</tool_call>\"}", "JSON");
    CHECK(TOOLCALL_HERMES, "<tool_call>{\"name\":7}</tool_call>",
          "{\"role\":\"assistant\",\"content\":\"<tool_call>{\\\"name\\\":7}</tool_call>\"}", "name");
    CHECK(TOOLCALL_HERMES, "<tool_call>{\"name\":\"a\",\"arguments\":[1]}</tool_call>",
          "{\"role\":\"assistant\",\"content\":\"<tool_call>{\\\"name\\\":\\\"a\\\",\\\"arguments\\\":[1]}</"
          "tool_call>\"}",
          "object");
    // One good call beside a bad one: the good one counts, the bad one is reported.
    CHECK(TOOLCALL_HERMES, "<tool_call>no</tool_call><tool_call>{\"name\":\"a\"}</tool_call>",
          "{\"role\":\"assistant\",\"content\":\"<tool_call>no</tool_call>\",\"tool_calls\":[" CALL(
              "0", "a", "{}") "]}",
          "JSON");
    CHECK(TOOLCALL_HERMES,
          "<tool_call>[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[</tool_call>",
          "{\"role\":\"assistant\",\"content\":\"<tool_call>[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
          "[[[[[[[[[[[[[[[[[[[[["
          "</tool_call>\"}",
          "deeper");
}

static void test_glm(void **state)
{
    (void)state;
    CHECK(TOOLCALL_GLM,
          "ok<tool_call>calc<arg_key>expr</arg_key><arg_value>12</arg_value><arg_key>n</"
          "arg_key><arg_value>3</arg_value>"
          "</tool_call>",
          "{\"role\":\"assistant\",\"content\":\"ok\",\"tool_calls\":[" CALL(
              "0", "calc", "{\\\"expr\\\":\\\"12\\\",\\\"n\\\":3}") "]}",
          NULL);
    CHECK(TOOLCALL_GLM,
          "<tool_call>\nother\n<arg_key>k</arg_key>\n<arg_value>not json</arg_value>\n</tool_call>",
          "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[" CALL(
              "0", "other", "{\\\"k\\\":\\\"not json\\\"}") "]}",
          NULL);
    CHECK(TOOLCALL_GLM, "<tool_call></tool_call>",
          "{\"role\":\"assistant\",\"content\":\"<tool_call></tool_call>\"}", "name");
    CHECK(TOOLCALL_GLM, "<tool_call>f<arg_key>k</arg_key></tool_call>",
          "{\"role\":\"assistant\",\"content\":\"<tool_call>f<arg_key>k</arg_key></tool_call>\"}",
          "no value");
    CHECK(TOOLCALL_GLM, "<tool_call>f<arg_key>k</arg_key><arg_value>1</arg_value>junk</tool_call>",
          "{\"role\":\"assistant\",\"content\":\"<tool_call>f<arg_key>k</arg_key><arg_value>1</"
          "arg_value>junk</tool_call>\"}",
          "junk");
    // A name that the reason cuts in the middle of a character.
#define LONG "01234567890123456789012345678901234567890123456789012345678"
    CHECK(TOOLCALL_GLM, "<tool_call>" LONG "\xC3\xA9<arg_key>k</arg_key></tool_call>",
          "{\"role\":\"assistant\",\"content\":\"<tool_call>" LONG
          "\xC3\xA9<arg_key>k</arg_key></tool_call>\"}",
          LONG "?: argument \"k\" has no value");
#undef LONG
}

static void test_tiny(void **state)
{
    (void)state;
    CHECK(TOOLCALL_TINY, "<CALL>1+2</CALL>",
          "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[" CALL("0", "calc",
                                                                           "{\\\"expr\\\":\\\"1+2\\\"}") "]}",
          NULL);
    CHECK(TOOLCALL_TINY, "<ANS>143", "{\"role\":\"assistant\",\"content\":\"143\"}", NULL);
    CHECK(TOOLCALL_TINY, "<CALL>1+", "{\"role\":\"assistant\",\"content\":\"<CALL>1+\"}",
          "</CALL> is missing");
}

static void test_too_many(void **state)
{
    (void)state;
    struct buf b = {0};
    for (int i = 0; i <= TOOLCALL_MAX; i++)
        buf_puts(&b, "<CALL>1</CALL>");
    struct toolcall_parsed p;
    toolcall_parse(TOOLCALL_TINY, b.data, b.len, NULL, "y", &p);
    assert_int_equal(p.n_calls, TOOLCALL_MAX);
    assert_true(p.malformed);
    toolcall_parsed_done(&p);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),    cmocka_unit_test(test_thinking),
        cmocka_unit_test(test_hermes),   cmocka_unit_test(test_hermes_malformed),
        cmocka_unit_test(test_glm),      cmocka_unit_test(test_tiny),
        cmocka_unit_test(test_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
