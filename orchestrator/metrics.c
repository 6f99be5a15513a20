// Metrics; see metrics.h. Runs on the loop's thread. A line that cannot be written (full disk) is a warning: the same figures are in the
// ledger's step.
#include "orchestrator/metrics.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "ledger/reader.h"
#include "orchestrator/orch.h"
#include "rl/admission.h"

#define TAIL (1 << 18) // bytes of metrics.jsonl looked at when it is opened: a line has some 2,000

static void mean_add(struct metric_mean *m, double v)
{
    m->sum += v;
    m->n++;
}

static double mean_of(const struct metric_mean *m)
{
    return m->n ? m->sum / (double)m->n : 0;
}

static void series_add(struct metric_series *s, double v)
{
    if (s->n == METRICS_SERIES)
        memmove(s->v, s->v + 1, (size_t)--s->n * sizeof s->v[0]);
    s->v[s->n++] = v;
}

// Cuts off a line that its writer did not live to end, and finds the newest step with a line: -1 = none has, INT64_MAX = none among the
// last TAIL bytes.
static enum status tail_mend(const char *path, int64_t *ret_step, struct error *err)
{
    char *tail = mem_must(1, TAIL), *end;
    struct stat st;
    enum status rc = STATUS_OK;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    *ret_step = -1;
    if (fd < 0 || fstat(fd, &st) < 0) {
        rc = error_errno(err, errno, "opening %s", path);
        goto out;
    }
    const off_t from = st.st_size > TAIL ? st.st_size - TAIL : 0;
    *ret_step = from > 0 ? INT64_MAX : -1;
    ssize_t n = pread(fd, tail, TAIL, from);
    if (n < 0) {
        rc = error_errno(err, errno, "reading %s", path);
        goto out;
    }
    end = memrchr(tail, '\n', (size_t)n);
    const off_t whole =
        end ? from + (end + 1 - tail) : from; // without a single line end it is no file of ours past TAIL
    if (whole < st.st_size && (end || from == 0) && ftruncate(fd, whole) < 0)
        rc = error_errno(err, errno, "cutting a half-written line off %s", path);
    for (char *line = tail, *eol; end && line <= end && !rc; line = eol + 1) {
        json_t *j;
        struct error none;
        eol = memchr(line, '\n', (size_t)(end + 1 - line));
        if (json_parse(line, (size_t)(eol - line), "line", &j, &none))
            continue;                                       // the first one here may lack its beginning
        if (json_is_boolean(json_object_get(j, "applied"))) // of a step, not of an evaluation
            *ret_step = json_integer_value(json_object_get(j, "step"));
        json_decref(j);
    }
out:
    if (fd >= 0)
        close(fd);
    free(tail);
    return rc;
}

static void line_write(struct orch *o, const char *json);

// A step's line is written when the step is durable: who ended in between left the last one out.
enum status metrics_catch_up(struct orch *o, struct error *err)
{
    json_t *rows = NULL, *row;
    size_t i;
    const int64_t n = o->committed_steps - 1 - o->metrics.newest_line;
    if (n <= 0)
        return STATUS_OK;
    enum status rc =
        ledger_step_metrics(o->ledger, n < METRICS_SERIES ? (int32_t)n : METRICS_SERIES, &rows, err);
    json_array_foreach(rows, i, row)
    {
        json_t *metrics = json_object_get(row, "metrics");
        char *text = json_is_object(metrics) ? json_text(metrics) : NULL;
        if (text)
            line_write(o, text);
        free(text);
    }
    json_decref(rows);
    return rc;
}

enum status metrics_open(struct orch *o, struct error *err)
{
    char path[RUNCONFIG_PATH + 32];
    snprintf(path, sizeof path, "%s/metrics.jsonl", o->run_dir);
    enum status rc = tail_mend(path, &o->metrics.newest_line, err);
    if (rc)
        return rc;
    o->metrics.file = fopen(path, "ae");
    if (!o->metrics.file)
        return error_errno(err, errno, "opening %s", path);
    return tensorboard_open(o->run_dir, clock_wall_ms(o->clock), &o->metrics.tensorboard, err);
}

