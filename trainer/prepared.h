// A prepared step, checked and indexed: which rows each sequence trains, which segments belong to one trajectory, which
// trajectories to one group, and which groups to which update.
//
// A member's tokens are ids[first … first + n_tokens). Row r of the forward pass reads ids[first + r] and predicts token r + 1;
// rows behind the last trained token are never computed. Trajectories are (trajectory, attempt); both they and groups are
// numbered in order of first appearance.
#ifndef TRAINER_PREPARED_H
#define TRAINER_PREPARED_H

#include "model/config.h"
#include "proto/msg.h"

struct prepared_member {
    int64_t first;         // of its tokens in the step's arrays
    int32_t rows;          // forward rows: index of its last trained token; 0 = nothing to train
    int32_t first_trained; // index of its first trained token, at least 1; with rows > 0
    int64_t n_trained;     // tokens with mask 1
    int32_t trajectory, group;
};

struct prepared {
    const struct msg_prepare *msg;   // borrowed
    struct prepared_member *members; // [msg->n_members]
    int32_t n_trajectories, n_groups;
    int32_t n_updates;        // min(msg->updates, n_groups)
    int32_t *update_of_group; // [n_groups]
    int32_t longest;          // greatest rows
    int64_t n_trained;
};

// STATUS_INVALID / RANGE with a reason naming the member when the step cannot be trained: token outside the vocabulary,
// sequence longer than max_rows or the model's positions, trained token without a finite log-probability (rl), temperature not
// above 0, advantage not finite, segments of one trajectory that disagree.
enum status prepared_init(struct prepared *ret, const struct msg_prepare *msg, const struct model_config *c,
                          int64_t max_rows, bool needs_rollout, struct error *err) OOZE_MUST_USE;
void prepared_done(struct prepared *p);
// Members of update u, in member order: writes their indexes to ret_members [n_members], returns how many.
int32_t prepared_update_members(const struct prepared *p, int32_t update, int32_t *ret_members);

#endif
