// `ooze bench`: the project's claims, measured here and now beside their peers or bounds; and `ooze bench profile`.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/bench_row.h"
#include "cli/command.h"

enum { EXIT_BELOW = 3 };

#define DEADLINE_MAX 86400

static const char usage[] =
    "usage: ooze bench NAME… [options]\n"
    "       ooze bench --all [options]\n"
    "       ooze bench profile [train|b1|b32] …\n\n"
    "Runs our program and its peer in turn and compares medians. `ratio` is higher-is-better.\n\n"
    "  --list          the rows, their goals and what runs\n"
    "  --all           every row\n"
    "  --json          one object a row on stdout instead of the table\n"
    "  --runs N        measured runs of each side (5)\n"
    "  --deadline S    seconds that one measured run may take (by row)\n"
    "  --isa CLASS,…   our highest kernel class: ref, avx2, avx512, avx512bf16, amx (auto); of several,\n"
    "                  each runs in every round, beside one run of the peer\n"
    "  --isa-runs K    the classes after the first take part in K rounds only\n"
    "  --threads N     of both sides (all cores)\n"
    "  --python P      Python that has the peers; else OOZE_BENCH_PYTHON, else that of tests/bench/setup.sh\n"
    "  --models DIR    models; else OOZE_BENCH_MODELS, else those of tests/bench/setup.sh\n"
    "  --quiet         no progress on stderr\n\n"
    "Interrupted (SIGINT, SIGTERM), or when a run fails or takes too long: the medians of the rounds "
    "completed so far.\n"
    "Exit codes: 0 all goals hold, 1 something could not be measured, 2 wrong usage, 3 a goal is missed.\n";

static void list_rows(void)
{
    for (size_t i = 0; i < bench_n_rows; i++) {
        const struct bench_row *r = &bench_rows[i];
        printf("%-17s %-8s ", r->name, r->unit);
        printf(r->goal > 0 ? ">= %-5g" : "shown   ", r->goal);
        printf(" %s\n%36sours: %s", r->claim, "", r->ours);
        printf(r->peer[0] ? "; peer: %s\n" : "; bound: %s\n", r->peer[0] ? r->peer : "in the same run");
    }
}

static const struct bench_row *find_row(const char *name)
{
    for (size_t i = 0; i < bench_n_rows; i++)
        if (!strcmp(bench_rows[i].name, name))
            return &bench_rows[i];
    return NULL;
}

// ---- where things are ------------------------------------------------------------------------------------------------

static void cache_path(const char *below, char *ret, size_t n)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && cache[0])
        snprintf(ret, n, "%s/ooze-bench/%s", cache, below);
    else
        snprintf(ret, n, "%s/.cache/ooze-bench/%s", home ? home : "", below);
}

struct places {
    char suite[1024], models[1024], python[1024];
};

static enum status find_places(struct places *p, const char *models, const char *python, struct error *err)
{
    const char *env = getenv("OOZE_BENCH_SUITE");
    enum status rc = STATUS_OK;
    if (env && env[0])
        snprintf(p->suite, sizeof p->suite, "%s", env);
    else if ((rc = program_path("../tests", p->suite, sizeof p->suite, err)))
        return rc;
    if (models || (models = getenv("OOZE_BENCH_MODELS")))
        snprintf(p->models, sizeof p->models, "%s", models);
    else
        cache_path("models", p->models, sizeof p->models);
    if (python || (python = getenv("OOZE_BENCH_PYTHON")))
        snprintf(p->python, sizeof p->python, "%s", python);
    else
        cache_path("venv/bin/python", p->python, sizeof p->python);
    return STATUS_OK;
}

// ---- output ------------------------------------------------------------------------------------------------------------

static void print_head(void)
{
    printf("%-17s %-10s %-8s %12s %12s %7s %6s  %-5s %s\n", "row", "class", "unit", "ours", "peer", "ratio",
           "goal", "", "beside");
}

static void print_number(double v)
{
    printf(v >= 1e7 ? " %12.4g" : v >= 100 ? " %12.0f" : " %12.4g", v);
}

