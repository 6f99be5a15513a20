// Reading config.json in both spellings of transformers, from a run, and back; refusals name the field.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/file.h"
#include "base/mem.h"
#include "tests/unit/model/tiny.h"

static char dir[64];

static int dir_make(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/ooze-config-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}
static int dir_remove(void **state)
{
    struct error err;
    (void)state;
    return file_remove_tree(dir, &err);
}

static void put(const char *name, const char *text)
{
    struct error err;
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0644, &err), STATUS_OK);
}

#define SHAPE                                                                                                \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,\"num_attention_heads\":4,"         \
    "\"vocab_size\":128,\"max_position_embeddings\":256"

static void test_read(void **state)
{
    struct model_config c;
    struct error err;
    (void)state;
    put("config.json",
        "{\"model_type\":\"llama\"," SHAPE ",\"num_key_value_heads\":2,\"rms_norm_eps\":1e-5,"
        "\"rope_theta\":500000.0,\"tie_word_embeddings\":true,\"bos_token_id\":1,\"eos_token_id\":[2,5],"
        "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1.0,"
        "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":64},\"torch_dtype\":\"bfloat16\"}");
    put("generation_config.json", "{\"eos_token_id\":[5,7]}");
    assert_int_equal(model_config_read(dir, &c, &err), STATUS_OK);
    assert_string_equal(c.arch, "llama");
    assert_true(c.hidden == 64 && c.ffn == 96 && c.n_layers == 2 && c.n_heads == 4 && c.n_kv_heads == 2);
    assert_true(c.head_dim == 16 && c.vocab == 128 && c.max_position == 256 && c.rms_eps == 1e-5f);
    assert_true(c.rope_theta == 500000 && c.rope_scaling.factor == 8 &&
                c.rope_scaling.original_max_position == 64);
    assert_true(c.tie_embeddings && !c.qkv_bias && !c.qk_norm && c.bos_id == 1);
    assert_true(c.n_eos == 3 && c.eos_ids[0] == 2 && c.eos_ids[1] == 5 && c.eos_ids[2] == 7);
    // transformers 5: rope_parameters
    put("generation_config.json", "{}");
    put("config.json", "{\"model_type\":\"qwen3\"," SHAPE ",\"rope_parameters\":{\"rope_type\":\"default\","
                       "\"rope_theta\":1000000.0},\"layer_types\":[\"full_attention\",\"full_attention\"],"
                       "\"use_sliding_window\":false,\"sliding_window\":null,\"eos_token_id\":3}");
    assert_int_equal(model_config_read(dir, &c, &err), STATUS_OK);
    assert_true(c.qk_norm && !c.qkv_bias && c.head_dim == 128 && c.n_kv_heads == 4 && c.rope_theta == 1e6);
    assert_true(c.rope_scaling.factor == 1 && c.n_eos == 1 && c.bos_id == -1 && c.rms_eps == 1e-6f);
    put("config.json", "{\"model_type\":\"qwen2\"," SHAPE "}");
    assert_int_equal(model_config_read(dir, &c, &err), STATUS_OK);
    assert_true(c.qkv_bias && c.rope_theta == 10000 && c.n_eos == 0);
}

static void test_refusals(void **state)
{
    static const struct {
        const char *json, *says;
    } bad[] = {
        {"[]", "model_type"},
        {"{" SHAPE "}", "model_type"},
        {"{\"model_type\":\"gpt2\"," SHAPE "}", "gpt2"},
        {"{\"model_type\":\"llama\",\"hidden_size\":64}", "num_hidden_layers"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"hidden_act\":\"gelu\"}", "hidden_act"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"attention_bias\":true}", "attention_bias"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"mlp_bias\":true}", "mlp_bias"},
        {"{\"model_type\":\"qwen2\"," SHAPE ",\"use_sliding_window\":true}", "use_sliding_window"},
        {"{\"model_type\":\"qwen3\"," SHAPE ",\"layer_types\":[\"sliding_attention\"]}", "layer_types"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"num_key_value_heads\":3}", "key/value"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"head_dim\":15}", "odd"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"rms_norm_eps\":0}", "epsilon"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}}", "yarn"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":4}}",
         "low_freq_factor"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"eos_token_id\":128}", "eos_token_id"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"bos_token_id\":1000}", "bos_token_id"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"quantization_config\":{\"quant_method\":\"gptq\"}}", "gptq"},
        {"{\"model_type\":\"llama\"," SHAPE ",\"num_hidden_layers\":3}", "duplicate"},
        {"{\"model_type\":\"llama\",\"hidden_size\":-1}", "hidden_size"},
    };
    (void)state;
    put("generation_config.json", "{}");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct model_config c = {.hidden = 7};
        struct error err = {0};
        put("config.json", bad[i].json);
        if (model_config_read(dir, &c, &err) == STATUS_OK || c.hidden != 7 || !strstr(err.text, bad[i].says))
            fail_msg("%s: \"%s\"", bad[i].json, err.text);
        assert_non_null(strstr(err.text, "config.json"));
    }
}

