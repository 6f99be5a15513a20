// The command line of ooze-rollout: what is taken is looked at, what is not is named.
#include <fcntl.h>
#include <getopt.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
// cmocka wants four of the above first
#include <cmocka.h>

#include "rollout/options.h"

// Parses words divided by spaces; what goes to stderr ends up in `said`.
static char said[1024];
static int parse(const char *words, struct options *ret)
{
    static char text[1024]; // the options point into it
    char *argv[32] = {"ooze-rollout"};
    int argc = 1, pipes[2], saved = dup(STDERR_FILENO);
    snprintf(text, sizeof text, "%s", words);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    assert_int_equal(pipe(pipes), 0);
    fflush(stderr);
    dup2(pipes[1], STDERR_FILENO);
    close(pipes[1]);
    optind = 0; // from the start, and forget the last time
    int code = options_parse(argc, argv, ret);
    fflush(stderr);
    dup2(saved, STDERR_FILENO); // closes the pipe's last writer
    close(saved);
    ssize_t n = read(pipes[0], said, sizeof said - 1);
    said[n > 0 ? n : 0] = 0;
    close(pipes[0]);
    return code;
}

static void refused(const char *words, const char *names)
{
    struct options o;
    int code = parse(words, &o);
    if (code != 2 || !strstr(said, names) || !strchr(said, '\n') || strchr(said, '\n')[1])
        fail_msg("%s: %d, \"%s\" instead of one line with %s", words, code, said, names);
}

static void test_forms(void **state)
{
    (void)state;
    struct options o;
    assert_int_equal(parse("--run R --name engine-3 --restarts 4 -v", &o), -1);
    assert_int_equal(o.mode, OPTIONS_RUN);
    assert_string_equal(o.name, "engine-3");
    assert_int_equal(o.restarts, 4);
    assert_int_equal(parse("--connect tcp://h:1 --run R --name x -t 3", &o), -1);
    assert_int_equal(o.mode, OPTIONS_RUN);
    assert_int_equal(o.threads, 3);
    assert_int_equal(
        parse("-m D -d bf16 -p 80 --http-host h --port-file F --token-file T --name x -t 2 --isa ref "
              "--kv-tokens 64 --kv-dtype f32 --max-running 3 --max-batch-tokens 4 --prefill-chunk 5 "
              "--page-tokens 32",
              &o),
        -1);
    assert_int_equal(o.mode, OPTIONS_SERVE);
    assert_int_equal(o.dtype, DT_BF16);
    assert_int_equal(o.engine.prefill_chunk, 5);
    assert_int_equal(parse("-m D -g --kv-tokens 64 -t 1 --isa ref -d f32", &o), -1);
    assert_int_equal(o.mode, OPTIONS_GENERATE);
    assert_int_equal(parse("-m D -s", &o), -1);
    assert_int_equal(o.mode, OPTIONS_SCORE);
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const of_model[] = {
        "dtype f32",       "isa ref",       "http-port 1",  "http-host h",   "port-file f",
        "token-file f",    "kv-tokens 1",   "kv-dtype f32", "max-running 1", "max-batch-tokens 1",
        "prefill-chunk 1", "page-tokens 1", "generate",     "score"};
    for (size_t i = 0; i < sizeof of_model / sizeof of_model[0]; i++) {
        char words[128], name[64];
        snprintf(name, sizeof name, "--%.*s", (int)strcspn(of_model[i], " "), of_model[i]);
        snprintf(words, sizeof words, "--run R --%s", of_model[i]);
        refused(words, name);
        snprintf(words, sizeof words, "--connect tcp://h:1 --run R --name x --%s", of_model[i]);
        refused(words, name);
    }
    refused("--run R -t 3", "--threads"); // engines of one host share its cores as the run says
    refused("--model D --restarts 1", "--restarts");
    refused("--model D --connect tcp://h:1", "--connect");
    refused("--model D -g -s", "--score");
    refused("--model D -g -p 80", "--http-port");
    refused("--model D -s --token-file f", "--token-file");
    refused("--run R --model D", "--model");
    refused("-t 3", "--model");
    refused("--model D -t many", "many");
    refused("--model D --page-tokens 0", "0");
    refused("--connect tcp://h:1 --run R", "--name");
    refused("--model D more", "more");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forms), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests_name("rollout options", tests, NULL, NULL);
}