static void print_result(const struct bench_result *r)
{
    const char *isa = json_string_value(json_object_get(r->ours.ready, "isa"));
    printf("%-17s %-10s %-8s", r->row->name, isa ? isa : "", r->row->unit);
    print_number(r->ours.median);
    print_number(r->other.median);
    printf(" %6.2fx %5.2fx  %-5s %s\n", r->ratio, r->goal,
           r->goal <= 0 ? "shown"
           : r->holds   ? "holds"
                        : "BELOW",
           r->other.name);
    if (!r->complete)
        printf("%26s of %d of the rounds only: %s\n", "", r->ours.runs, r->error.text);
    if (r->complete && r->other.runs && r->other.runs != r->ours.runs)
        printf("%26s of %d of our runs, %d of the peer\n", "", r->ours.runs, r->other.runs);
    printf("%26s %5.1f %% to %+.1f %%, %.1f %% to %+.1f %%; ratios of pairs %.2f to %.2f\n", "spread",
           100 * (r->ours.low / r->ours.median - 1), 100 * (r->ours.high / r->ours.median - 1),
           100 * (r->other.low / r->other.median - 1), 100 * (r->other.high / r->other.median - 1),
           r->ratio_low, r->ratio_high);
    double ours = json_number_value(json_object_get(r->ours.ready, "bytes"));
    double other = json_number_value(json_object_get(r->other.ready, "bytes"));
    if (ours > 0 && other > 0)
        printf("%26s %.0f bytes of weights, peer %.0f (%+.1f %%)\n", "", ours, other,
               100 * (other / ours - 1));
    for (size_t i = 0; i < r->n_parts; i++)
        printf("  %-24s %12.4g %12.4g %6.2fx\n", r->parts[i].name, r->parts[i].ours, r->parts[i].other,
               r->parts[i].ratio);
    if (r->why[0])
        printf("%26s %s\n", "", r->why);
}

static void print_json(const struct bench_result *r)
{
    json_t *j = bench_result_json(r);
    char *text = json_text(j);
    puts(text);
    free(text);
    json_decref(j);
}

// ---- the command ---------------------------------------------------------------------------------------------------------

struct report {
    bool as_json, headed;
    int code;
};

static void report_result(const struct bench_result *r, struct report *report)
{
    if (!r->complete) {
        fprintf(stderr, "ooze bench: %s%s%s: %s\n", r->row->name, r->isa ? " on " : "", r->isa ? r->isa : "",
                r->error.text);
        report->code = EXIT_FAILED;
    }
    if (report->as_json) {
        print_json(r);
    } else if (r->measured) {
        if (!report->headed)
            print_head();
        report->headed = true;
        print_result(r);
    }
    fflush(stdout);
    if (r->measured && !r->holds && r->goal > 0 && report->code == EXIT_DONE)
        report->code = EXIT_BELOW;
}

struct interrupt {
    struct loop *loop;
    bool seen;
};

static void on_interrupt(void *ctx, int signum)
{
    struct interrupt *i = ctx;
    (void)signum;
    i->seen = true;
    loop_stop(i->loop);
}

static int measure(const struct bench_row *const *rows, size_t n, const struct bench_setting *s, bool as_json)
{
    struct interrupt interrupt = {0};
    struct loop_signal *sigint, *sigterm;
    struct bench_result results[BENCH_CLASSES_MAX];
    struct error err;
    struct report report = {.as_json = as_json, .code = EXIT_DONE};
    struct bench_setting setting = *s;
    if (loop_open(&interrupt.loop, &err))
        return command_fail("bench", &err);
    if (loop_signal_open(interrupt.loop, SIGINT, on_interrupt, &interrupt, &sigint, &err) ||
        loop_signal_open(interrupt.loop, SIGTERM, on_interrupt, &interrupt, &sigterm, &err)) {
        loop_close(interrupt.loop);
        return command_fail("bench", &err);
    }
    setting.stop = &interrupt.seen;
    for (size_t i = 0; i < n && !interrupt.seen; i++) {
        bench_row_run(interrupt.loop, rows[i], &setting, results);
        for (int k = 0; k < s->n_classes; k++) {
            report_result(&results[k], &report);
            bench_result_done(&results[k]);
        }
    }
    loop_close(interrupt.loop);
    return interrupt.seen ? EXIT_FAILED : report.code;
}

