// loss sft: cross entropy on the masked tokens.
//
//   term_t = - lp_t;  d term_t / d lp_t = -1
// Advantages and the engine's log-probabilities are not read; the ratio is 1 by definition.
#include "trainer/loss.h"

void loss_sft(const struct loss_params *p, const struct loss_input *in, const struct loss_output *out,
              struct loss_stats *stats)
{
    (void)p;
    for (int64_t t = 0; t < in->n; t++) {
        bool on = in->mask[t] != 0;
        out->term[t] = on ? -(double)in->lp[t] : 0;
        out->dlp[t] = on ? -1 : 0;
        out->kept[t] = on;
        stats->n += on;
        stats->ratio_sum += on;
    }
}
