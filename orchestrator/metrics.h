// Figures of the run: one line a step in RUN/metrics.jsonl (names: "Files" of protocols.md), the same names for TensorBoard and Prometheus,
// short series for `ooze status`.
#ifndef ORCHESTRATOR_METRICS_H
#define ORCHESTRATOR_METRICS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/json.h"
#include "orchestrator/tensorboard.h"
#include "proto/msg.h"

struct orch;
struct task;
struct member_result;
struct eval;

#define METRICS_SERIES 120
#define METRICS_NAMES  512
#define METRICS_TASKS  256

struct metric_mean {
    double sum;
    int64_t n;
};

struct metric_series {
    double v[METRICS_SERIES]; // newest last
    int n;
};

struct metrics {
    FILE *file;
    int64_t newest_line; // step of the newest line when the file was opened, -1 = none
    struct tensorboard *tensorboard;
    struct { // of the step being prepared or trained
        struct metric_mean reward[METRICS_TASKS];
        struct metric_mean length, turns, truncated, lag;
        int64_t lag_max;
    } step;
    struct metric_series reward[METRICS_TASKS], loss;
    double reward_last[METRICS_TASKS];
    struct metric_mean recent_lag;
    int64_t lag_max;
    int64_t stale_before, generated_before;
    int64_t last_commit_ms;
    int64_t scored; // episodes since the start
    double load_ms;
    bool generating; // engines had jobs when last looked
    int64_t generate_seen_ms, generate_ms;
    double generate_tok_s, train_tok_s;
    int n_last;
    struct {
        char name[96];
        double value;
    } last[METRICS_NAMES]; // newest value of each name
};

enum status metrics_open(struct orch *o, struct error *err) OOZE_MUST_USE;
// When committed_steps is known: the lines of steps that were committed and never written, at most METRICS_SERIES.
enum status metrics_catch_up(struct orch *o, struct error *err) OOZE_MUST_USE;
void metrics_close(struct orch *o);

void metrics_on_scored(struct orch *o, const struct task *t, const struct member_result *r);
void metrics_on_loaded(struct orch *o, const struct msg_loaded *l);
// Called in every turn of the loop: time/generate is the time since the last step in which engines had jobs.
void metrics_generating(struct orch *o);
void metrics_step_begin(struct orch *o);
// A member of step `step` (which consumes weights `step`).
void metrics_step_member(struct orch *o, const struct task *t, const struct member_result *r, int64_t step);
// The line of the step whose result m is, as a JSON object; free() it.
char *metrics_step_json(struct orch *o, const struct msg_step_done *m);
// After its commit: into the file and the series.
void metrics_step_written(struct orch *o, const struct msg_step_done *m, const char *json);
// fields: ,"eval/…":…
void metrics_eval(struct orch *o, const struct eval *e, const char *fields);
// The outcome of a parity check: parity/… of the step.
void metrics_parity(struct orch *o, int64_t step, const struct msg_check_done *m);
void metrics_prometheus(struct orch *o, struct buf *out);
void metrics_status(struct orch *o, json_t *status); // adds reward, lag, throughput, series

#endif
