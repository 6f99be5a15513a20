// loss two_sided_is: importance sampling with a mask on both sides, for asynchronous agentic RL. GLM-5 technical report,
// arXiv 2602.15763, §4.1, Eq. 3-5. No old policy is kept: the engine's log-probability is the behaviour policy.
//
//   r_t = exp(lp_t - lp_roll_t)
//   f(r) = r if 1 - eps_low < r < 1 + eps_high (strict), else 0
//   term_t = - sg(f(r_t)) A_t lp_t          sg: stop-gradient
//   d term_t / d lp_t = - f(r_t) A_t
#include <math.h>

#include "trainer/loss.h"

void loss_two_sided_is(const struct loss_params *p, const struct loss_input *in,
                       const struct loss_output *out, struct loss_stats *stats)
{
    const double low = 1 - p->eps_low, high = 1 + p->eps_high;
    for (int64_t t = 0; t < in->n; t++) {
        out->term[t] = out->dlp[t] = 0;
        out->kept[t] = 0;
        if (!in->mask[t])
            continue;
        double lp = in->lp[t], a = in->advantage[t];
        double r = loss_exp(lp - (double)in->lp_roll[t]);
        bool inside = r > low && r < high;
        stats->n++;
        stats->ratio_sum += fmin(r, LOSS_RATIO_CAP);
        stats->masked_high += r >= high;
        stats->masked_low += r <= low;
        if (isnan(r)) { // a NaN is outside of every interval; it must reach the step's check all the same
            out->term[t] = out->dlp[t] = r;
        } else if (inside) {
            out->term[t] = -r * a * lp;
            out->dlp[t] = -r * a;
            out->kept[t] = 1;
        }
    }
}
