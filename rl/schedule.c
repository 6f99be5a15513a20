// schedule: see schedule.h. Pure; any thread.
#include "rl/schedule.h"

#include <math.h>

double schedule_lr(const struct run_optimizer *o, int64_t step, int64_t total)
{
    const double pi = 3.14159265358979323846;
    int64_t w = o->warmup_steps;
    if (step < w)
        return o->lr * (double)(step + 1) / (double)w;
    if (o->schedule == RUN_LR_CONSTANT)
        return o->lr;
    double x = total > w ? (double)(step - w + 1) / (double)(total - w) : 1;
    x = x > 1 ? 1 : x;
    double e = o->final_lr_ratio;
    if (o->schedule == RUN_LR_LINEAR)
        return o->lr * (1 - (1 - e) * x);
    return o->lr * (e + (1 - e) * 0.5 * (1 + cos(pi * x)));
}
