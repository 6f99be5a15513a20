// Running one row: see bench_row.h. One thread. All programs are started and made ready first; then they take turns, ours first, so that
// what disturbs the machine disturbs all of them, and one run of the peer serves every class of a round.
//
// Invariants
//   1. At most one program owes an answer; the others wait, and the CPU time they take meanwhile is told (waiting_cpu).
//   2. A runner without a child has failed (its error says how), is through with its rounds, or is of a row that ALONE.
//   3. Answer i of every runner belongs to round i: who misses a round is not asked again.
#include "cli/bench_row.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "cli/bench_child.h"

#define READY_S     600
#define ARGS_MAX    32
#define WAITING_MAX 0.05 // share of a core, in runs that last: more is said on stderr
#define WAITING_MIN 0.01 // seconds of it

#define MORE     BENCH_MORE
#define LESS     BENCH_LESS
#define TOGETHER false
#define ALONE    true
const struct bench_row bench_rows[] = {
#define ROW(...) {__VA_ARGS__},
#include "cli/bench.def"
#undef ROW
};
#undef MORE
#undef LESS
#undef TOGETHER
#undef ALONE
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

// isa: of ours; NULL = its own choice, or the peer.
static enum status command_make(struct command *c, const char *text, const char *isa,
                                const struct bench_setting *s, struct error *err)
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
    add_option(c, "--isa", isa);
    c->argv[c->n] = NULL;
    return STATUS_OK;
}

// ---- runners ----------------------------------------------------------------------------------------------------------

// A program of the row: ours on one class, or the peer.
struct runner {
    const char *text; // of the def
    bool ours;
    const char *isa; // asked for
    char name[128];
    int wanted;                // rounds
    struct bench_child *child; // see invariant 2
    json_t *ready, *answers;   // the first line; one answer of each round
    double run_s, waiting_s;   // of all its runs, and what the others took of a core meanwhile
    bool failed;
    struct error error;
};

struct race {
    struct loop *loop;
    const struct bench_row *row;
    const struct bench_setting *s;
    struct runner all[BENCH_CLASSES_MAX + 1]; // ours by class, then the peer
    int n;                                    // of ours
    struct runner *peer;                      // NULL: the row has a bound
    bool alone;                               // ours live for one run each
};

static void runner_init(struct runner *r, const char *text, bool ours, const char *isa, int wanted)
{
    *r = (struct runner){.text = text, .ours = ours, .isa = isa, .wanted = wanted, .answers = json_array()};
    snprintf(r->name, sizeof r->name, "%.*s", (int)strcspn(text, " "), text);
}

static void runner_rest(struct runner *r)
{
    bench_child_close(r->child);
    r->child = NULL;
}

static void runner_fail(struct runner *r)
{
    r->failed = true;
    runner_rest(r);
}

static void runner_done(struct runner *r)
{
    runner_rest(r);
    json_decref(r->ready);
    json_decref(r->answers);
}

static enum status check_ready(struct runner *r, struct error *err)
{
    if (!json_is_true(json_object_get(r->ready, "ready")))
        return error_set(err, STATUS_PEER, "%s: its first line does not say ready", r->name);
    const char *isa = json_string_value(json_object_get(r->ready, "isa"));
    if (r->isa && strcmp(r->isa, "auto") != 0 && (!isa || strcmp(isa, r->isa) != 0))
        return error_set(err, STATUS_PEER, "%s runs on %s, asked for %s", r->name, isa ? isa : "nothing",
                         r->isa);
    const char *name = json_string_value(json_object_get(r->ready, "name"));
    if (name)
        snprintf(r->name, sizeof r->name, "%s", name);
    return STATUS_OK;
}

static void runner_start(struct race *race, struct runner *r)
{
    struct command c;
    json_t *ready;
    const char *isa = r->isa ? r->isa : "";
    if (*race->s->stop) {
        error_set(&r->error, STATUS_CANCELED, "interrupted");
        r->failed = true;
        return;
    }
    if (command_make(&c, r->text, r->isa, race->s, &r->error)) {
        r->failed = true;
        return;
    }
    if (!race->s->quiet)
        fprintf(stderr, "starting %s%s%s\n", r->text, isa[0] ? " on " : "", isa);
    if (bench_child_open(race->loop, r->name, c.argv, race->s->stop, &r->child, &r->error) ||
        bench_child_answer(r->child, READY_S * 1000, &ready, &r->error)) {
        runner_fail(r);
        return;
    }
    json_decref(r->ready);
    r->ready = ready;
    if (check_ready(r, &r->error))
        runner_fail(r);
}

// CPU seconds of all programs but `r`.
static double others_cpu(const struct race *race, const struct runner *r)
{
    double sum = 0;
    for (int i = 0; i <= race->n; i++)
        if (&race->all[i] != r && race->all[i].child)
            sum += bench_child_cpu(race->all[i].child);
    return sum;
}

static void tell_run(const struct race *race, const struct runner *r, double run_s, double waiting_s)
{
    char name[160];
    const char *isa = json_string_value(json_object_get(r->ready, "isa"));
    size_t done = json_array_size(r->answers);
    if (race->s->quiet)
        return;
    snprintf(name, sizeof name, "%s%s%s", r->name, r->ours && race->n > 1 ? " on " : "",
             r->ours && race->n > 1 && isa ? isa : "");
    fprintf(stderr, "%s %zu/%d  %-40s %.4g %s\n", race->row->name, done, r->wanted, name,
            json_number_value(json_object_get(json_array_get(r->answers, done - 1), "value")),
            race->row->unit);
    if (waiting_s > WAITING_MIN && waiting_s > WAITING_MAX * run_s)
        fprintf(stderr, "%s: meanwhile those that wait took %.0f %% of a core\n", race->row->name,
                100 * waiting_s / run_s);
}

