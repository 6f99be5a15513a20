// `ooze status`: a compact table with sparklines, refreshed with --watch, or the JSON object of the orchestrator. When no orchestrator
// answers, what the ledger says.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/command.h"
#include "cli/table.h"
#include "ledger/reader.h"
#include "net/loop.h"

static const char usage[] =
    "usage: ooze status [--json] [--watch] RUN\n\n"
    "  --json    one JSON object: run, state, stage, step, weights_version, uptime_s, reward, groups, "
    "tokens, lag,\n"
    "            throughput, parity, processes, last_error\n"
    "  --watch   refresh every second until Ctrl-C\n\n"
    "Exit codes: 0 the run answered or its ledger was read, 1 neither, 2 wrong usage.\n";

static json_t *parity_from_ledger(const struct ledger_parity_totals *t)
{
    double coverage = t->tokens_trained > 0 ? (double)t->tokens / (double)t->tokens_trained : 0;
    return json_pack("{s:s, s:f, s:f, s:I, s:I, s:I, s:I, s:I}", "state", t->failed ? "failed" : "idle",
                     "max_abs_diff", t->max_abs_diff, "coverage", coverage, "trajectories",
                     (json_int_t)t->segments, "refit_crossings", (json_int_t)t->crossing, "skipped",
                     (json_int_t)t->skipped, "checks", (json_int_t)t->checks, "probes",
                     (json_int_t)t->probes);
}

// The same object as the orchestrator's, from the ledger alone.
static enum status status_from_ledger(const char *run_dir, json_t **ret, struct error *err)
{
    struct ledger *l;
    struct ledger_state s;
    struct ledger_counts c;
    struct ledger_parity_totals parity;
    json_t *rewards = NULL, *dropped = NULL;
    char *state = NULL;
    struct error none;
    enum status rc = ledger_open_readonly(run_dir, &l, err);
    if (rc)
        return rc;
    if ((rc = ledger_state_read(l, &s, err)) || (rc = ledger_counts_read(l, &c, err)) ||
        (rc = ledger_rewards(l, 2000, &rewards, err)) || (rc = ledger_parity_totals_read(l, &parity, err)))
        goto out;
    bool known = !ledger_meta_get(l, "state", &state, &none);
    bool over = known && (!strcmp(state, "done") || !strcmp(state, "stopped"));
    dropped = json_object();
    for (int r = 1; r < DROP_REASON_COUNT; r++)
        if (c.dropped[r])
            json_object_set_new(dropped, drop_reason_name((enum drop_reason)r), json_integer(c.dropped[r]));
    json_t *groups = json_object();
    for (int i = 0; i < UNIT_DROPPED; i++)
        json_object_set_new(groups, unit_state_name((enum unit_state)i), json_integer(c.units[i]));
    json_object_set(groups, "dropped", dropped);
    *ret = json_pack("{s:s, s:s, s:n, s:I, s:I, s:n, s:o, s:o, s:{s:I, s:I, s:I}, s:n, s:n, s:[], s:n}",
                     "run", run_dir, "state", over ? state : "not running", "stage", "step",
                     (json_int_t)s.committed_steps, "weights_version", (json_int_t)s.version, "uptime_s",
                     "reward", rewards, "groups", groups, "tokens", "generated",
                     (json_int_t)c.tokens_generated, "trained", (json_int_t)c.tokens_trained, "dropped",
                     (json_int_t)c.tokens_dropped, "lag", "throughput", "processes", "last_error");
    rewards = NULL;
    json_object_set_new(*ret, "parity", parity_from_ledger(&parity));
out:
    json_decref(rewards);
    json_decref(dropped);
    free(state);
    ledger_close(l);
    return rc;
}

static double num(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static const char *str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "-";
}

static void print_processes(const json_t *list)
{
    size_t i;
    json_t *p;
    if (!json_array_size(list))
        return;
    printf("\n  %-16s %8s  %-12s %8s %10s\n", "process", "pid", "state", "restarts", "heard from");
    json_array_foreach(list, i, p)
        printf("  %-16s %8.0f  %-12s %8.0f %8.1f s\n", str(p, "name"), num(p, "pid"), str(p, "state"),
               num(p, "restarts"), num(p, "heartbeat_age_s"));
}

