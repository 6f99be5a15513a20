// Inside the room: walking the layers, for the engine (forward.c) and the trainer (train.c).
#ifndef MODEL_FORWARD_H
#define MODEL_FORWARD_H

#include "model/weights.h"

// Largest `saved` + `scratch` over the layers' blocks, in floats, for t rows.
int64_t layer_saved_floats(const struct layer *y, const struct model_config *c, enum dtype dtype, int64_t t);
// Adds every block of the layer to x. saved: layer_saved_floats(y, …, r->t), one part after the other per block.
void layer_forward(const struct block_run *r, const struct layer *y, float *x, float *saved, float *scratch);

// y [t, C] = embedding rows of ids.
void embedding_forward(const struct weights *w, int64_t t, const int32_t *ids, float *y);
void embedding_backward(const struct weights *w, int64_t t, const int32_t *ids, const float *dy,
                        float *grads);

// hidden = final norm of x; may be in place.
void final_norm_forward(const struct weights *w, int64_t t, const float *x, float *hidden);

#endif
