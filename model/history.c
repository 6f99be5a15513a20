// From kv events to passes: see history.h. Pure; any thread.
//
// Invariants while the tokens are walked in order
//   1. want[0 .. n_want) are the versions of the rows as the engine held them before it sampled the token at hand.
//   2. Rows [0, clean) of the replay, as the passes so far leave them, are those of want.
#include "model/history.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define UNSCORED INT32_MAX

struct walk {
    const struct replay_segment *s;
    struct history *h;
    int64_t *want; // [s->n]
    int32_t n_want, clean, next_event;
};

static void add_pass(struct history *h, struct history_pass p)
{
    if (h->n == h->cap) {
        h->cap = h->cap ? 2 * h->cap : 4;
        h->passes = mem_grow(h->passes, (size_t)h->cap, sizeof *h->passes);
    }
    h->passes[h->n++] = p;
}

static void want(struct walk *w, int32_t row, int64_t version)
{
    if (row < w->n_want && w->want[row] == version)
        return;
    w->want[row] = version;
    w->clean = row < w->clean ? row : w->clean;
    w->n_want = row + 1 > w->n_want ? row + 1 : w->n_want;
}

// Events that happened before token t was sampled. false: one is about rows that were not there.
static bool apply_events(struct walk *w, int32_t t)
{
    const struct replay_segment *s = w->s;
    for (; w->next_event < s->n_events && s->events[w->next_event].at_token <= t; w->next_event++) {
        const struct replay_event *e = &s->events[w->next_event];
        if (e->from < 0 || e->from > e->to || e->to > e->at_token || e->from > w->n_want)
            return false;
        for (int32_t r = e->from; r < e->to; r++)
            want(w, r, e->version);
    }
    return true;
}

// Rows [clean, t), as few passes as versions; the last one scores token t. The rows of one pass go on in the next while neither
// version nor place changes.
static void compute(struct walk *w, int32_t t)
{
    struct history *h = w->h;
    for (int32_t from = w->clean, to; from < t; from = to) {
        for (to = from + 1; to < t && w->want[to] == w->want[from];)
            to++;
        struct history_pass *last = h->n ? &h->passes[h->n - 1] : NULL;
        if (last && last->to == from && last->version == w->want[from])
            last->to = to;
        else
            add_pass(h, (struct history_pass){w->want[from], from, to, UNSCORED});
        if (to == t && h->passes[h->n - 1].score_from == UNSCORED)
            h->passes[h->n - 1].score_from = t;
    }
    w->clean = t;
}

static bool walk_token(struct walk *w, int32_t t)
{
    int64_t version = w->s->versions[t];
    if (t == 0 || version < 0 || !apply_events(w, t))
        return false;
    while (w->n_want <
           t) // rows that decoding made: each is of the token after it, or of the next one sampled
        want(w, w->n_want, w->s->mask[w->n_want + 1] ? w->s->versions[w->n_want + 1] : version);
    if (w->want[t - 1] != version)
        return false;
    compute(w, t);
    return true;
}

bool history_init(struct history *ret, const struct replay_segment *s)
{
    *ret = (struct history){.plain = true};
    struct walk w = {.s = s, .h = ret, .want = mem_must((size_t)s->n, sizeof *w.want)};
    bool ok = true;
    for (int32_t t = 0; t < s->n && ok; t++)
        ok = !s->mask[t] || walk_token(&w, t);
    free(w.want);
    for (int32_t i = 0; i < ret->n; i++) {
        ret->plain = ret->plain && ret->passes[i].from == 0;
        ret->crossing = ret->crossing || ret->passes[i].version != ret->passes[0].version;
    }
    if (!ok)
        history_done(ret);
    return ok;
}

void history_done(struct history *h)
{
    free(h->passes);
    *h = (struct history){0};
}
