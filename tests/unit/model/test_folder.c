// Model folders and weights files: what is written reads back, packed weights are the same from either, and whatever is not
// exactly right is refused with file and tensor named and nothing changed.
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/file.h"
#include "base/mem.h"
#include "model/folder.h"
#include "model/model.h"
#include "tests/isa.h"
#include "tests/unit/model/tiny.h"

static char root[64];

static int root_make(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/ooze-folder-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}
static int root_remove(void **state)
{
    struct error err;
    (void)state;
    return file_remove_tree(root, &err);
}

static const char *at(const char *name)
{
    static char path[4][256];
    static int k;
    k = (k + 1) % 4;
    snprintf(path[k], sizeof(path[k]), "%s/%s", root, name);
    return path[k];
}

struct model {
    struct model_config c;
    struct layout l;
    float *master;
};

static void model_make(struct model *m, int which)
{
    struct error err;
    m->c = tiny_config(which);
    if (which == 0) { // several FP8 blocks, and edges
        m->c.hidden = 160;
        m->c.ffn = 144;
    }
    assert_int_equal(layout_open(&m->c, &m->l, &err), STATUS_OK);
    m->master = mem_alloc((size_t)m->l.total * sizeof(float));
    tiny_weights(&m->l, &m->c, 5, m->master);
}

static void model_free(struct model *m)
{
    mem_free(m->master);
    layout_done(&m->l);
}

static void put(const char *path, const void *data, size_t n)
{
    struct error err;
    assert_int_equal(file_write_atomic(path, data, n, 0644, &err), STATUS_OK);
}

static void test_round_trip(void **state)
{
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_FP8};
    (void)state;
    for (int which = 0; which < TINY_N; which++)
        for (int k = 0; k < 3; k++) {
            struct model m;
            struct model_config c;
            struct error err;
            char hash[HASH_HEX], name[32];
            float *back;
            model_make(&m, which);
            snprintf(name, sizeof(name), "m%d-%d", which, k);
            assert_int_equal(model_folder_write(at(name), &m.c, &m.l, m.master, dtypes[k], NULL, hash, &err),
                             STATUS_OK);
            assert_int_equal(model_folder_write(at(name), &m.c, &m.l, m.master, dtypes[k], NULL, hash, &err),
                             STATUS_EXISTS);
            assert_int_equal(model_config_read(at(name), &c, &err), STATUS_OK);
            assert_memory_equal(&c, &m.c, sizeof(c));
            if (model_folder_read(at(name), &c, &m.l, &back, &err))
                fail_msg("%s", err.text);
            for (int32_t i = 0; i < m.l.n; i++) {
                const struct param *p = &m.l.params[i];
                for (int64_t e = p->offset; e < p->offset + p->rows * p->cols; e++) {
                    float want = dtypes[k] == DT_F32 ? m.master[e] : bf16_to_f32(f32_to_bf16(m.master[e]));
                    if (dtypes[k] == DT_FP8 &&
                        p->fp8) // 3 mantissa bits; subnormals of a block of range about 3
                        assert_true(fabsf(back[e] - m.master[e]) <= fabsf(m.master[e]) / 16 + 1e-4f);
                    else
                        assert_memory_equal(&back[e], &want, 4);
                }
            }
            mem_free(back);
            model_free(&m);
        }
}

// Packed weights, seen through the logits of a short prompt.
static void logits_of(const struct model *m, struct device *d, struct weights *w, float *logits)
{
    static const int32_t ids[] = {3, 1, 4, 1, 5}, pos[] = {0, 1, 2, 3, 4}, page = 0;
    const struct attn_seq seq = {0, 5, 0, &page};
    const struct batch b = {5, 1, ids, pos, &seq};
    struct arena step;
    struct error err;
    struct kv *kv;
    arena_init(&step, 0);
    float *hidden = arena_alloc(&step, 5 * (size_t)m->c.hidden * sizeof(float));
    assert_int_equal(kv_open(d, &m->c, kv_dtype_for(weights_dtype(w)), 1, 32, &kv, &err), STATUS_OK);
    assert_int_equal(model_forward(w, kv, &b, &step, hidden, &err), STATUS_OK);
    model_logits(w, 5, hidden, logits);
    kv_close(kv);
    arena_done(&step);
}