void metrics_close(struct orch *o)
{
    if (o->metrics.file)
        fclose(o->metrics.file);
    o->metrics.file = NULL;
    tensorboard_close(o->metrics.tensorboard);
    o->metrics.tensorboard = NULL;
}

static void line_write(struct orch *o, const char *json)
{
    if (fprintf(o->metrics.file, "%s\n", json) < 0 || fflush(o->metrics.file)) {
        orch_warn(o, "metrics_lost", "cause=\"%s\"", strerror(errno));
        clearerr(o->metrics.file);
    }
    struct error err;
    json_t *j = NULL, *v;
    const char *name;
    if (json_parse(json, strlen(json), "metrics", &j, &err))
        return;
    if (tensorboard_write(o->metrics.tensorboard, json_integer_value(json_object_get(j, "wall_ms")),
                          json_integer_value(json_object_get(j, "step")), j, &err))
        orch_warn(o, "metrics_lost", "cause=\"%s\"", err.text);
    json_object_foreach(j, name, v)
    {
        int i = 0;
        if (!json_is_number(v))
            continue;
        while (i < o->metrics.n_last && strcmp(o->metrics.last[i].name, name) != 0)
            i++;
        if (i == METRICS_NAMES)
            continue;
        if (i == o->metrics.n_last) {
            snprintf(o->metrics.last[i].name, sizeof o->metrics.last[i].name, "%s", name);
            o->metrics.n_last++;
        }
        o->metrics.last[i].value = json_number_value(v);
    }
    json_decref(j);
}

void metrics_on_scored(struct orch *o, const struct task *t, const struct member_result *r)
{
    (void)t;
    (void)r;
    o->metrics.scored++;
}

void metrics_on_loaded(struct orch *o, const struct msg_loaded *l)
{
    o->metrics.load_ms = l->load_ms;
}

void metrics_generating(struct orch *o)
{
    struct metrics *x = &o->metrics;
    int64_t now = orch_now(o);
    if (x->generating)
        x->generate_ms += now - x->generate_seen_ms;
    x->generate_seen_ms = now;
    x->generating = false;
    for (int i = 0; i < PEERS_MAX && !x->generating; i++)
        x->generating = o->peers.v[i].role == ROLE_ENGINE && o->peers.v[i].jobs.n > 0;
}

void metrics_step_begin(struct orch *o)
{
    memset(&o->metrics.step, 0, sizeof o->metrics.step);
}

void metrics_step_member(struct orch *o, const struct task *t, const struct member_result *r, int64_t step)
{
    struct metrics *m = &o->metrics;
    if (t && t->id < METRICS_TASKS)
        mean_add(&m->step.reward[t->id], r->reward);
    mean_add(&m->step.length, r->n_sampled);
    mean_add(&m->step.turns, r->n_turns);
    mean_add(&m->step.truncated, r->truncated);
    if (r->version_min < 0)
        return;
    int64_t lag = lag_of(step, r->version_min);
    mean_add(&m->step.lag, (double)lag);
    if (lag > m->step.lag_max)
        m->step.lag_max = lag;
}

static void put(struct buf *b, const char *name, double v)
{
    buf_putc(b, ',');
    json_put_string(b, name, strlen(name));
    if (isfinite(v))
        buf_printf(b, ":%.9g", v);
    else
        buf_puts(b, ":null");
}

// The trainer's name of a metric, with the name of the task for its number.
static const char *metric_name(const struct orch *o, const char *name, char *buf, size_t n)
{
    const char *at = strstr(name, "/" MSG_METRIC_TASK);
    char *end;
    if (!at)
        return name;
    int64_t id = strtoll(at + sizeof MSG_METRIC_TASK, &end, 10);
    if (*end || id < 0 || id >= o->tasks.n)
        return name;
    snprintf(buf, n, "%.*s/%s", (int)(at - name), name, o->tasks.v[id]->cfg.name);
    return buf;
}

