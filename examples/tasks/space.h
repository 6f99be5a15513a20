// The prompt space of a small task: every possible prompt as one number, shuffled once by a fixed seed; the first sixteenth is
// held out for evaluation, so that training and held-out prompts are disjoint by construction.
#ifndef EXAMPLES_TASKS_SPACE_H
#define EXAMPLES_TASKS_SPACE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/mem.h"
#include "base/rng.h"

struct space {
    uint32_t *prompts; // [n], held-out ones first
    uint32_t n, n_eval;
};

// Keeps the x in [0, limit) for which is_prompt(x) holds.
static inline void space_init(struct space *s, uint32_t limit, bool (*is_prompt)(uint32_t x))
{
    struct rng rng;
    rng_init(&rng, 0x6f6f7a65, 1); // fixed: the split never changes between runs
    s->prompts = mem_must(limit, sizeof *s->prompts);
    s->n = 0;
    for (uint32_t x = 0; x < limit; x++)
        if (is_prompt(x))
            s->prompts[s->n++] = x;
    rng_shuffle_u32(&rng, s->prompts, s->n);
    s->n_eval = s->n / 16;
}

static inline uint32_t space_size(const struct space *s, bool eval)
{
    return eval ? s->n_eval : s->n - s->n_eval;
}

// index < space_size
static inline uint32_t space_prompt(const struct space *s, bool eval, uint32_t index)
{
    return s->prompts[eval ? index : s->n_eval + index];
}

#endif
