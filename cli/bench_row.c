// Running one row and comparing: see bench_row.h. One thread. Both programs are started and made ready first; then they take turns, ours
// first, so that what disturbs the machine disturbs both.
#include "cli/bench_row.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "cli/bench_child.h"

#define READY_S  600
#define ARGS_MAX 32

#define MORE BENCH_MORE
#define LESS BENCH_LESS
const struct bench_row bench_rows[] = {
#define ROW(...) {__VA_ARGS__},
#include "cli/bench.def"
#undef ROW
};
#undef MORE
#undef LESS
const size_t bench_n_rows = sizeof bench_rows / sizeof bench_rows[0];

// ---- programs ---------------------------------------------------------------------------------------------------------

struct command {
    char words[512]; // of the def, cut at spaces
    char path[1024];
    const char *argv[ARGS_MAX];
    int n;
};

static void add_arg(struct command *c, const char *arg)
{
    if (c->n + 1 < ARGS_MAX)
        c->argv[c->n++] = arg;
}

static void add_option(struct command *c, const char *name, const char *value)
{
    if (value) {
        add_arg(c, name);
        add_arg(c, value);
    }
}

static enum status find_script(struct command *c, const char *name, const struct bench_setting *s,
                               struct error *err)
{
    snprintf(c->path, sizeof c->path, "%s/bench/peers/%s", s->suite, name);
    if (access(s->python, X_OK))
        return error_set(err, STATUS_NOTFOUND,
                         "no Python for the peers at %s: run tests/bench/setup.sh, or give --python",
                         s->python);
    if (access(c->path, R_OK))
        return error_set(err, STATUS_NOTFOUND, "no peer %s", c->path);
    add_arg(c, s->python);
    add_arg(c, c->path);
    return STATUS_OK;
}

static enum status find_program(struct command *c, const char *name, const struct bench_setting *s,
                                struct error *err)
{
    snprintf(c->path, sizeof c->path, "%s/%s", s->suite, name);
    if (access(c->path, X_OK))
        return error_set(err, STATUS_NOTFOUND,
                         "no program %s: build it; if it needs a library, run tests/bench/setup.sh before",
                         c->path);
    add_arg(c, c->path);
    return STATUS_OK;
}

static enum status command_make(struct command *c, const char *text, bool ours, const struct bench_setting *s,
                                struct error *err)
{
    char *rest;
    snprintf(c->words, sizeof c->words, "%s", text);
    const char *name = strtok_r(c->words, " ", &rest);
    size_t len = strlen(name);
    bool script = len > 3 && !strcmp(name + len - 3, ".py");
    c->n = 0;
    enum status rc = script ? find_script(c, name, s, err) : find_program(c, name, s, err);
    if (rc)
        return rc;
    for (char *word; (word = strtok_r(NULL, " ", &rest));)
        add_arg(c, word);
    add_arg(c, "--serve");
    add_option(c, "--models", s->models);
    add_option(c, "--threads", s->threads);
    if (ours)
        add_option(c, "--isa", s->isa);
    c->argv[c->n] = NULL;
    return STATUS_OK;
}

// ---- figures ------------------------------------------------------------------------------------------------------------

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
    qsort(v, n, sizeof *v, ascending);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

// Values of answers[i].outer.key (outer NULL: answers[i].key) as numbers; false when one has none.
static bool read_all(const json_t *list, const char *outer, const char *key, double *ret)
{
    size_t i;
    json_t *a;
    json_array_foreach(list, i, a)
    {
        const json_t *v = json_object_get(outer ? json_object_get(a, outer) : a, key);
        if (!json_is_number(v))
            return false;
        ret[i] = json_number_value(v);
    }
    return true;
}

static void summarize(struct bench_side *side, const double *values, size_t n)
{
    double v[BENCH_RUNS_MAX];
    memcpy(v, values, n * sizeof *v);
    side->median = median(v, n); // sorts
    side->low = v[0];
    side->high = v[n - 1];
}

