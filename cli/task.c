// `ooze task`: the agent tasks of a running run.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"

static const char usage[] = "usage: ooze task list [--json] RUN\n"
                            "       ooze task register [--ratio R] [--max-concurrency N] RUN NAME URL\n"
                            "       ooze task remove RUN NAME\n\n"
                            "A task is a microservice that speaks ooze-task/1 (docs/protocols.md). register "
                            "adds one to a run that is going on: its episodes\n"
                            "start with the next groups, in proportion R to the other tasks' ratios. remove "
                            "ends its episodes (dropped as task_removed, but\n"
                            "for those in a prepared step) and issues no more.\n\n"
                            "Exit codes: 0 done, 1 refused (the reason is on stderr), 2 wrong usage.\n";

static void print_tasks(const json_t *j)
{
    size_t i;
    json_t *t;
    printf("%-16s %8s %8s %9s %-10s %s\n", "task", "ratio", "running", "episodes", "state", "url");
    json_array_foreach(json_object_get(j, "tasks"), i, t)
    {
        const char *state = json_string_value(json_object_get(t, "state")),
                   *url = json_string_value(json_object_get(t, "url"));
        printf("%-16s %8.2f %8lld %9lld %-10s %s\n", json_string_value(json_object_get(t, "name")),
               json_number_value(json_object_get(t, "ratio")),
               (long long)json_integer_value(json_object_get(t, "running")),
               (long long)json_integer_value(json_object_get(t, "episodes")), state ? state : "-",
               url ? url : "-");
    }
}

int command_task(int argc, char **argv)
{
    bool json = false;
    const char *ratio = "1", *concurrency = NULL;
    const struct option_spec specs[] = {
        {"json", NULL, &json}, {"ratio", &ratio, NULL}, {"max-concurrency", &concurrency, NULL}, {0}};
    struct error err;
    json_t *args = NULL, *reply;
    const char *verb = NULL;
    char *end1, *end2 = "";
    int n, rc = options_parse("task", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    double r = strtod(ratio, &end1);
    long long limit = concurrency ? strtoll(concurrency, &end2, 10) : 0;
    if (n == 2 && !strcmp(argv[0], "list")) {
        verb = "task_list";
        args = json_object();
    } else if (n == 4 && !strcmp(argv[0], "register") && !*end1 && !*end2) {
        verb = "task_register";
        args = json_pack("{s:s, s:s, s:f}", "name", argv[2], "url", argv[3], "ratio", r);
        if (args && limit > 0)
            json_object_set_new(args, "max_concurrency", json_integer(limit));
    } else if (n == 3 && !strcmp(argv[0], "remove")) {
        verb = "task_remove";
        args = json_pack("{s:s}", "name", argv[2]);
    }
    if (!verb || !args) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    enum status s = query_run(argv[1], verb, args, 15000, &reply, &err);
    json_decref(args);
    if (s)
        return command_fail("task", &err);
    if (json || strcmp(verb, "task_list") != 0) {
        char *text = json_text(reply);
        printf("%s\n", text);
        free(text);
    } else {
        print_tasks(reply);
    }
    json_decref(reply);
    return EXIT_DONE;
}
