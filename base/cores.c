// Division of a host's cores: see cores.h. Any thread; no state.
#include "base/cores.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void cores_allowed(struct cores_list *ret)
{
    cpu_set_t *set = CPU_ALLOC(CORES_MAX);
    size_t bytes = CPU_ALLOC_SIZE(CORES_MAX);
    ret->n = 0;
    if (set && sched_getaffinity(0, bytes, set) == 0)
        for (int i = 0; i < CORES_MAX; i++)
            if (CPU_ISSET_S((size_t)i, bytes, set))
                ret->cpus[ret->n++] = i;
    CPU_FREE(set);
    if (ret->n == 0)
        ret->cpus[ret->n++] = 0;
}

int cores_count(void)
{
    struct cores_list l;
    cores_allowed(&l);
    return l.n;
}

// One number below CORES_MAX; moves *s behind it. -1 = none.
static int number(const char **s)
{
    char *end;
    if (**s < '0' || **s > '9')
        return -1;
    long n = strtol(*s, &end, 10);
    *s = end;
    return n < CORES_MAX ? (int)n : -1;
}

enum status cores_parse(const char *text, struct cores_list *ret, struct error *err)
{
    struct cores_list l = {0};
    for (const char *s = text;; s++) {
        int first = number(&s), last = first;
        if (first >= 0 && *s == '-') {
            s++;
            last = number(&s);
        }
        if (first < 0 || last < first || (*s && *s != ','))
            return error_set(err, STATUS_INVALID,
                             "'%.60s' is no list of CPUs: write numbers below %d and ranges, like 0-3,8",
                             text, CORES_MAX);
        for (int i = first; i <= last; i++) {
            for (int k = 0; k < l.n; k++)
                if (l.cpus[k] == i)
                    return error_set(err, STATUS_INVALID, "'%.60s' names CPU %d twice", text, i);
            l.cpus[l.n++] = i;
        }
        if (!*s)
            break;
    }
    *ret = l;
    return STATUS_OK;
}

// ---- shares -----------------------------------------------------------------------------------------------------------------

static bool take_turns(const struct run_config *c)
{
    for (int i = 0; i < c->n_stages && !c->eval.only; i++)
        if (c->stages[i].kind == RUN_STAGE_RL && c->stages[i].max_lag > 0)
            return false;
    return true;
}

static int at_least_one(int n)
{
    return n > 1 ? n : 1;
}

struct division {
    bool turns;
    int trainer, engines; // threads of the trainer, of all engines together
    int n_engines;
};

static struct division divide(const struct run_config *c, int cores)
{
    struct division d = {.turns = take_turns(c), .n_engines = (int)c->rollout.engines};
    int trainer = (int)c->trainer.threads, engine = (int)c->rollout.threads;
    d.trainer = trainer;
    d.engines = engine * d.n_engines;
    if (!trainer && (d.turns || d.n_engines == 0))
        d.trainer = cores;
    else if (!trainer)
        d.trainer = engine ? at_least_one(cores - d.engines) : (cores + 1) / 2;
    if (!engine)
        d.engines = d.turns ? cores : at_least_one(cores - d.trainer);
    return d;
}

// Threads of engine i, and how many those before it have.
static int engine_threads(const struct division *d, int i, int *ret_before)
{
    int each = d->engines / at_least_one(d->n_engines), more = d->engines % at_least_one(d->n_engines);
    *ret_before = i * at_least_one(each) + (each > 0 ? (i < more ? i : more) : 0);
    return at_least_one(each + (i < more && each > 0));
}

static bool is_allowed(const struct cores_list *allowed, int cpu)
{
    for (int i = 0; i < allowed->n; i++)
        if (allowed->cpus[i] == cpu)
            return true;
    return false;
}

// How the allowed ones are said to people: "0-1,4".
static void list_print(const struct cores_list *l, char *ret, size_t n)
{
    size_t at = 0;
    *ret = 0;
    for (int i = 0, end; i < l->n && at + 16 < n; i = end) {
        for (end = i + 1; end < l->n && l->cpus[end] == l->cpus[end - 1] + 1;)
            end++;
        at += (size_t)snprintf(ret + at, n - at, end - i > 1 ? "%s%d-%d" : "%s%d", i ? "," : "", l->cpus[i],
                               l->cpus[end - 1]);
    }
}

// Threads `first` … of the whole division of pin's CPUs.
static enum status pin(const char *key, const char *text, const struct cores_list *allowed, int first,
                       struct cores_share *s, struct error *err)
{
    struct cores_list l = *allowed;
    char may[200];
    s->pin.n = 0;
    if (!*text || strcmp(text, "off") == 0)
        return STATUS_OK;
    bool automatic = strcmp(text, "auto") == 0;
    if (automatic && *s->warning)
        return STATUS_OK; // two threads nailed to one core are worse than none
    enum status rc = automatic ? STATUS_OK : cores_parse(text, &l, err);
    if (rc)
        return error_prefix(err, "%s", key);
    list_print(allowed, may, sizeof may);
    for (int i = 0; i < l.n; i++)
        if (!is_allowed(allowed, l.cpus[i]))
            return error_set(err, STATUS_INVALID, "%s: this process may not run on CPU %d (it may on %s)",
                             key, l.cpus[i], may);
    s->pin.n = s->threads < CORES_MAX ? s->threads : CORES_MAX;
    for (int i = 0; i < s->pin.n; i++)
        s->pin.cpus[i] = l.cpus[(first + i) % l.n];
    return STATUS_OK;
}

static void warn(const struct division *d, int cores, struct cores_share *s)
{
    int before, last = engine_threads(d, d->n_engines - 1, &before);
    int engines = d->n_engines > 0 ? before + last : 0;
    int most = d->turns ? (d->trainer > engines ? d->trainer : engines) : d->trainer + engines;
    s->warning[0] = 0;
    if (most > cores)
        snprintf(s->warning, sizeof s->warning,
                 "%d threads on %d core%s (trainer %d, engines %d): they will get in each other's way", most,
                 cores, cores == 1 ? "" : "s", d->trainer, engines);
}

enum status cores_for_trainer(const struct run_config *c, const struct cores_list *allowed,
                              struct cores_share *ret, struct error *err)
{
    struct division d = divide(c, allowed->n);
    ret->threads = d.trainer;
    warn(&d, allowed->n, ret);
    return pin("trainer.pin", c->trainer.pin, allowed, 0, ret, err);
}

enum status cores_for_engine(const struct run_config *c, const struct cores_list *allowed, int index,
                             struct cores_share *ret, struct error *err)
{
    struct division d = divide(c, allowed->n);
    int before;
    ret->threads = engine_threads(&d, index, &before);
    warn(&d, allowed->n, ret);
    bool behind_trainer = strcmp(c->rollout.pin, "auto") == 0 && !d.turns;
    return pin("rollout.pin", c->rollout.pin, allowed, before + (behind_trainer ? d.trainer : 0), ret, err);
}