static double ratio_of(const struct bench_row *row, double ours, double other)
{
    return row->better == BENCH_MORE ? ours / other : other / ours;
}

static void compare(struct bench_result *r, const double *ours, const double *other, size_t n)
{
    summarize(&r->ours, ours, n);
    summarize(&r->other, other, n);
    r->ratio = ratio_of(r->row, r->ours.median, r->other.median);
    r->ratio_low = INFINITY;
    r->ratio_high = 0;
    for (size_t i = 0; i < n; i++) {
        double q = ratio_of(r->row, ours[i], other[i]);
        r->ratio_low = fmin(r->ratio_low, q);
        r->ratio_high = fmax(r->ratio_high, q);
    }
}

// Rows of several shapes: the ratio is the geometric mean of the parts' own.
static enum status compare_parts(struct bench_result *r, const json_t *ours, const json_t *other,
                                 struct error *err)
{
    json_t *parts = json_object_get(json_array_get(ours, 0), "parts"), *value;
    const char *key;
    double logs = 0, v[BENCH_RUNS_MAX];
    size_t n = json_array_size(ours);
    if (json_object_size(parts) == 0)
        return STATUS_OK;
    r->parts = mem_must(json_object_size(parts), sizeof *r->parts);
    json_object_foreach(parts, key, value)
    {
        struct bench_part *p = &r->parts[r->n_parts++];
        snprintf(p->name, sizeof p->name, "%s", key);
        if (!read_all(ours, "parts", key, v))
            return error_set(err, STATUS_PEER, "%s: part %s is not in every answer", r->ours.name, key);
        p->ours = median(v, n);
        if (!read_all(other, "parts", key, v))
            return error_set(err, STATUS_PEER, "%s: part %s is not in every answer", r->other.name, key);
        p->other = median(v, n);
        p->ratio = ratio_of(r->row, p->ours, p->other);
        logs += log(p->ratio);
        if (!(p->ratio >= r->row->part_goal) && r->holds) {
            r->holds = false;
            snprintf(r->why, sizeof r->why, "%s has %.3f, goal %g", p->name, p->ratio, r->row->part_goal);
        }
    }
    r->ratio = exp(logs / (double)r->n_parts);
    return STATUS_OK;
}

// "limits": {"stall": {"value": X, "at_most": Y}}: medians are compared.
static void check_limits(struct bench_result *r, json_t *ours)
{
    json_t *limits = json_object_get(json_array_get(ours, 0), "limits"), *value;
    size_t n = json_array_size(ours), i;
    const char *key;
    json_object_foreach(limits, key, value)
    {
        double have[BENCH_RUNS_MAX], limit[BENCH_RUNS_MAX];
        json_t *a;
        json_array_foreach(ours, i, a)
        {
            json_t *x = json_object_get(json_object_get(a, "limits"), key);
            have[i] = json_number_value(json_object_get(x, "value"));
            limit[i] = json_number_value(json_object_get(x, "at_most"));
        }
        double h = median(have, n), m = median(limit, n);
        if (!(h <= m) && r->holds) {
            r->holds = false;
            snprintf(r->why, sizeof r->why, "%s is %.4g, at most %.4g allowed", key, h, m);
        }
    }
}

static void check_bytes(struct bench_result *r)
{
    double ours = json_number_value(json_object_get(r->ours.ready, "bytes"));
    double other = json_number_value(json_object_get(r->other.ready, "bytes"));
    if (r->row->bytes_within <= 0 || !r->holds)
        return;
    if (!(ours > 0 && other > 0 && fabs(other / ours - 1) <= r->row->bytes_within)) {
        r->holds = false;
        snprintf(r->why, sizeof r->why, "%.0f bytes of weights beside %.0f: more than %g apart", ours, other,
                 r->row->bytes_within);
    }
}

