// Rotary tables by absolute position (contract 3: one table for training, prefill and decode).
#ifndef MODEL_ROPE_H
#define MODEL_ROPE_H

#include "kernels/kernels.h"
#include "model/config.h"

struct rope {
    float *cos, *sin; // [max_position, head_dim / 2] f32 on the device
};

enum status rope_open(struct device *d, const struct model_config *c, struct rope *ret,
                      struct error *err) OOZE_MUST_USE;
void rope_close(struct device *d, struct rope *r);
size_t rope_bytes(const struct model_config *c);

#endif
