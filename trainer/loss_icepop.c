// loss icepop: GRPO's clipped surrogate, times the ratio between trainer and engine where that ratio is believable. GLM-5
// technical report, arXiv 2602.15763, §3.2, Eq. 1; IcePop is the Ling team's. No KL term.
//
//   rho_t = exp(lp_old_t - lp_roll_t);  pop(rho) = rho if 1/beta <= rho <= beta (inclusive), else 0
//   r_t = exp(lp_t - lp_old_t)
//   term_t = - pop(rho_t) min(r_t A_t, clip(r_t, 1 - eps_low, 1 + eps_high) A_t)
//   d term_t / d lp_t = - pop(rho_t) r_t A_t where the unclipped branch is the smaller one (or equal), else 0
// lp_old and lp_roll are constants. With one update a batch lp_old is lp, detached: r == 1 and nothing is clipped.
#include <math.h>

#include "trainer/loss.h"

void loss_icepop(const struct loss_params *p, const struct loss_input *in, const struct loss_output *out,
                 struct loss_stats *stats)
{
    const double low = 1 - p->eps_low, high = 1 + p->eps_high;
    for (int64_t t = 0; t < in->n; t++) {
        out->term[t] = out->dlp[t] = 0;
        out->kept[t] = 0;
        if (!in->mask[t])
            continue;
        double a = in->advantage[t];
        double rho = loss_exp((double)in->lp_old[t] - (double)in->lp_roll[t]);
        double r = loss_exp((double)in->lp[t] - (double)in->lp_old[t]);
        stats->n++;
        stats->ratio_sum += fmin(rho, LOSS_RATIO_CAP);
        stats->masked_high += rho > p->beta;
        stats->masked_low += rho < 1 / p->beta;
        if (isnan(rho) || isnan(r)) {
            out->term[t] = out->dlp[t] = NAN;
            continue;
        }
        if (rho > p->beta || rho < 1 / p->beta)
            continue;
        double plain = r * a, clipped = fmin(fmax(r, low), high) * a;
        bool unclipped = plain <= clipped;
        out->kept[t] = 1;
        out->term[t] = -rho * (unclipped ? plain : clipped);
        out->dlp[t] = unclipped ? -rho * plain : 0;
        stats->clipped_high += !unclipped && r > high;
        stats->clipped_low += !unclipped && r < low;
    }
}
