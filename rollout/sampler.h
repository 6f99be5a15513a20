// From logits to tokens. Every row is sampled from its own logits, parameters and uniform number alone, so a token does not
// depend on the batch it was sampled in (contract 3).
//
//   z = logits / temperature (by the kernels' own operation, the trainer's too); p = softmax(z)
//   kept set K   top_k: the k likeliest; then top_p: the fewest likeliest whose share of what is left reaches top_p; then
//                min_p: those with p >= min_p * max p. Ties: the lower id first. Stop ids are not in K before min_new.
//   token        the first t, in order of ids (order of likelihood when K is truncated), at which the running sum of p
//                exceeds uniform * sum of p over K; of the whole distribution the kernels' `sample` draws it
//   logprob      z_t - lse(z), minus log of the mass of K when K is truncated: the distribution sampled from
//   temperature 0: the likeliest id, the lowest on a tie; its logprob is that at temperature 1 (a point mass has none to tell)
//
// Owner: the compute thread; the device's pool works inside sampler_run.
#ifndef ROLLOUT_SAMPLER_H
#define ROLLOUT_SAMPLER_H

#include "kernels/kernels.h"
#include "proto/msg.h"

#define SAMPLER_TOP_MAX 32

struct sampler;

struct sampler_row {
    const struct msg_sampling *sampling;
    float inv_temp;      // sampler_inv_temp(sampling->temperature)
    float uniform;       // in (0, 1)
    int32_t n_forbidden; // ids that must not be sampled
    const int32_t *forbidden;
    int32_t n_top;    // likeliest ids to report, at this temperature, before truncation; <= SAMPLER_TOP_MAX
    int32_t *top_ids; // [n_top] out
    float *top_logprobs; // [n_top] out
    int32_t token;       // out; -1 when the logits are not finite
    float logprob;       // out
};

// For at most max_rows rows at a time, of n_vocab logits each.
enum status sampler_open(struct device *d, int32_t max_rows, int64_t n_vocab, struct sampler **ret,
                         struct error *err) OOZE_MUST_USE;
void sampler_close(struct sampler *s);

// logits [n, n_vocab].
void sampler_run(struct sampler *s, int32_t n, const float *logits, struct sampler_row *rows);

// 1 / temperature; 1 for temperature 0. The trainer divides the same way.
float sampler_inv_temp(float temperature);
// Does top-k, top-p or min-p restrict anything?
bool sampler_truncates(const struct msg_sampling *s);
// STATUS_INVALID with what is wrong and what is allowed; STATUS_REFUSED for a training request that contract 3 forbids.
enum status sampler_check(const struct msg_sampling *s, int64_t n_vocab, struct error *err) OOZE_MUST_USE;

#endif