// Medians of the other numbers of our answers.
static json_t *further_figures(json_t *ours)
{
    json_t *out = json_object(), *value;
    double v[BENCH_RUNS_MAX];
    const char *key;
    json_object_foreach(json_array_get(ours, 0), key,
                        value) if (json_is_number(value) && strcmp(key, "value") && strcmp(key, "bound") &&
                                   read_all(ours, NULL, key, v))
        json_object_set_new(out, key, json_real(median(v, json_array_size(ours))));
    return out;
}

static enum status conclude(struct bench_result *r, json_t *ours, json_t *other, struct error *err)
{
    double a[BENCH_RUNS_MAX], b[BENCH_RUNS_MAX];
    size_t n = json_array_size(ours);
    bool have = read_all(ours, NULL, "value", a) &&
                (other ? read_all(other, NULL, "value", b) : read_all(ours, NULL, "bound", b));
    if (!have || (!other && !(b[0] > 0)))
        return error_set(err, STATUS_PEER, "%s gave no bound beside its value", r->ours.name);
    if (!other) {
        const char *name = json_string_value(json_object_get(json_array_get(ours, 0), "bound_name"));
        snprintf(r->other.name, sizeof r->other.name, "bound: %s", name ? name : "measured in the same run");
    }
    const json_t *goal = json_object_get(r->ours.ready, "goal");
    r->goal = json_is_number(goal) ? json_number_value(goal) : r->row->goal;
    r->holds = true;
    compare(r, a, b, n);
    if (other) {
        enum status rc = compare_parts(r, ours, other, err);
        if (rc)
            return rc;
    }
    if (!(r->ratio >= r->goal))
        r->holds = false;
    check_bytes(r);
    check_limits(r, ours);
    r->figures = further_figures(ours);
    return STATUS_OK;
}

// ---- the runs -------------------------------------------------------------------------------------------------------------

static enum status start(struct loop *l, const char *text, bool ours, const struct bench_setting *s,
                         struct bench_side *side, struct bench_child **ret, struct error *err)
{
    struct command c;
    enum status rc = command_make(&c, text, ours, s, err);
    if (rc)
        return rc;
    snprintf(side->name, sizeof side->name, "%.*s", (int)strcspn(text, " "), text);
    if (!s->quiet)
        fprintf(stderr, "starting %s\n", text);
    if ((rc = bench_child_open(l, side->name, c.argv, ret, err)) ||
        (rc = bench_child_answer(*ret, READY_S * 1000, &side->ready, err)))
        return rc;
    if (!json_is_true(json_object_get(side->ready, "ready")))
        return error_set(err, STATUS_PEER, "%s: its first line does not say ready", side->name);
    const char *isa = json_string_value(json_object_get(side->ready, "isa"));
    if (ours && s->isa && strcmp(s->isa, "auto") != 0 && (!isa || strcmp(isa, s->isa) != 0))
        return error_set(err, STATUS_PEER, "%s runs on %s, asked for %s", side->name, isa ? isa : "nothing",
                         s->isa);
    const char *name = json_string_value(json_object_get(side->ready, "name"));
    if (name)
        snprintf(side->name, sizeof side->name, "%s", name);
    return STATUS_OK;
}

static enum status run_once(struct bench_child *c, const struct bench_result *r, const char *name, int i,
                            const struct bench_setting *s, json_t *into, struct error *err)
{
    json_t *answer;
    int64_t run_s = s->run_s ? s->run_s : r->row->run_s;
    enum status rc = bench_child_run(c, run_s * 1000, &answer, err);
    if (rc)
        return rc;
    if (!s->quiet)
        fprintf(stderr, "%s %d/%d  %-40s %.4g %s\n", r->row->name, i + 1, s->runs, name,
                json_number_value(json_object_get(answer, "value")), r->row->unit);
    json_array_append_new(into, answer);
    return STATUS_OK;
}

