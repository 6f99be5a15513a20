// Admission and lag: see admission.h. Pure functions, any thread.
#include "rl/admission.h"

int64_t admission_bound(int64_t max_lag, int64_t version, int64_t groups_per_step, int64_t steps)
{
    int64_t ahead = max_lag + version + 1;
    return (ahead < steps ? ahead : steps) * groups_per_step;
}

bool admission_open(int64_t running, int64_t accepted, int64_t bound)
{
    return running + accepted < bound;
}

int64_t lag_of(int64_t step, int64_t version_min)
{
    return step - version_min;
}

bool lag_is_stale(int64_t step, int64_t version_min, int64_t max_lag)
{
    return lag_of(step, version_min) > max_lag;
}
