// Comparing the two sides of a benchmark: see bench_result.h. One thread; no state.
#include "cli/bench_result.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "cli/bench_row.h"

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
    side->runs = (int)n;
    side->median = median(v, n); // sorts
    side->low = v[0];
    side->high = v[n - 1];
}

static double ratio_of(const struct bench_row *row, double ours, double other)
{
    return row->better == BENCH_MORE ? ours / other : other / ours;
}

// The sides may have different numbers of runs: medians are of all that a side has, pairs of the rounds that both were in.
static void compare(struct bench_result *r, const double *ours, size_t n, const double *other, size_t n_other)
{
    summarize(&r->ours, ours, n);
    summarize(&r->other, other, n_other);
    r->ratio = ratio_of(r->row, r->ours.median, r->other.median);
    r->ratio_low = INFINITY;
    r->ratio_high = 0;
    for (size_t i = 0; i < n && i < n_other; i++) {
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
    if (json_object_size(parts) == 0)
        return STATUS_OK;
    r->parts = mem_must(json_object_size(parts), sizeof *r->parts);
    json_object_foreach(parts, key, value)
    {
        struct bench_part *p = &r->parts[r->n_parts++];
        snprintf(p->name, sizeof p->name, "%s", key);
        if (!read_all(ours, "parts", key, v))
            return error_set(err, STATUS_PEER, "%s: part %s is not in every answer", r->ours.name, key);
        p->ours = median(v, json_array_size(ours));
        if (!read_all(other, "parts", key, v))
            return error_set(err, STATUS_PEER, "%s: part %s is not in every answer", r->other.name, key);
        p->other = median(v, json_array_size(other));
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
static void check_limits(struct bench_result *r, const json_t *ours)
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
        if (h <= m)
            continue;
        r->holds = false;
        if (!r->why[0])
            snprintf(r->why, sizeof r->why, "%s is %.4g, at most %.4g allowed", key, h, m);
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

// Both sides compute on as many threads; a bound, and a program that does not say how many, is not asked.
static void check_threads(struct bench_result *r)
{
    const json_t *ours = json_object_get(r->ours.ready, "threads");
    const json_t *other = json_object_get(r->other.ready, "threads");
    if (!json_is_integer(ours) || !json_is_integer(other) || json_equal(ours, other))
        return;
    r->holds = false;
    if (!r->why[0])
        snprintf(r->why, sizeof r->why, "%lld threads beside %lld", (long long)json_integer_value(ours),
                 (long long)json_integer_value(other));
}

// Medians of the other numbers of our answers.
static json_t *further_figures(const json_t *ours)
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

enum status bench_result_conclude(struct bench_result *r, const json_t *ours, const json_t *other,
                                  struct error *err)
{
    double a[BENCH_RUNS_MAX], b[BENCH_RUNS_MAX];
    size_t n = json_array_size(ours), n_other = other ? json_array_size(other) : n;
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
    compare(r, a, n, b, n_other);
    if (other) {
        enum status rc = compare_parts(r, ours, other, err);
        if (rc)
            return rc;
    }
    if (!(r->ratio >= r->goal))
        r->holds = false;
    check_threads(r);
    check_bytes(r);
    check_limits(r, ours);
    r->figures = further_figures(ours);
    r->measured = true;
    return STATUS_OK;
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

static json_t *parts_json(const struct bench_result *r)
{
    json_t *parts = json_object();
    for (size_t i = 0; i < r->n_parts; i++)
        json_object_set_new(parts, r->parts[i].name,
                            json_pack("{s:f, s:f, s:f}", "ours", r->parts[i].ours, "peer", r->parts[i].other,
                                      "ratio", r->parts[i].ratio));
    return parts;
}

json_t *bench_result_json(const struct bench_result *r)
{
    if (!r->measured)
        return json_pack("{s:s, s:s*, s:s}", "name", r->row->name, "isa", r->isa, "error", r->error.text);
    json_t *j = json_pack("{s:s, s:s, s:f, s:{s:s, s:f}, s:f, s:f, s:b, s:o}", "name", r->row->name, "unit",
                          r->row->unit, "ours", r->ours.median, "peer", "name", r->other.name, "value",
                          r->other.median, "ratio", r->ratio, "goal", r->goal, "holds", r->holds, "processor",
                          processor_json(r->ours.ready));
    json_object_set_new(j, "runs", json_integer(r->ours.runs));
    json_object_set_new(j, "peer_runs", json_integer(r->other.runs));
    json_object_set_new(j, "complete", json_boolean(r->complete));
    if (!r->complete)
        json_object_set_new(j, "error", json_string(r->error.text));
    json_object_set_new(j, "waiting_cpu", json_real(r->waiting_cpu));
    json_object_set_new(j, "spread",
                        json_pack("{s:[ff], s:[ff], s:[ff]}", "ours", r->ours.low, r->ours.high, "peer",
                                  r->other.low, r->other.high, "ratio", r->ratio_low, r->ratio_high));
    if (r->why[0])
        json_object_set_new(j, "why", json_string(r->why));
    if (r->n_parts)
        json_object_set_new(j, "parts", parts_json(r));
    json_object_set(j, "figures", r->figures);
    json_object_set(j, "ours_info", r->ours.ready);
    if (r->other.ready)
        json_object_set(j, "peer_info", r->other.ready);
    return j;
}