static void test_round_trip(void **state)
{
    (void)state;
    put("generation_config.json", "{}");
    for (int which = 0; which < TINY_N; which++) {
        struct model_config c = tiny_config(which), back;
        struct error err;
        c.bos_id = which - 1;
        for (c.n_eos = 0; c.n_eos < which % 3; c.n_eos++)
            c.eos_ids[c.n_eos] = 10 + c.n_eos;
        for (int k = 0; k < 3; k++) {
            static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_FP8};
            assert_int_equal(model_config_write(&c, dtypes[k], dir, &err), STATUS_OK);
            if (model_config_read(dir, &back, &err))
                fail_msg("%s", err.text);
            assert_memory_equal(&c, &back, sizeof(c));
        }
    }
}

static void test_from_run(void **state)
{
    struct run_model *m = mem_must(1, sizeof(*m));
    struct model_config c;
    struct error err;
    (void)state;
    *m = (struct run_model){.arch = "qwen2",
                            .hidden = 128,
                            .n_layers = 4,
                            .n_heads = 4,
                            .ffn = 352,
                            .vocab = 264,
                            .max_position = 256,
                            .rope_theta = 1e4,
                            .rms_eps = 1e-5};
    assert_int_equal(model_config_from_run(m, &c, &err), STATUS_OK);
    assert_true(c.head_dim == 32 && c.n_kv_heads == 4 && c.qkv_bias && c.rope_scaling.factor == 1 &&
                c.bos_id == -1);
    m->n_heads = 5;
    assert_int_equal(model_config_from_run(m, &c, &err), STATUS_INVALID);
    m->n_heads = 4;
    snprintf(m->arch, sizeof(m->arch), "mamba");
    assert_int_equal(model_config_from_run(m, &c, &err), STATUS_UNSUPPORTED);
    free(m);
}

static void test_layout(void **state)
{
    (void)state;
    for (int which = 0; which < TINY_N; which++) {
        struct model_config c = tiny_config(which);
        struct layout l;
        struct error err;
        int64_t end = 0, n = 0;
        assert_int_equal(layout_open(&c, &l, &err), STATUS_OK);
        for (int32_t i = 0; i < l.n; i++) {
            const struct param *p = &l.params[i];
            assert_true(p->offset % 16 == 0 && p->offset >= end && p->offset < end + 16);
            assert_ptr_equal(layout_find(&l, p->name), p);
            end = p->offset + p->rows * p->cols;
            n += p->rows * p->cols;
            assert_true(p->fp8 == (p->kind == PARAM_MATRIX) &&
                        p->vector == (p->kind == PARAM_NORM || p->kind == PARAM_BIAS));
        }
        assert_true(l.total >= end && l.total < end + 16 && l.total % 16 == 0 && l.n_parameters == n);
        assert_true((layout_find(&l, "lm_head.weight") == NULL) == c.tie_embeddings);
        assert_null(layout_find(&l, "model.layers.2.self_attn.q_proj.weight"));
        layout_done(&l);
    }
}

static double std_of(const float *v, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += (double)v[i] * (double)v[i];
    return sqrt(s / (double)n);
}

static void test_random(void **state)
{
    struct model_config c = tiny_config(3);
    struct layout l;
    struct error err;
    (void)state;
    c.init_std = 0.02;
    assert_int_equal(layout_open(&c, &l, &err), STATUS_OK);
    float *a = mem_alloc((size_t)l.total * sizeof(float)), *b = mem_alloc((size_t)l.total * sizeof(float));
    layout_init_random(&l, &c, 1, a);
    memset(b, 0xff, (size_t)l.total * sizeof(float));
    layout_init_random(&l, &c, 1, b);
    assert_memory_equal(a, b, (size_t)l.total * sizeof(float)); // padding too
    layout_init_random(&l, &c, 2, b);
    const struct {
        const char *name;
        double std;
    } want[] = {{"model.embed_tokens.weight", 0.02},
                {"lm_head.weight", 0.02},
                {"model.layers.1.self_attn.q_proj.weight", 1 / 8.0},
                {"model.layers.0.mlp.down_proj.weight", 1 / sqrt(96.0) / 2},
                {"model.layers.0.self_attn.o_proj.weight", 1 / sqrt(128.0) / 2}};
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        const struct param *p = layout_find(&l, want[i].name);
        double std = std_of(a + p->offset, p->rows * p->cols);
        assert_true(std > 0.95 * want[i].std && std < 1.05 * want[i].std);
        assert_memory_not_equal(a + p->offset, b + p->offset, (size_t)p->cols * sizeof(float));
    }
    assert_true(a[layout_find(&l, "model.norm.weight")->offset] == 1);
    mem_free(a);
    mem_free(b);
    layout_done(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_read),       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_round_trip), cmocka_unit_test(test_from_run),
                                       cmocka_unit_test(test_layout),     cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, dir_make, dir_remove);
}
