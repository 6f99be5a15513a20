// Prompts and shares; see sampler.h. Runs on the loop's thread.
#include "orchestrator/sampler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "orchestrator/orch.h"
#include "rl/shuffle.h"

struct task *sampler_pick(struct orch *o)
{
    struct task *best = NULL;
    for (int i = 0; i < o->tasks.n; i++) {
        struct task *t = o->tasks.v[i];
        if (!task_is_up(t) || t->n_train == 0)
            continue;
        if (!best || t->pass < best->pass)
            best = t;
    }
    return best;
}

int64_t sampler_prompt(uint64_t seed, const char *task, int64_t n, int64_t cursor, int64_t *ret_epoch)
{
    if (n < 0) {
        *ret_epoch = 0;
        return cursor;
    }
    uint64_t key[2] = {hash64(task, strlen(task)), (uint64_t)(cursor / n)};
    *ret_epoch = cursor / n;
    return (int64_t)shuffle_at(seed, hash64(key, sizeof key), (uint64_t)n, (uint64_t)(cursor % n));
}

int64_t sampler_next(struct orch *o, struct task *t, int64_t *ret_epoch)
{
    int64_t index = sampler_prompt(o->cfg->seed, t->cfg.name, t->n_train, t->cursor, ret_epoch);
    t->cursor++;
    t->pass += 1 / t->cfg.ratio;
    return index;
}

uint64_t sampler_seed(const struct orch *o, const struct task *t, int64_t index, int64_t epoch, bool eval)
{
    uint64_t key[4] = {hash64(t->cfg.name, strlen(t->cfg.name)), (uint64_t)index, (uint64_t)epoch, eval};
    return hash64_seed(key, sizeof key, o->cfg->seed) & (((uint64_t)1 << 53) - 1);
}

// "cursor pass": a task that joined late, or came back, stands at a pass its cursor does not tell. Ledgers of before have the cursor alone.
enum status sampler_save(struct orch *o, struct task *t, struct error *err)
{
    char key[96], value[64];
    snprintf(key, sizeof key, "prompt_cursor/%s", t->cfg.name);
    snprintf(value, sizeof value, "%lld %.17g", (long long)t->cursor, t->pass);
    return ledger_meta_set(o->ledger, key, value, err);
}

void sampler_load(struct orch *o, struct task *t)
{
    char key[96], *value = NULL, *end;
    struct error none;
    snprintf(key, sizeof key, "prompt_cursor/%s", t->cfg.name);
    if (ledger_meta_get(o->ledger, key, &value, &none))
        return;
    t->cursor = strtoll(value, &end, 10);
    t->pass = *end == ' ' ? strtod(end, NULL) : (double)t->cursor / t->cfg.ratio;
    free(value);
}

void sampler_level(struct orch *o)
{
    double floor = 0;
    for (int i = 0; i < o->tasks.n; i++) {
        const struct task *t = o->tasks.v[i];
        if (t->cursor > 0 && t->pass - 1 / t->cfg.ratio > floor)
            floor = t->pass - 1 / t->cfg.ratio;
    }
    for (int i = 0; i < o->tasks.n; i++)
        if (o->tasks.v[i]->pass < floor)
            o->tasks.v[i]->pass = floor;
}
