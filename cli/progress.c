// Progress of a run on a terminal: reads the ledger (read-only), which is true whoever is alive, so that nobody needs asking. One
// thread: the supervisor's.
#include "cli/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "ledger/reader.h"

#define TICK_MS 1000

struct progress {
    struct loop_timer *timer;
    const char *run_dir;
    bool quiet;
    struct ledger *ledger; // NULL until there is one
    int64_t shown_step;    // newest step printed
    size_t shown_evals;
    int64_t started_ms;
};

static double seconds(const struct progress *p)
{
    return (double)(clock_mono_ms(clock_system()) - p->started_ms) / 1000;
}

static double metric(const json_t *m, const char *name)
{
    return json_number_value(json_object_get(m, name));
}

static void show_step(struct progress *p, const json_t *row)
{
    const json_t *m = json_object_get(row, "metrics");
    int64_t step = json_integer_value(json_object_get(row, "step"));
    printf("[%7.1fs] step %-5lld stage %lld", seconds(p), (long long)step,
           (long long)json_integer_value(json_object_get(row, "stage")));
    if (!json_is_true(json_object_get(row, "applied"))) {
        printf("  REJECTED: %s\n", json_string_value(json_object_get(row, "reason")));
        return;
    }
    printf("  loss %+8.4f  grad %7.3f  entropy %6.3f", metric(m, "train/loss"), metric(m, "train/grad_norm"),
           metric(m, "train/entropy"));
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)m, key, v)
    {
        size_t n = strlen(key);
        if (!strncmp(key, "reward/", 7) && n > 12 && !strcmp(key + n - 5, "/mean"))
            printf("  %.*s %.3f", (int)(n - 12), key + 7, json_number_value(v));
    }
    if (json_object_get(m, "lag/mean"))
        printf("  lag %.1f", metric(m, "lag/mean"));
    printf("  %.0f tok/s\n", metric(m, "perf/tokens_per_s"));
}

static void show_evals(struct progress *p)
{
    json_t *list, *tasks, *t;
    const char *name;
    struct error none;
    if (ledger_eval_summary(p->ledger, &list, &none))
        return;
    for (; p->shown_evals < json_array_size(list); p->shown_evals++) {
        const json_t *e = json_array_get(list, p->shown_evals);
        printf("[%7.1fs] eval %-12s version %lld", seconds(p), json_string_value(json_object_get(e, "label")),
               (long long)json_integer_value(json_object_get(e, "version")));
        tasks = json_object_get(e, "tasks");
        json_object_foreach(tasks, name, t) printf("  %s %.3f (n=%lld)", name, metric(t, "success"),
                                                   (long long)json_integer_value(json_object_get(t, "n")));
        printf("\n");
    }
    json_decref(list);
}

static void tick(void *ctx)
{
    struct progress *p = ctx;
    struct error none;
    json_t *rows;
    if (p->quiet)
        return;
    if (!p->ledger && ledger_open_readonly(p->run_dir, &p->ledger, &none)) {
        p->ledger = NULL; // not created yet
        return;
    }
    if (!ledger_step_metrics(p->ledger, 1, &rows, &none)) {
        const json_t *row = json_array_get(rows, 0);
        int64_t step = row ? json_integer_value(json_object_get(row, "step")) : -1;
        if (step > p->shown_step) {
            show_step(p, row);
            p->shown_step = step;
        }
        json_decref(rows);
    }
    show_evals(p);
    fflush(stdout);
}

enum status progress_open(struct loop *l, const char *run_dir, bool quiet, struct progress **ret,
                          struct error *err)
{
    (void)err;
    struct progress *p = mem_must(1, sizeof *p);
    *p = (struct progress){
        .run_dir = run_dir, .quiet = quiet, .shown_step = -1, .started_ms = clock_mono_ms(clock_system())};
    p->timer = loop_timer_open(l, tick, p);
    loop_timer_set(p->timer, TICK_MS, TICK_MS);
    *ret = p;
    return STATUS_OK;
}

void progress_note(struct progress *p, const char *fmt, ...)
{
    va_list ap;
    if (p->quiet)
        return;
    va_start(ap, fmt);
    printf("[%7.1fs] ", seconds(p));
    vprintf(fmt, ap);
    printf("\n");
    fflush(stdout);
    va_end(ap);
}

void progress_close(struct progress *p)
{
    if (!p)
        return;
    tick(p);
    loop_timer_close(p->timer);
    ledger_close(p->ledger);
    free(p);
}