static void test_weights_file(void **state)
{
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_FP8};
    struct device *d;
    struct error err;
    (void)state;
    assert_int_equal(device_open("cpu", test_isa(), 1, &d, &err), STATUS_OK);
    for (int which = 0; which < TINY_N; which++)
        for (int k = 0; k < 3; k++) {
            struct model m;
            struct weights *a, *b;
            struct stat st;
            char hash[HASH_HEX], again[HASH_HEX];
            int64_t bytes;
            float x[5 * 160], y[5 * 160];
            const char *path = at("weights.safetensors");
            model_make(&m, which);
            size_t n = 5 * (size_t)m.c.vocab * sizeof(float);
            assert_int_equal(
                weights_file_write(path, NULL, &m.l, m.master, dtypes[k], 12, k == 0, hash, &bytes, &err),
                STATUS_OK);
            assert_int_equal(weights_file_hash(NULL, &m.l, m.master, dtypes[k], 12, again, &err), STATUS_OK);
            assert_string_equal(hash, again);
            assert_int_equal(weights_file_hash(NULL, &m.l, m.master, dtypes[k], 13, again, &err), STATUS_OK);
            assert_string_not_equal(hash, again);
            assert_int_equal(stat(path, &st), 0);
            assert_true(st.st_size == bytes && (st.st_mode & 0777) == 0600);
            assert_int_equal(weights_open(d, &m.c, &m.l, dtypes[k], false, &a, &err), STATUS_OK);
            assert_int_equal(weights_open(d, &m.c, &m.l, dtypes[k], false, &b, &err), STATUS_OK);
            weights_set(a, m.master);
            if (weights_load(b, path, hash, &err))
                fail_msg("%s", err.text);
            logits_of(&m, d, a, x);
            logits_of(&m, d, b, y);
            assert_memory_equal(x, y, n);
            // The wrong hash, version, model or place changes nothing.
            memset(again, '0', 64);
            assert_int_equal(weights_load(b, path, again, &err), STATUS_CORRUPT);
            assert_int_equal(truncate(path, bytes - 1), 0);
            assert_int_equal(weights_load(b, path, NULL, &err), STATUS_CORRUPT);
            assert_int_equal(symlink(path, at("link")), 0);
            assert_int_not_equal(weights_load(b, at("link"), NULL, &err), STATUS_OK);
            assert_int_equal(unlink(at("link")), 0);
            assert_int_equal(weights_load(b, at("nothing"), NULL, &err), STATUS_NOTFOUND);
            logits_of(&m, d, b, y);
            assert_memory_equal(x, y, n);
            weights_close(a);
            weights_close(b);
            model_free(&m);
        }
    device_close(d);
}

static void test_weights_of_others(void **state)
{
    struct device *d;
    struct model m, other;
    struct weights *w;
    struct error err;
    char hash[HASH_HEX];
    const char *path = at("other.safetensors");
    (void)state;
    assert_int_equal(device_open("cpu", test_isa(), 1, &d, &err), STATUS_OK);
    model_make(&m, 2);
    model_make(&other, 3);
    assert_int_equal(weights_open(d, &m.c, &m.l, DT_BF16, false, &w, &err), STATUS_OK);
    assert_int_equal(weights_file_write(path, NULL, &m.l, m.master, DT_F32, 0, false, hash, NULL, &err),
                     STATUS_OK);
    assert_int_equal(weights_load(w, path, hash, &err), STATUS_TYPE);
    assert_non_null(strstr(err.text, "F32"));
    assert_int_equal(
        weights_file_write(path, NULL, &other.l, other.master, DT_BF16, 0, false, hash, NULL, &err),
        STATUS_OK);
    assert_int_not_equal(weights_load(w, path, hash, &err), STATUS_OK);
    // A folder nobody can write to, and a folder in the file's place: an error, and nothing left behind.
    assert_int_not_equal(
        weights_file_write(at("no/such/folder/w"), NULL, &m.l, m.master, DT_BF16, 0, true, hash, NULL, &err),
        STATUS_OK);
    assert_int_equal(mkdir(at("taken"), 0755), 0);
    assert_int_not_equal(
        weights_file_write(at("taken"), NULL, &m.l, m.master, DT_BF16, 0, true, hash, NULL, &err), STATUS_OK);
    char tmp[300];
    snprintf(tmp, sizeof(tmp), "%s.tmp.%d", at("taken"), (int)getpid());
    assert_false(file_exists(tmp));
    weights_close(w);
    model_free(&m);
    model_free(&other);
    device_close(d);
}

