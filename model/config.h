// What a model is: the shape of a Llama-family decoder, read from a Hugging Face config.json or from a run's
// YAML.
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/runconfig.h"
#include "base/status.h"
#include "kernels/dtype.h"

#define MODEL_EOS_MAX 8

struct model_config {
    char arch[32]; // a row of model/arch/arch.def: "llama", "qwen2", "qwen3"
    int64_t hidden, n_layers, n_heads, n_kv_heads, head_dim, ffn, vocab, max_position;
    float rms_eps;
    double rope_theta;
    struct { // Llama 3 frequency scaling; factor 1 = none
        double factor, low_freq_factor, high_freq_factor;
        int64_t original_max_position;
    } rope_scaling;
    bool tie_embeddings;
    bool qkv_bias;   // Qwen2
    bool qk_norm;    // Qwen3: RMSNorm over each head of q and k before rope
    double init_std; // random initialisation of embedding and head
    int64_t bos_id;  // -1 = none
    int64_t eos_ids[MODEL_EOS_MAX];
    int64_t n_eos;
};

// dir/config.json; a field that the arch does not support (sliding window, other activation, …) is an error
// naming it.
enum status model_config_read(const char *dir, struct model_config *ret, struct error *err) OOZE_MUST_USE;
// From the `model:` section of a run (model.path empty). bos/eos come from the tokenizer and are set by the
// caller.
enum status model_config_from_run(const struct run_model *m, struct model_config *ret,
                                  struct error *err) OOZE_MUST_USE;
// Writes dir/config.json that transformers loads (torch_dtype per dtype; quantization_config for DT_FP8).
enum status model_config_write(const struct model_config *c, enum dtype dtype, const char *dir,
                               struct error *err) OOZE_MUST_USE;

// The flat parameter vector: every tensor of the model, in a fixed order, one after the other. Master
// weights, gradients and optimizer moments are arrays of layout.total floats with this layout.
enum param_kind { PARAM_MATRIX, PARAM_NORM, PARAM_BIAS, PARAM_EMBEDDING, PARAM_HEAD };
struct param {
    char name[96];      // Hugging Face name
    int64_t rows, cols; // vectors: rows = 1
    int64_t offset;     // into the flat vector; multiples of 16
    enum param_kind kind;
    int32_t layer; // -1 outside the layers
    bool fp8;      // converted in FP8 folders ("FP8" of algorithms.md)
    bool vector;   // stored with one dimension
};
struct layout {
    int32_t n;
    struct param *params;
    int64_t total;        // floats, padding included (padding is always 0)
    int64_t n_parameters; // without padding
};
enum status layout_open(const struct model_config *c, struct layout *ret, struct error *err) OOZE_MUST_USE;
void layout_done(struct layout *l);
const struct param *layout_find(const struct layout *l, const char *name); // NULL when absent

// Random initial weights by Philox(seed): N(0, init_std) for embedding and head, N(0, 1/fan_in) for matrices,
// o and down divided by sqrt(2 n_layers), norms 1, biases 0. master [layout.total].
void layout_init_random(const struct layout *l, const struct model_config *c, uint64_t seed, float *master);

#endif
