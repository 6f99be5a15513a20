// loss ppo_clip: the clipped surrogate of PPO (Schulman et al. 2017, arXiv 1707.06347, Eq. 7).
//
//   r_t = exp(lp_t - lp_old_t)
//   term_t = - min(r_t A_t, clip(r_t, 1 - eps_low, 1 + eps_high) A_t)
//   d term_t / d lp_t = - r_t A_t where the unclipped branch is the smaller one (or equal), else 0
// `old_logprob: recompute` takes lp_old from the trainer before the first update of the batch; `rollout` bypasses that pass:
// the caller then passes lp_roll as lp_old. Clipping rejects no token: kept is the mask.
#include <math.h>

#include "trainer/loss.h"

void loss_ppo_clip(const struct loss_params *p, const struct loss_input *in, const struct loss_output *out,
                   struct loss_stats *stats)
{
    const double low = 1 - p->eps_low, high = 1 + p->eps_high;
    for (int64_t t = 0; t < in->n; t++) {
        out->term[t] = out->dlp[t] = 0;
        out->kept[t] = in->mask[t] != 0;
        if (!in->mask[t])
            continue;
        double a = in->advantage[t];
        double r = loss_exp((double)in->lp[t] - (double)in->lp_old[t]);
        stats->n++;
        stats->ratio_sum += fmin(r, LOSS_RATIO_CAP);
        if (isnan(r)) {
            out->term[t] = out->dlp[t] = r;
            continue;
        }
        double plain = r * a, clipped = fmin(fmax(r, low), high) * a;
        bool unclipped = plain <= clipped;
        out->term[t] = -(unclipped ? plain : clipped);
        out->dlp[t] = unclipped ? -plain : 0;
        stats->clipped_high += !unclipped && r > high;
        stats->clipped_low += !unclipped && r < low;
    }
}
