// `ooze audit`: the ledger's proof that every token is accounted for.
#include <stdio.h>
#include <stdlib.h>

#include "cli/command.h"
#include "ledger/reader.h"

static const char usage[] =
    "usage: ooze audit [--json] RUN\n\n"
    "Checks, against what is stored and without asking any process: issued = trained + dropped + in flight; "
    "every trajectory in at most\n"
    "one step; the token-in-token-out invariants of every stored trajectory; the lag bound token by token; "
    "the chain of steps; the hashes\n"
    "of weights files that are still there; the outcome of every parity check. Works on a running run "
    "too.\n\n"
    "  --json   {ok, violations:[…], issued, trained, dropped:{reason:n}, in_flight, max_lag_seen, …}\n\n"
    "Exit codes: 0 clean, 1 violations found or no ledger, 2 wrong usage.\n";

static void print_audit(const json_t *j)
{
    const char *key;
    json_t *v;
    size_t i;
    printf("issued %lld = trained %lld + dropped",
           (long long)json_integer_value(json_object_get(j, "issued")),
           (long long)json_integer_value(json_object_get(j, "trained")));
    json_int_t dropped = 0;
    json_object_foreach(json_object_get(j, "dropped"), key, v) dropped += json_integer_value(v);
    printf(" %lld + in flight %lld\n", (long long)dropped,
           (long long)json_integer_value(json_object_get(j, "in_flight")));
    json_object_foreach(json_object_get(j, "dropped"), key, v)
        printf("  dropped %-16s %lld\n", key, (long long)json_integer_value(v));
    printf("steps %lld   largest lag of a trained token %lld   weights files checked %lld\n",
           (long long)json_integer_value(json_object_get(j, "steps")),
           (long long)json_integer_value(json_object_get(j, "max_lag_seen")),
           (long long)json_integer_value(json_object_get(j, "weights_checked")));
    const json_t *parity = json_object_get(j, "parity");
    if (json_integer_value(json_object_get(parity, "checks")) +
        json_integer_value(json_object_get(parity, "probes")))
        printf(
            "parity: %lld trajectories scored again, %lld of them across a refit, %.1f%% of trained tokens; "
            "largest difference %.9g; %lld skipped; %lld probes of engines\n",
            (long long)json_integer_value(json_object_get(parity, "segments")),
            (long long)json_integer_value(json_object_get(parity, "refit_crossings")),
            100 * json_number_value(json_object_get(parity, "coverage")),
            json_number_value(json_object_get(parity, "max_abs_diff")),
            (long long)json_integer_value(json_object_get(parity, "skipped")),
            (long long)json_integer_value(json_object_get(parity, "probes")));
    json_array_foreach(json_object_get(j, "violations"), i, v)
    {
        printf("VIOLATION %s", json_string_value(json_object_get(v, "rule")));
        if (json_object_get(v, "trajectory"))
            printf(" trajectory %lld attempt %lld",
                   (long long)json_integer_value(json_object_get(v, "trajectory")),
                   (long long)json_integer_value(json_object_get(v, "attempt")));
        if (json_object_get(v, "step"))
            printf(" step %lld", (long long)json_integer_value(json_object_get(v, "step")));
        printf(": %s\n", json_string_value(json_object_get(v, "text")));
    }
    printf(json_is_true(json_object_get(j, "ok")) ? "clean\n" : "NOT CLEAN\n");
}

int command_audit(int argc, char **argv)
{
    bool json = false;
    const struct option_spec specs[] = {{"json", NULL, &json}, {0}};
    struct error err;
    struct run_config *c;
    struct ledger *l;
    json_t *j;
    int64_t max_lag[RUNCONFIG_STAGES];
    int n, rc = options_parse("audit", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    if (n != 1) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    if (run_load(argv[0], &c, &err))
        return command_fail("audit", &err);
    for (int64_t i = 0; i < c->n_stages; i++)
        max_lag[i] = c->stages[i].max_lag;
    int32_t n_stages = (int32_t)c->n_stages;
    free(c);
    if (ledger_open_readonly(argv[0], &l, &err))
        return command_fail("audit", &err);
    enum status s = ledger_audit(l, max_lag, n_stages, true, &j, &err);
    ledger_close(l);
    if (s)
        return command_fail("audit", &err);
    if (json) {
        char *text = json_text(j);
        printf("%s\n", text);
        free(text);
    } else {
        print_audit(j);
    }
    rc = json_is_true(json_object_get(j, "ok")) ? EXIT_DONE : EXIT_FAILED;
    json_decref(j);
    return rc;
}