// Rewrites dir/model.safetensors with `from` in its header replaced by `to` (of equal length, or with spaces before '}').
static void header_edit(const char *dir, const char *from, const char *to)
{
    char path[300], *data;
    size_t n;
    struct error err;
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    assert_int_equal(file_read(path, 1 << 24, &data, &n, &err), STATUS_OK);
    uint64_t header;
    memcpy(&header, data, 8);
    char *hit = memmem(data + 8, header, from, strlen(from));
    assert_non_null(hit);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(hit, to, strlen(to));
    put(path, data, n);
    free(data);
}

static void test_folder_refusals(void **state)
{
    static const struct {
        const char *from, *to, *says;
    } bad[] = {
        {"model.layers.0.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight",
         "model.layers.7.mlp.up_proj.weight"},
        {"model.norm.weight", "model.n0rm.weight", "model.n0rm.weight"},
        {"[131,64]", "[64,131]", "shape"},
        {"\"shape\":[64]", "\"shape\":[ 9]", "shape"},
        {"\"F32\"", "\"I32\"", "I32"},
        {"\"F32\"", "\"F99\"", "F99"},
    };
    struct model m;
    struct error err;
    char hash[HASH_HEX];
    float *back = NULL;
    (void)state;
    model_make(&m, 3);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const char *dir = at("bad");
        assert_int_equal(file_remove_tree(dir, &err), STATUS_OK);
        assert_int_equal(model_folder_write(dir, &m.c, &m.l, m.master, DT_F32, NULL, hash, &err), STATUS_OK);
        header_edit(dir, bad[i].from, bad[i].to);
        err.text[0] = 0;
        if (model_folder_read(dir, &m.c, &m.l, &back, &err) == STATUS_OK || !strstr(err.text, bad[i].says) ||
            !strstr(err.text, dir))
            fail_msg("%s: \"%s\"", bad[i].to, err.text);
    }
    // Not finite.
    m.master[m.l.params[3].offset + 5] = NAN;
    assert_int_equal(model_folder_write(at("nan"), &m.c, &m.l, m.master, DT_BF16, NULL, hash, &err),
                     STATUS_OK);
    assert_int_equal(model_folder_read(at("nan"), &m.c, &m.l, &back, &err), STATUS_NUMERIC);
    assert_non_null(strstr(err.text, m.l.params[3].name));
    assert_int_equal(mkdir(at("empty"), 0755), 0);
    assert_int_equal(model_folder_read(at("empty"), &m.c, &m.l, &back, &err), STATUS_NOTFOUND);
    assert_null(back);
    model_free(&m);
}