static void print_status(const json_t *j)
{
    const char *key;
    json_t *v;
    char spark[256];
    printf("run %s   state %s   stage %s   step %.0f   weights version %.0f   up %.0f s\n", str(j, "run"),
           str(j, "state"), str(j, "stage"), num(j, "step"), num(j, "weights_version"), num(j, "uptime_s"));
    json_t *reward = json_object_get(j, "reward"), *groups = json_object_get(j, "groups"),
           *tokens = json_object_get(j, "tokens");
    printf("\n  %-16s %8s %8s  %s\n", "task", "mean", "last", "reward over time");
    json_object_foreach(reward, key, v)
    {
        table_spark(json_object_get(v, "series"), 40, spark, sizeof spark);
        printf("  %-16s %8.3f %8.3f  %s\n", key, num(v, "mean"), num(v, "last"), spark);
    }
    printf("\n  trajectories   ");
    json_object_foreach(groups, key, v) if (!json_is_object(v))
        printf("%s %.0f   ", key, json_number_value(v));
    json_object_foreach(json_object_get(groups, "dropped"), key, v)
        printf("dropped %s %.0f   ", key, json_number_value(v));
    printf("\n  tokens         generated %.0f   trained %.0f   dropped %.0f\n", num(tokens, "generated"),
           num(tokens, "trained"), num(tokens, "dropped"));
    const json_t *lag = json_object_get(j, "lag"), *speed = json_object_get(j, "throughput");
    if (json_is_object(lag))
        printf("  lag            mean %.2f   max %.0f steps\n", num(lag, "mean"), num(lag, "max"));
    if (json_is_object(speed))
        printf("  throughput     generate %.0f tok/s   train %.0f tok/s\n", num(speed, "generate_tok_s"),
               num(speed, "train_tok_s"));
    const json_t *parity = json_object_get(j, "parity");
    if (num(parity, "checks") + num(parity, "probes") > 0)
        printf("  parity         largest difference %.9g   coverage %.1f%%   trajectories %.0f   across a "
               "refit %.0f   "
               "skipped %.0f\n",
               num(parity, "max_abs_diff"), 100 * num(parity, "coverage"), num(parity, "trajectories"),
               num(parity, "refit_crossings"), num(parity, "skipped"));
    json_object_foreach(json_object_get(j, "series"), key, v)
    {
        table_spark(v, 40, spark, sizeof spark);
        printf("  %-14s %s\n", key, spark);
    }
    print_processes(json_object_get(j, "processes"));
    if (json_is_string(json_object_get(j, "last_error")) && str(j, "last_error")[0])
        printf("\n  last error: %s\n", str(j, "last_error"));
}

struct watch {
    const char *run_dir;
    bool json;
    struct loop *loop;
    int code;
};

static enum status status_once(const char *run_dir, bool json, struct error *err)
{
    json_t *j = NULL;
    enum status rc = run_owner(run_dir) ? query_run(run_dir, "status", NULL, 3000, &j, err) : STATUS_PEER;
    if (rc) {
        struct error why = *err;
        if ((rc = status_from_ledger(run_dir, &j, err)))
            return rc;
        if (run_owner(run_dir))
            json_object_set_new(j, "last_error", json_string(why.text));
    }
    if (json) {
        char *text = json_text(j);
        printf("%s\n", text);
        free(text);
    } else {
        print_status(j);
    }
    fflush(stdout);
    json_decref(j);
    return STATUS_OK;
}

static void watch_tick(void *ctx)
{
    struct watch *w = ctx;
    struct error err = {0};
    if (!w->json)
        printf("\033[H\033[2J");
    if (status_once(w->run_dir, w->json, &err)) {
        w->code = command_fail("status", &err);
        loop_stop(w->loop);
    }
}

static void watch_end(void *ctx, int signum)
{
    struct watch *w = ctx;
    (void)signum;
    loop_stop(w->loop);
}

int command_status(int argc, char **argv)
{
    bool json = false, watch = false;
    const struct option_spec specs[] = {{"json", NULL, &json}, {"watch", NULL, &watch}, {0}};
    struct error err = {0};
    struct run_config *c;
    int n, rc = options_parse("status", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    if (n != 1) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    if (run_load(argv[0], &c, &err))
        return command_fail("status", &err);
    free(c);
    if (!watch)
        return status_once(argv[0], json, &err) ? command_fail("status", &err) : EXIT_DONE;
    struct watch w = {.run_dir = argv[0], .json = json};
    struct loop_signal *sig = NULL;
    struct loop_timer *t = NULL;
    if (loop_open(&w.loop, &err) || loop_signal_open(w.loop, SIGINT, watch_end, &w, &sig, &err)) {
        w.code = command_fail("status", &err);
    } else {
        t = loop_timer_open(w.loop, watch_tick, &w);
        loop_timer_set(t, 0, 1000);
        loop_run(w.loop);
    }
    loop_timer_close(t);
    loop_signal_close(sig);
    loop_close(w.loop);
    return w.code;
}