static void runner_run(struct race *race, struct runner *r)
{
    json_t *answer;
    int64_t run_s = race->s->run_s ? race->s->run_s : race->row->run_s;
    if (*race->s->stop) {
        error_set(&r->error, STATUS_CANCELED, "interrupted");
        runner_fail(r);
        return;
    }
    double cpu = others_cpu(race, r);
    int64_t start = clock_mono_ns(clock_system());
    if (bench_child_run(r->child, run_s * 1000, &answer, &r->error)) {
        runner_fail(r);
        return;
    }
    double run_took = (double)(clock_mono_ns(clock_system()) - start) * 1e-9;
    double waiting = fmax(others_cpu(race, r) - cpu, 0);
    r->run_s += run_took;
    r->waiting_s += waiting;
    json_array_append_new(r->answers, answer);
    tell_run(race, r, run_took, waiting);
}

// ---- rounds -----------------------------------------------------------------------------------------------------------

static void race_init(struct race *race, struct loop *l, const struct bench_row *row,
                      const struct bench_setting *s)
{
    *race = (struct race){.loop = l, .row = row, .s = s, .n = s->n_classes};
    race->alone = row->alone && s->n_classes > 1;
    for (int i = 0; i < race->n; i++) {
        bool masked = i > 0 && s->masked_runs && s->masked_runs < s->runs;
        runner_init(&race->all[i], row->ours, true, s->classes[i], masked ? s->masked_runs : s->runs);
    }
    if (row->peer[0]) {
        race->peer = &race->all[race->n];
        runner_init(race->peer, row->peer, false, NULL, s->runs);
    }
}

static int racing(const struct race *race, int round)
{
    int n = 0;
    for (int i = 0; i < race->n; i++)
        n += !race->all[i].failed && race->all[i].wanted > round;
    return n;
}

static void start_all(struct race *race)
{
    struct command c;
    if (race->peer && command_make(&c, race->row->peer, NULL, race->s, &race->peer->error)) {
        race->peer->failed = true; // said before anything is started
        return;
    }
    for (int i = 0; i < race->n && !race->alone; i++)
        runner_start(race, &race->all[i]);
    if (race->peer && racing(race, 0))
        runner_start(race, race->peer);
}

static void run_class(struct race *race, struct runner *r, int round)
{
    if (race->alone)
        runner_start(race, r);
    if (!r->failed)
        runner_run(race, r);
    if (race->alone || (round + 1 == r->wanted && r->wanted < race->s->runs))
        runner_rest(r); // its memory serves the others
}

static void run_rounds(struct race *race)
{
    for (int round = 0; racing(race, round); round++) {
        for (int i = 0; i < race->n; i++)
            if (!race->all[i].failed && race->all[i].wanted > round)
                run_class(race, &race->all[i], round);
        if (!race->peer)
            continue;
        if (racing(race, round))
            runner_run(race, race->peer);
        if (race->peer->failed)
            return;
    }
}

// ---- results ------------------------------------------------------------------------------------------------------------

static void side_set(struct bench_side *side, const struct runner *r)
{
    snprintf(side->name, sizeof side->name, "%s", r->name);
    side->ready = json_incref(r->ready);
}

static void keep_first(json_t *list, size_t n)
{
    while (json_array_size(list) > n)
        json_array_remove(list, n);
}

static void conclude(const struct race *race, const struct runner *r, struct bench_result *ret)
{
    const struct runner *peer = race->peer;
    size_t n = json_array_size(r->answers), n_peer = peer ? json_array_size(peer->answers) : n;
    n = n < n_peer ? n : n_peer;
    *ret = (struct bench_result){.row = race->row, .isa = r->isa};
    double run_s = r->run_s + (peer ? peer->run_s : 0);
    ret->waiting_cpu = run_s > 0 ? (r->waiting_s + (peer ? peer->waiting_s : 0)) / run_s : 0;
    ret->complete = n == (size_t)r->wanted && (!peer || n_peer == (size_t)race->s->runs);
    if (!ret->complete && r->failed)
        ret->error = r->error;
    else if (!ret->complete && peer && peer->failed)
        ret->error = peer->error;
    else if (!ret->complete) // the class that the other rounds were for gave up
        error_set(&ret->error, STATUS_PEER, "%s ran in %zu of %d rounds", peer ? peer->name : r->name,
                  peer ? n_peer : n, race->s->runs);
    if (n == 0)
        return;
    keep_first(r->answers, n);
    side_set(&ret->ours, r);
    if (peer)
        side_set(&ret->other, peer);
    if (bench_result_conclude(ret, r->answers, peer ? peer->answers : NULL, &ret->error))
        ret->complete = false;
}

void bench_row_run(struct loop *l, const struct bench_row *row, const struct bench_setting *s,
                   struct bench_result *results)
{
    struct race race;
    race_init(&race, l, row, s);
    start_all(&race);
    if (!race.peer || !race.peer->failed)
        run_rounds(&race);
    for (int i = 0; i < race.n; i++)
        conclude(&race, &race.all[i], &results[i]);
    for (int i = 0; i < race.n + (race.peer != NULL); i++)
        runner_done(&race.all[i]);
}