// A model cut into two files behind an index. Each file holds whole tensors of one f32 folder.
static void test_shards(void **state)
{
    struct model m;
    struct error err;
    char hash[HASH_HEX], text[8192];
    float *back = NULL;
    const char *dir = at("shards");
    (void)state;
    model_make(&m, 1);
    assert_int_equal(model_folder_write(dir, &m.c, &m.l, m.master, DT_F32, NULL, hash, &err), STATUS_OK);
    char path[300];
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    assert_int_equal(unlink(path), 0);
    int32_t half = m.l.n / 2;
    size_t map = (size_t)snprintf(text, sizeof(text), "{\"metadata\":{},\"weight_map\":{");
    for (int s = 0; s < 2; s++) {
        struct buf header = {0}, file = {0};
        int64_t begin = 0;
        uint64_t n;
        buf_putc(&header, '{');
        for (int32_t i = s ? half : 0; i < (s ? m.l.n : half); i++) {
            const struct param *p = &m.l.params[i];
            int64_t bytes = p->rows * p->cols * 4;
            buf_printf(&header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", begin ? "," : "", p->name);
            if (!p->vector)
                buf_printf(&header, "%lld,", (long long)p->rows);
            buf_printf(&header, "%lld],\"data_offsets\":[%lld,%lld]}", (long long)p->cols, (long long)begin,
                       (long long)(begin + bytes));
            begin += bytes;
            map += (size_t)snprintf(text + map, sizeof(text) - map, "%s\"%s\":\"part-%d.safetensors\"",
                                    i ? "," : "", p->name, s);
        }
        buf_putc(&header, '}');
        n = header.len;
        buf_append(&file, &n, 8);
        buf_append(&file, header.data, header.len);
        for (int32_t i = s ? half : 0; i < (s ? m.l.n : half); i++)
            buf_append(&file, m.master + m.l.params[i].offset,
                       (size_t)(m.l.params[i].rows * m.l.params[i].cols) * 4);
        snprintf(path, sizeof(path), "%s/part-%d.safetensors", dir, s);
        put(path, file.data, file.len);
        buf_done(&header);
        buf_done(&file);
    }
    map += (size_t)snprintf(text + map, sizeof(text) - map, "}}");
    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", dir);
    put(path, text, map);
    if (model_folder_read(dir, &m.c, &m.l, &back, &err))
        fail_msg("%s", err.text);
    assert_memory_equal(back, m.master, (size_t)m.l.total * sizeof(float));
    mem_free(back);
    // The index names a tensor in the wrong file; a file outside the folder; no map.
    char *hit = strstr(text, "part-1");
    hit[5] = '0';
    put(path, text, map);
    assert_int_equal(model_folder_read(dir, &m.c, &m.l, &back, &err), STATUS_CORRUPT);
    const char *escape = "{\"weight_map\":{\"model.norm.weight\":\"../m/model.safetensors\"}}";
    put(path, escape, strlen(escape));
    assert_int_equal(model_folder_read(dir, &m.c, &m.l, &back, &err), STATUS_CORRUPT);
    put(path, "{}", 2);
    assert_int_equal(model_folder_read(dir, &m.c, &m.l, &back, &err), STATUS_CORRUPT);
    model_free(&m);
}

static void test_tokenizer_travels(void **state)
{
    struct model m;
    struct error err;
    char hash[HASH_HEX], path[300];
    (void)state;
    model_make(&m, 2);
    assert_int_equal(mkdir(at("tok"), 0755), 0);
    put(at("tok/tokenizer.json"), "{}", 2);
    put(at("tok/chat_template.jinja"), "x", 1);
    put(at("tok/model.bin"), "secret", 6);
    assert_int_equal(
        model_folder_write(at("with-tok/"), &m.c, &m.l, m.master, DT_BF16, at("tok"), hash, &err), STATUS_OK);
    static const struct {
        const char *name;
        bool there;
    } want[] = {{"tokenizer.json", true},
                {"chat_template.jinja", true},
                {"model.bin", false},
                {"config.json", true},
                {"model.safetensors", true}};
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", at("with-tok"), want[i].name);
        assert_true(file_exists(path) == want[i].there);
    }
    assert_int_equal(model_folder_write(at("fails"), &m.c, &m.l, m.master, DT_BF16, at("no-tok"), hash, &err),
                     STATUS_NOTFOUND);
    assert_false(file_exists(at("fails")));
    snprintf(path, sizeof(path), "%s.tmp.%d", at("fails"), (int)getpid());
    assert_false(file_exists(path));
    model_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip),
                                       cmocka_unit_test(test_weights_file),
                                       cmocka_unit_test(test_weights_of_others),
                                       cmocka_unit_test(test_folder_refusals),
                                       cmocka_unit_test(test_shards),
                                       cmocka_unit_test(test_tokenizer_travels)};
    return cmocka_run_group_tests(tests, root_make, root_remove);
}