char *metrics_step_json(struct orch *o, const struct msg_step_done *m)
{
    struct metrics *x = &o->metrics;
    const struct run_stage *stage = orch_stage(o);
    struct buf b = {0};
    char name[160];
    int64_t now = orch_now(o);
    buf_printf(&b, "{\"step\":%" PRId64 ",\"stage\":\"%s\",\"wall_ms\":%" PRId64 ",\"applied\":%s", m->step,
               stage ? stage->name : "", clock_wall_ms(o->clock),
               m->outcome == STEP_APPLIED ? "true" : "false");
    for (int i = 0; i < o->tasks.n && i < METRICS_TASKS; i++)
        if (x->step.reward[i].n) {
            snprintf(name, sizeof name, "reward/%s/mean", o->tasks.v[i]->cfg.name);
            put(&b, name, mean_of(&x->step.reward[i]));
        }
    if (x->step.length.n) {
        put(&b, "rollout/response_len", mean_of(&x->step.length));
        put(&b, "rollout/turns", mean_of(&x->step.turns));
        put(&b, "rollout/truncated", mean_of(&x->step.truncated));
        put(&b, "lag/mean", mean_of(&x->step.lag));
        put(&b, "lag/max", (double)x->step.lag_max);
        put(&b, "lag/dropped", (double)(o->groups.stale - x->stale_before));
    }
    double generated = (double)(o->router.generated_tokens - x->generated_before);
    double seconds = x->last_commit_ms ? (double)(now - x->last_commit_ms) / 1000 : 0;
    if (seconds > 0) {
        put(&b, "time/step", seconds);
        x->generate_tok_s = generated / seconds;
        put(&b, "perf/generate_tokens_per_s", x->generate_tok_s);
    }
    put(&b, "time/generate", (double)x->generate_ms / 1000);
    put(&b, "time/wait_for_batch", o->step.wait_ms / 1000);
    put(&b, "time/weight_sync", x->load_ms / 1000);
    put(&b, "lr", o->step.message.lr);
    for (int32_t i = 0; i < m->n_metrics; i++) {
        put(&b, metric_name(o, m->metrics[i].name, name, sizeof name), m->metrics[i].value);
        if (strcmp(m->metrics[i].name, "perf/tokens_per_s") == 0)
            x->train_tok_s = m->metrics[i].value;
    }
    buf_putc(&b, '}');
    return buf_take(&b, NULL);
}

void metrics_step_written(struct orch *o, const struct msg_step_done *m, const char *json)
{
    struct metrics *x = &o->metrics;
    line_write(o, json);
    for (int i = 0; i < o->tasks.n && i < METRICS_TASKS; i++)
        if (x->step.reward[i].n) {
            x->reward_last[i] = mean_of(&x->step.reward[i]);
            series_add(&x->reward[i], x->reward_last[i]);
        }
    if (x->step.lag.n) {
        x->recent_lag = x->step.lag;
        x->lag_max = x->step.lag_max;
    }
    for (int32_t i = 0; i < m->n_metrics; i++)
        if (strcmp(m->metrics[i].name, "train/loss") == 0)
            series_add(&x->loss, m->metrics[i].value);
    x->stale_before = o->groups.stale;
    x->generated_before = o->router.generated_tokens;
    x->last_commit_ms = orch_now(o);
    x->generate_ms = 0;
}

void metrics_eval(struct orch *o, const struct eval *e, const char *fields)
{
    struct buf b = {0};
    buf_printf(&b, "{\"step\":%" PRId64 ",\"label\":\"%s\",\"wall_ms\":%" PRId64 ",\"time/eval\":%.9g",
               e->version, e->label, clock_wall_ms(o->clock), (double)(orch_now(o) - e->started_ms) / 1000);
    buf_puts(&b, fields);
    buf_putc(&b, '}');
    line_write(o, b.data);
    buf_done(&b);
}