enum status bench_row_run(struct loop *l, const struct bench_row *row, const struct bench_setting *s,
                          struct bench_result *ret, struct error *err)
{
    struct bench_result r = {.row = row, .runs = s->runs};
    struct bench_child *ours = NULL, *peer = NULL;
    json_t *ours_list = json_array(), *peer_list = row->peer[0] ? json_array() : NULL;
    enum status rc = STATUS_OK;
    if (row->peer[0]) { // first, because it may be missing
        struct command c;
        if ((rc = command_make(&c, row->peer, false, s, err)))
            goto out;
    }
    if ((rc = start(l, row->ours, true, s, &r.ours, &ours, err)) ||
        (peer_list && (rc = start(l, row->peer, false, s, &r.other, &peer, err))))
        goto out;
    for (int i = 0; i < s->runs; i++)
        if ((rc = run_once(ours, &r, r.ours.name, i, s, ours_list, err)) ||
            (peer && (rc = run_once(peer, &r, r.other.name, i, s, peer_list, err))))
            goto out;
    rc = conclude(&r, ours_list, peer_list, err);
out:
    bench_child_close(ours);
    bench_child_close(peer);
    json_decref(ours_list);
    json_decref(peer_list);
    if (rc)
        bench_result_done(&r);
    else
        *ret = r;
    return rc;
}

void bench_result_done(struct bench_result *r)
{
    json_decref(r->ours.ready);
    json_decref(r->other.ready);
    json_decref(r->figures);
    free(r->parts);
    *r = (struct bench_result){0};
}

// ---- as JSON ---------------------------------------------------------------------------------------------------------------

static void processor_model(char *ret, size_t n)
{
    char *info = NULL;
    struct error none;
    snprintf(ret, n, "unknown");
    if (file_read("/proc/cpuinfo", 16 << 20, &info, NULL, &none))
        return;
    char *at = strstr(info, "model name");
    if (at && (at = strchr(at, ':')))
        snprintf(ret, n, "%.*s", (int)strcspn(at + 2, "\n"), at + 2);
    free(info);
}

static json_t *processor_json(const json_t *ready)
{
    char model[128];
    const char *isa = json_string_value(json_object_get(ready, "isa"));
    processor_model(model, sizeof model);
    return json_pack("{s:s, s:I, s:s, s:O?}", "model", model, "cores",
                     (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "isa", isa ? isa : "", "threads",
                     json_object_get(ready, "threads"));
}

json_t *bench_result_json(const struct bench_result *r)
{
    json_t *j = json_pack("{s:s, s:s, s:f, s:{s:s, s:f}, s:f, s:f, s:b, s:o}", "name", r->row->name, "unit",
                          r->row->unit, "ours", r->ours.median, "peer", "name", r->other.name, "value",
                          r->other.median, "ratio", r->ratio, "goal", r->goal, "holds", r->holds, "processor",
                          processor_json(r->ours.ready));
    json_object_set_new(j, "runs", json_integer(r->runs));
    json_object_set_new(j, "spread",
                        json_pack("{s:[ff], s:[ff], s:[ff]}", "ours", r->ours.low, r->ours.high, "peer",
                                  r->other.low, r->other.high, "ratio", r->ratio_low, r->ratio_high));
    if (r->why[0])
        json_object_set_new(j, "why", json_string(r->why));
    if (r->n_parts) {
        json_t *parts = json_object();
        for (size_t i = 0; i < r->n_parts; i++)
            json_object_set_new(parts, r->parts[i].name,
                                json_pack("{s:f, s:f, s:f}", "ours", r->parts[i].ours, "peer",
                                          r->parts[i].other, "ratio", r->parts[i].ratio));
        json_object_set_new(j, "parts", parts);
    }
    json_object_set(j, "figures", r->figures);
    json_object_set(j, "ours_info", r->ours.ready);
    if (r->other.ready)
        json_object_set(j, "peer_info", r->other.ready);
    return j;
}