// Becomes bench_profile with the rest of the command line.
static int profile(int argc, char **argv)
{
    char path[1100];
    struct places p;
    struct error err;
    if (find_places(&p, NULL, NULL, &err))
        return command_fail("bench", &err);
    snprintf(path, sizeof path, "%s/bench_profile", p.suite);
    char **args = mem_must((size_t)argc + 1, sizeof *args); // argv[0] is "profile"
    for (int i = 0; i < argc; i++)
        args[i] = argv[i];
    args[0] = path;
    execv(path, args);
    fprintf(stderr, "ooze bench: no program %s; build it\n", path);
    free(args);
    return EXIT_FAILED;
}

// text NULL: *ret stays.
static bool parse_count(const char *text, int max, int *ret)
{
    char *end;
    long v = text ? strtol(text, &end, 10) : *ret;
    if (text && (*end || end == text || v < 1 || v > max))
        return false;
    *ret = (int)v;
    return true;
}

// list: comma-separated, cut up; NULL: the best class alone.
static bool parse_classes(char *list, struct bench_setting *s)
{
    char *rest, *at = list;
    s->n_classes = list ? 0 : 1;
    s->classes[0] = NULL;
    for (; list && (at = strtok_r(at, ",", &rest)); at = NULL) {
        if (s->n_classes == BENCH_CLASSES_MAX)
            return false;
        s->classes[s->n_classes++] = at;
    }
    return s->n_classes > 0;
}

// names NULL: every row.
static const struct bench_row **pick_rows(char **names, size_t n)
{
    const struct bench_row **rows = mem_must(n, sizeof *rows);
    for (size_t i = 0; i < n; i++) {
        rows[i] = names ? find_row(names[i]) : &bench_rows[i];
        if (!rows[i]) {
            fprintf(stderr, "ooze bench: no row %s; `ooze bench --list` has them\n", names[i]);
            free(rows);
            return NULL;
        }
    }
    return rows;
}

// What the options say beside the rows; false: wrong usage.
static bool parse_setting(const char *runs, const char *masked_runs, const char *deadline, char *classes,
                          struct bench_setting *s)
{
    return parse_classes(classes, s) && parse_count(runs, BENCH_RUNS_MAX, &s->runs) &&
           parse_count(masked_runs, BENCH_RUNS_MAX, &s->masked_runs) && (!masked_runs || s->n_classes > 1) &&
           parse_count(deadline, DEADLINE_MAX, &s->run_s);
}

static int bench_rows_measure(char **names, size_t n, struct bench_setting *s, bool as_json)
{
    struct places places;
    struct error err;
    const struct bench_row **rows = pick_rows(names, n);
    if (!rows)
        return EXIT_USAGE;
    if (find_places(&places, s->models, s->python, &err)) {
        free(rows);
        return command_fail("bench", &err);
    }
    s->suite = places.suite;
    s->models = places.models;
    s->python = places.python;
    int code = measure(rows, n, s, as_json);
    free(rows);
    return code;
}

int command_bench(int argc, char **argv)
{
    bool list = false, all = false, as_json = false;
    const char *runs = NULL, *masked_runs = NULL, *deadline = NULL, *isa = NULL;
    struct bench_setting s = {.runs = 5};
    const struct option_spec specs[] = {{"list", NULL, &list},         {"all", NULL, &all},
                                        {"json", NULL, &as_json},      {"quiet", NULL, &s.quiet},
                                        {"runs", &runs, NULL},         {"deadline", &deadline, NULL},
                                        {"isa", &isa, NULL},           {"isa-runs", &masked_runs, NULL},
                                        {"threads", &s.threads, NULL}, {"python", &s.python, NULL},
                                        {"models", &s.models, NULL},   {0}};
    if (argc > 0 && !strcmp(argv[0], "profile"))
        return profile(argc, argv);
    int n, rc = options_parse("bench", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    if (list) {
        list_rows();
        return EXIT_DONE;
    }
    char *classes = isa ? mem_strdup(isa) : NULL;
    int code = EXIT_USAGE;
    if ((n == 0) == all && parse_setting(runs, masked_runs, deadline, classes, &s))
        code = bench_rows_measure(all ? NULL : argv, all ? bench_n_rows : (size_t)n, &s, as_json);
    else
        fputs(usage, stderr);
    free(classes);
    return code;
}
