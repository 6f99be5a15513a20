// Inside the room: what has to be computed, and in which order, to have each sampled token of a segment scored on the very keys and
// values that it was sampled on.
//
// A row's content is a function of the versions that made it and all rows before it: rows are only ever dropped from some row on,
// and computed anew. So a history is a list of passes: drop the rows from `from` on, compute [from, to) with `version` on top of
// what is left. A segment all of whose passes start at row 0 is a set of plain forward passes, one a version.
#ifndef MODEL_HISTORY_H
#define MODEL_HISTORY_H

#include "model/replay.h"

struct history_pass {
    int64_t version;
    int32_t from, to;   // rows
    int32_t score_from; // sampled tokens from this position on are scored by this pass: token t by row t - 1
};

struct history {
    struct history_pass *passes;
    int32_t n, cap;
    bool plain;    // every pass starts at row 0
    bool crossing; // two versions or more
};

// false: the events contradict the tokens' versions, so that there is nothing to replay; *ret is empty then.
bool history_init(struct history *ret, const struct replay_segment *s);
void history_done(struct history *h);

#endif