void metrics_parity(struct orch *o, int64_t step, const struct msg_check_done *m)
{
    const struct ledger_parity_totals *t = &o->check.totals;
    struct buf b = {0};
    buf_printf(&b, "{\"step\":%" PRId64 ",\"wall_ms\":%" PRId64, step, clock_wall_ms(o->clock));
    put(&b, "parity/max_abs_diff", m->compared ? m->max_abs_diff : NAN);
    put(&b, "parity/coverage", t->tokens_trained > 0 ? (double)t->tokens / (double)t->tokens_trained : 0);
    put(&b, "parity/trajectories", (double)t->segments);
    put(&b, "parity/refit_crossings", (double)t->crossing);
    put(&b, "parity/skipped", (double)t->skipped);
    buf_putc(&b, '}');
    line_write(o, b.data);
    buf_done(&b);
}

// ---- views ------------------------------------------------------------------------------------------------------------------

static void gauge(struct buf *out, const char *name, double v)
{
    buf_puts(out, "ooze_");
    for (const char *c = name; *c; c++)
        buf_putc(out, isalnum((unsigned char)*c) ? *c : '_');
    buf_printf(out, " %.9g\n", v);
}

void metrics_prometheus(struct orch *o, struct buf *out)
{
    for (int i = 0; i < o->metrics.n_last; i++)
        gauge(out, o->metrics.last[i].name, o->metrics.last[i].value);
    gauge(out, "weights_version", (double)o->weights.version);
    gauge(out, "committed_steps", (double)o->committed_steps);
    gauge(out, "groups_running", o->groups.n_running);
    gauge(out, "groups_ready", o->groups.n_ready);
    gauge(out, "episodes", (double)o->episodes.by_serial.n);
    gauge(out, "jobs_waiting", o->router.waiting.n);
    gauge(out, "engines_up", peers_engines_up(o));
    gauge(out, "generated_tokens_total", (double)o->router.generated_tokens);
    gauge(out, "http_in_flight", http_client_in_flight(o->http));
    for (int i = 0; i < o->tasks.n; i++) {
        const struct task *t = o->tasks.v[i];
        buf_printf(out, "ooze_task_up{task=\"%s\"} %d\nooze_task_episodes_total{task=\"%s\"} %" PRId64 "\n",
                   t->cfg.name, task_is_up(t), t->cfg.name, t->episodes);
        buf_printf(out,
                   "ooze_task_failures_total{task=\"%s\"} %" PRId64 "\nooze_task_running{task=\"%s\"} %d\n",
                   t->cfg.name, t->failures, t->cfg.name, t->running);
    }
}

static json_t *series_json(const struct metric_series *s)
{
    json_t *a = json_array();
    for (int i = 0; i < s->n; i++)
        json_array_append_new(a, json_real(isfinite(s->v[i]) ? s->v[i] : 0));
    return a;
}

void metrics_status(struct orch *o, json_t *status)
{
    struct metrics *x = &o->metrics;
    json_t *reward = json_object(), *series = json_object();
    for (int i = 0; i < o->tasks.n && i < METRICS_TASKS; i++) {
        const struct metric_series *s = &x->reward[i];
        double sum = 0;
        int n = s->n < 10 ? s->n : 10; // mean of the last ten steps
        for (int k = s->n - n; k < s->n; k++)
            sum += s->v[k];
        if (o->tasks.v[i]->state != TASK_REMOVED || s->n)
            json_object_set_new(reward, o->tasks.v[i]->cfg.name,
                                json_pack("{s:f, s:f, s:o}", "mean", n ? sum / n : 0.0, "last",
                                          x->reward_last[i], "series", series_json(s)));
    }
    json_object_set_new(series, "train/loss", series_json(&x->loss));
    json_object_set_new(status, "reward", reward);
    json_object_set_new(
        status, "lag",
        json_pack("{s:f, s:I}", "mean", mean_of(&x->recent_lag), "max", (json_int_t)x->lag_max));
    json_object_set_new(
        status, "throughput",
        json_pack("{s:f, s:f}", "generate_tok_s", x->generate_tok_s, "train_tok_s", x->train_tok_s));
    json_object_set_new(status, "series", series);
}
