// `ooze show`: what the ledger holds of a trajectory, token by token.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/file.h"
#include "cli/command.h"
#include "ledger/reader.h"
#include "text/tokenizer.h"

static const char usage[] =
    "usage: ooze show [--jsonl] [--limit N] RUN [trajectory ID [ATTEMPT] | parity]\n\n"
    "Without a trajectory: the newest ones, a line each (--limit, default 20). With "
    "one: every token with its id, text, log-probability,\n"
    "weights version, mask and the trajectory's advantage, and the task's replies in "
    "between. ATTEMPT defaults to the last. parity: the newest parity checks, a line each, "
    "and what the failed ones found.\n\n"
    "  --jsonl   one JSON object a line: trajectories, or tokens of one\n\n"
    "Exit codes: 0 shown, 1 not there, 2 wrong usage.\n";

static int print_jsonl(json_t *list)
{
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        char *text = json_text(v);
        printf("%s\n", text);
        free(text);
    }
    return EXIT_DONE;
}

static void print_units(const json_t *list)
{
    size_t i;
    json_t *v;
    printf("%10s %3s %-11s %-16s %-12s %8s %9s %6s %6s %7s %9s\n", "trajectory", "try", "state", "reason",
           "task", "reward", "advantage", "step", "turns", "tokens", "versions");
    json_array_foreach(list, i, v)
    {
        const char *task = json_string_value(json_object_get(v, "task"));
        printf("%10lld %3lld %-11s %-16s %-12s %8.3f %9.3f %6lld %6lld %7lld %4lld-%lld\n",
               (long long)json_integer_value(json_object_get(v, "trajectory")),
               (long long)json_integer_value(json_object_get(v, "attempt")),
               json_string_value(json_object_get(v, "state")),
               json_string_value(json_object_get(v, "reason")), task ? task : "-",
               json_number_value(json_object_get(v, "reward")),
               json_number_value(json_object_get(v, "advantage")),
               json_is_null(json_object_get(v, "step"))
                   ? -1LL
                   : (long long)json_integer_value(json_object_get(v, "step")),
               (long long)json_integer_value(json_object_get(v, "n_turns")),
               (long long)json_integer_value(json_object_get(v, "n_tokens")),
               (long long)json_integer_value(json_object_get(v, "version_min")),
               (long long)json_integer_value(json_object_get(v, "version_max")));
    }
}

// A number, or - where the ledger has none.
static const char *number(const json_t *o, const char *key, const char *format, char ret[32])
{
    const json_t *v = json_object_get(o, key);
    if (json_is_number(v))
        snprintf(ret, 32, format, json_number_value(v));
    else
        snprintf(ret, 32, "-");
    return ret;
}

static void print_parity(const json_t *list)
{
    size_t i;
    json_t *v;
    char a[32], b[32];
    printf("%-7s %6s %8s %-12s %12s %8s %8s %8s %6s %13s %8s %s\n", "kind", "step", "version", "engine",
           "trajectories", "crossing", "skipped", "tokens", "ops", "max_abs_diff", "gate", "ok");
    json_array_foreach(list, i, v)
    {
        const char *peer = json_string_value(json_object_get(v, "peer"));
        printf("%-7s %6.0f %8s %-12s %12.0f %8.0f %8.0f %8.0f %6.0f %13s %8g %s\n",
               json_string_value(json_object_get(v, "kind")), json_number_value(json_object_get(v, "step")),
               number(v, "version", "%.0f", a), peer && *peer ? peer : "-",
               json_number_value(json_object_get(v, "segments")),
               json_number_value(json_object_get(v, "crossing")),
               json_number_value(json_object_get(v, "skipped")),
               json_number_value(json_object_get(v, "tokens")), json_number_value(json_object_get(v, "ops")),
               number(v, "max_abs_diff", "%.9g", b), json_number_value(json_object_get(v, "gate")),
               json_is_true(json_object_get(v, "ok")) ? "yes" : "NO");
        if (json_is_number(json_object_get(v, "trajectory")))
            printf("        trajectory %.0f attempt %.0f segment %.0f token %.0f: recorded %.9g, scored "
                   "again %.9g\n",
                   json_number_value(json_object_get(v, "trajectory")),
                   json_number_value(json_object_get(v, "attempt")),
                   json_number_value(json_object_get(v, "segment")),
                   json_number_value(json_object_get(v, "position")),
                   json_number_value(json_object_get(v, "recorded")),
                   json_number_value(json_object_get(v, "rescored")));
        if (json_string_length(json_object_get(v, "detail")))
            printf("        %s\n", json_string_value(json_object_get(v, "detail")));
    }
}

// Adds "text" (and the unit's advantage) to every token.
static void add_text(json_t *unit, const struct tokenizer *t)
{
    size_t i, k;
    json_t *segment, *token;
    json_array_foreach(json_object_get(unit, "segments"), i, segment)
        json_array_foreach(json_object_get(segment, "tokens"), k, token)
    {
        int32_t id = (int32_t)json_integer_value(json_object_get(token, "id"));
        struct buf text = {0};
        tokenizer_decode(t, &id, 1, false, &text);
        struct buf quoted = {0};
        json_put_string(&quoted, text.data ? text.data : "", text.len);
        json_object_set_new(token, "text", json_loads(quoted.data, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL));
        json_object_set(token, "advantage", json_object_get(unit, "advantage"));
        json_object_set_new(token, "segment", json_integer((json_int_t)i));
        buf_done(&text);
        buf_done(&quoted);
    }
}

