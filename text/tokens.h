// A growable array of token ids with one mask bit a token. One thread owns it; grows by doubling.
#ifndef TEXT_TOKENS_H
#define TEXT_TOKENS_H

#include <stddef.h>
#include <stdint.h>

struct tokens {
    int32_t *ids;
    uint8_t *mask; // 1: a token that the assistant said or would have sampled (trainable in SFT), 0:
                   // everything else
    size_t n;
    size_t cap;
};

void tokens_push(struct tokens *t, int32_t id, uint8_t mask);
void tokens_append(struct tokens *t, const int32_t *ids, size_t n, uint8_t mask);
void tokens_clear(struct tokens *t);
void tokens_done(struct tokens *t); // frees; leaves an empty, usable array

#endif
