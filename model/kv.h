// Inside the room: one layer's pages of a kv (model.h).
#ifndef MODEL_KV_H
#define MODEL_KV_H

#include "model/model.h"

struct attn_cache kv_layer(const struct kv *kv, int32_t layer);

#endif