static void print_unit(json_t *unit)
{
    static const char *const head[] = {"trajectory", "attempt",      "state",   "reason",     "detail",
                                       "task",       "prompt_index", "reward",  "components", "advantage",
                                       "step",       "multiplicity", "n_turns", "n_tokens",   "n_sampled"};
    size_t i, k;
    json_t *segment, *token;
    for (i = 0; i < sizeof head / sizeof head[0]; i++) {
        json_t *v = json_object_get(unit, head[i]);
        if (!v || json_is_null(v))
            continue;
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        printf("%-13s %s\n", head[i], text ? text : "?");
        free(text);
    }
    json_array_foreach(json_object_get(unit, "segments"), i, segment)
    {
        printf("\nsegment %zu\n%6s %8s %4s %4s %10s %7s %6s  %s\n", i, "pos", "id", "turn", "mask", "logprob",
               "version", "adv", "text");
        json_array_foreach(json_object_get(segment, "tokens"), k, token)
        {
            char *text = json_dumps(json_object_get(token, "text"), JSON_ENCODE_ANY);
            printf("%6lld %8lld %4lld %4lld ", (long long)json_integer_value(json_object_get(token, "pos")),
                   (long long)json_integer_value(json_object_get(token, "id")),
                   (long long)json_integer_value(json_object_get(token, "turn")),
                   (long long)json_integer_value(json_object_get(token, "mask")));
            if (json_object_get(token, "logprob"))
                printf("%10.5f %7lld %6.2f", json_number_value(json_object_get(token, "logprob")),
                       (long long)json_integer_value(json_object_get(token, "version")),
                       json_number_value(json_object_get(token, "advantage")));
            else
                printf("%10s %7s %6s", "", "", "");
            printf("  %s\n", text ? text : "?");
            free(text);
        }
    }
    json_array_foreach(json_object_get(unit, "turns"), i, token)
    {
        char *text = json_text(json_object_get(token, "reply"));
        printf("\n%s %lld: %s", i ? "reply to turn" : "episode, turn",
               (long long)json_integer_value(json_object_get(token, "turn")), text);
        free(text);
    }
    printf("\n");
}

static int show_unit(struct ledger *l, const char *run_dir, int argc, char **argv, bool jsonl,
                     struct error *err)
{
    char *end1, *end2 = "", path[RUNCONFIG_PATH];
    struct tokenizer *t;
    json_t *unit = NULL;
    enum status rc = STATUS_NOTFOUND;
    long long id = strtoll(argv[2], &end1, 10), attempt = argc > 3 ? strtoll(argv[3], &end2, 10) : -1;
    if (*end1 || *end2) {
        fprintf(stderr, "ooze show: %s is not a number\n", *end1 ? argv[2] : argv[3]);
        return EXIT_USAGE;
    }
    if (attempt >= 0) {
        rc = ledger_show_unit(l, id, (int32_t)attempt, &unit, err);
    } else { // the last attempt
        json_t *next;
        struct error none;
        for (int32_t a = 0; !ledger_show_unit(l, id, a, &next, a ? &none : err); a++) {
            json_decref(unit);
            unit = next;
        }
        rc = unit ? STATUS_OK : STATUS_NOTFOUND;
    }
    if (rc)
        return command_fail("show", err);
    if (file_join(path, sizeof path, run_dir, "tokenizer", err) || tokenizer_open(path, &t, err)) {
        json_decref(unit);
        return command_fail("show", err);
    }
    add_text(unit, t);
    tokenizer_close(t);
    if (jsonl) {
        size_t i;
        json_t *segment;
        json_array_foreach(json_object_get(unit, "segments"), i, segment)
            print_jsonl(json_object_get(segment, "tokens"));
    } else {
        print_unit(unit);
    }
    json_decref(unit);
    return EXIT_DONE;
}

int command_show(int argc, char **argv)
{
    bool jsonl = false;
    const char *limit = "20";
    const struct option_spec specs[] = {{"jsonl", NULL, &jsonl}, {"limit", &limit, NULL}, {0}};
    struct error err;
    struct ledger *l;
    json_t *list;
    int n, rc = options_parse("show", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    int max = atoi(limit);
    bool parity = n == 2 && strcmp(argv[1], "parity") == 0;
    if (n < 1 || (n == 2 && !parity) || n > 4 || max < 1 || (n > 2 && strcmp(argv[1], "trajectory") != 0)) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    if (ledger_open_readonly(argv[0], &l, &err))
        return command_fail("show", &err);
    if (n > 2) {
        rc = show_unit(l, argv[0], n, argv, jsonl, &err);
    } else if (parity ? ledger_parity_list(l, max, &list, &err) : ledger_list_units(l, max, &list, &err)) {
        rc = command_fail("show", &err);
    } else {
        rc = EXIT_DONE;
        if (jsonl)
            print_jsonl(list);
        else if (parity)
            print_parity(list);
        else
            print_units(list);
        json_decref(list);
    }
    ledger_close(l);
    return rc;
}
