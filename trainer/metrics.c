// metrics: see metrics.h. The compute thread owns a struct metrics; sums run in the order of micro-batches, in double.
#include "trainer/metrics.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void add_stats(struct loss_stats *to, const struct loss_stats *s)
{
    to->n += s->n;
    to->ratio_sum += s->ratio_sum;
    to->masked_high += s->masked_high;
    to->masked_low += s->masked_low;
    to->clipped_high += s->clipped_high;
    to->clipped_low += s->clipped_low;
}

static void add_sums(struct metrics_sums *to, const struct metrics_sums *s)
{
    to->n += s->n;
    to->entropy += s->entropy;
    to->abs_diff += s->abs_diff;
    to->kl += s->kl;
    add_stats(&to->loss, &s->loss);
}

void metrics_add(struct metrics *m, const struct loss_input *in, const float *entropy, bool rollout,
                 int32_t task, const struct loss_stats *stats)
{
    struct metrics_sums s = {.loss = *stats};
    for (int64_t t = 0; t < in->n; t++) {
        if (!in->mask[t])
            continue;
        s.n++;
        s.entropy += (double)entropy[t];
        if (rollout) {
            double d = (double)in->lp[t] - (double)in->lp_roll[t];
            double held = fmin(fmax(d, -20), 20);
            s.abs_diff += fabs(d);
            s.kl += loss_exp(held) - 1 - held;
        }
    }
    add_sums(&m->all, &s);
    if (task >= 0 && task < METRICS_TASKS)
        add_sums(&m->task[task], &s);
}

void metrics_put(struct metrics_list *l, const char *name, double value)
{
    if (l->n == MSG_METRICS || !isfinite(value))
        return;
    snprintf(l->text[l->n], sizeof l->text[0], "%s", name);
    l->items[l->n] = (struct msg_metric){l->text[l->n], value};
    l->n++;
}

// task < 0: of all. The trainer knows tasks by their numbers only; the orchestrator writes their names.
static void put_sums(struct metrics_list *l, const struct metrics_sums *s, bool rollout, int32_t task)
{
    const struct {
        const char *name;
        double sum;
        bool wanted;
    } means[] = {
        {"train/entropy", s->entropy, true},
        {"train/ratio_mean", s->loss.ratio_sum, rollout},
        {"train/masked_high", (double)s->loss.masked_high, rollout},
        {"train/masked_low", (double)s->loss.masked_low, rollout},
        {"train/clipped_high", (double)s->loss.clipped_high, rollout},
        {"train/clipped_low", (double)s->loss.clipped_low, rollout},
        {"train/rollout_logprob_abs_diff", s->abs_diff, rollout},
        {"train/mismatch_kl", s->kl, rollout},
    };
    char name[sizeof l->text[0]], suffix[24] = "";
    if (!s->n)
        return;
    if (task >= 0)
        snprintf(suffix, sizeof suffix, "/" MSG_METRIC_TASK "%d", task);
    for (size_t i = 0; i < sizeof means / sizeof means[0]; i++) {
        if (!means[i].wanted || (task >= 0 && i >= 4))
            continue;
        snprintf(name, sizeof name, "%s%s", means[i].name, suffix);
        metrics_put(l, name, means[i].sum / (double)s->n);
    }
    if (task >= 0) {
        snprintf(name, sizeof name, "train/tokens_trained%s", suffix);
        metrics_put(l, name, (double)s->n);
    }
}

void metrics_finish(const struct metrics *m, bool rollout, double lr, struct metrics_list *ret)
{
    double updates = m->updates ? (double)m->updates : 1;
    ret->n = 0;
    metrics_put(ret, "train/loss", m->loss / updates);
    metrics_put(ret, "train/grad_norm", m->grad_norm / updates);
    metrics_put(ret, "train/entropy_bonus", m->entropy_bonus / updates);
    metrics_put(ret, "train/lr", lr);
    metrics_put(ret, "train/updates", (double)m->updates);
    metrics_put(ret, "train/tokens", (double)m->tokens);
    metrics_put(ret, "train/tokens_trained", (double)m->tokens_trained);
    metrics_put(ret, "train/shared_tokens", (double)m->shared_tokens);
    metrics_put(ret, "train/sequences", (double)m->sequences);
    metrics_put(ret, "train/micro_batches", (double)m->micro_batches);
    put_sums(ret, &m->all, rollout, -1);
    for (int32_t i = 0; i < METRICS_TASKS; i++)
        put_sums(ret, &m->task[i], rollout, i);
}
