// model/loading.h and the writer of weights files on several threads: any number of threads and helpers leave the bytes of weights_set,
// a file that is not the published one is refused, work that was given up is no success.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "model/folder.h"
#include "model/loading.h"

static struct error err;
static char dir[64], path[128];

// Two matrices of more than a piece, FP8 blocks with odd ends, and a fused qkv of unequal rows.
static struct model_config config(bool tie)
{
    return (struct model_config){.arch = "llama",
                                 .hidden = 320,
                                 .n_layers = 2,
                                 .n_heads = 5,
                                 .n_kv_heads = 1,
                                 .head_dim = 64,
                                 .ffn = 2100,
                                 .vocab = 3001,
                                 .max_position = 64,
                                 .rms_eps = 1e-5f,
                                 .rope_theta = 1e4,
                                 .rope_scaling = {.factor = 1},
                                 .tie_embeddings = tie,
                                 .init_std = 0.02,
                                 .bos_id = -1};
}

struct fixture {
    struct model_config c;
    struct layout l;
    float *master;
};

static void fixture_open(struct fixture *f, bool tie)
{
    f->c = config(tie);
    assert_int_equal(layout_open(&f->c, &f->l, &err), STATUS_OK);
    f->master = mem_alloc((size_t)f->l.total * sizeof(float));
    layout_init_random(&f->l, &f->c, 3, f->master);
}

static void fixture_close(struct fixture *f)
{
    mem_free(f->master);
    layout_done(&f->l);
}

static struct device *device(const char *isa, int threads)
{
    struct device *d;
    assert_int_equal(device_open("cpu", isa, threads, &d, &err), STATUS_OK);
    return d;
}

static void *helper(void *arg)
{
    void **a = arg;
    pool_thread_init();
    loading_work(a[0], a[1], clock_system(), INT64_MAX);
    return NULL;
}

// The logits of a few rows: every matrix, vector and scale is in them.
static void logits_of(const struct fixture *f, struct device *d, struct weights *w, float *ret)
{
    enum { N = 3 };
    static const int32_t ids[N] = {2999, 3000, 17}, pos[N] = {0, 1, 2}, pages[1] = {0};
    const struct attn_seq seq = {.n_rows = N, .pages = pages};
    const struct batch b = {.n_rows = N, .n_seqs = 1, .ids = ids, .pos = pos, .seqs = &seq};
    struct kv *kv;
    struct arena arena;
    float *hidden = mem_alloc((size_t)(N * f->c.hidden) * sizeof(float));
    arena_init(&arena, 0);
    assert_int_equal(kv_open(d, &f->c, DT_F32, 1, 32, &kv, &err), STATUS_OK);
    assert_int_equal(model_forward(w, kv, &b, &arena, hidden, &err), STATUS_OK);
    model_logits(w, N, hidden, ret);
    kv_close(kv);
    arena_done(&arena);
    mem_free(hidden);
}

static void check_fill(const struct fixture *f, const char *isa, enum dtype dtype, const char *hash)
{
    size_t n = 3 * (size_t)f->c.vocab * sizeof(float);
    float *want = mem_alloc(n), *got = mem_alloc(n);
    struct device *d = device(isa, 1);
    struct weights *a, *b;
    assert_int_equal(weights_open(d, &f->c, &f->l, dtype, false, &a, &err), STATUS_OK);
    weights_set(a, f->master);
    logits_of(f, d, a, want);
    for (int threads = 1; threads <= 4; threads++) {
        struct device *own = device(isa, threads), *other = device(isa, 5 - threads);
        struct loading *l;
        pthread_t t;
        assert_int_equal(weights_open(d, &f->c, &f->l, dtype, false, &b, &err), STATUS_OK);
        assert_int_equal(loading_open(b, path, hash, &l, &err), STATUS_OK);
        assert_int_equal(loading_left_ns(l), -1);
        void *arg[] = {l, other};
        assert_int_equal(pthread_create(&t, NULL, helper, arg), 0);
        loading_work(l, own, clock_system(), INT64_MAX);
        assert_int_equal(loading_left_ns(l), 0);
        pthread_join(t, NULL);
        if (loading_close(l, &err))
            fail_msg("%s", err.text);
        logits_of(f, d, b, got);
        assert_memory_equal(got, want, n);
        weights_close(b);
        device_close(own);
        device_close(other);
    }
    weights_close(a);
    device_close(d);
    mem_free(want);
    mem_free(got);
}

static void test_threads(void **state)
{
    (void)state;
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_FP8};
    for (int tie = 0; tie < 2; tie++) {
        struct fixture f;
        fixture_open(&f, tie);
        for (int k = 0; k < 3; k++) {
            char hash[HASH_HEX], again[HASH_HEX];
            assert_int_equal(
                weights_file_write(path, NULL, &f.l, f.master, dtypes[k], 1, false, hash, NULL, &err),
                STATUS_OK);
            for (int threads = 1; threads <= 4; threads++) { // the writer's threads change nothing
                struct device *d = device(threads % 2 ? "auto" : "ref", threads);
                assert_int_equal(weights_file_hash(d, &f.l, f.master, dtypes[k], 1, again, &err), STATUS_OK);
                assert_string_equal(again, hash);
                assert_int_equal(
                    weights_file_write(path, d, &f.l, f.master, dtypes[k], 1, true, again, NULL, &err),
                    STATUS_OK);
                assert_string_equal(again, hash);
                device_close(d);
            }
            for (enum isa i = ISA_REF; i <= device_best_isa(); i++)
                check_fill(&f, isa_name(i), dtypes[k], hash);
        }
        fixture_close(&f);
    }
}

// A file of which one byte anywhere was changed: the last of a chunk, of the file, in the padding of the header.
static void test_every_byte_counts(void **state)
{
    (void)state;
    struct fixture f;
    struct weights *w;
    struct loading *l;
    struct device *d = device("auto", 2);
    char hash[HASH_HEX];
    int64_t bytes;
    fixture_open(&f, true);
    assert_int_equal(weights_file_write(path, d, &f.l, f.master, DT_FP8, 1, false, hash, &bytes, &err),
                     STATUS_OK);
    assert_int_equal(weights_open(d, &f.c, &f.l, DT_FP8, false, &w, &err), STATUS_OK);
    const int64_t places[] = {bytes - 1, (1 << 20) - 1, 1 << 20, bytes / 2};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        int fd = open(path, O_RDWR);
        uint8_t byte;
        assert_int_equal(pread(fd, &byte, 1, places[i]), 1);
        byte ^= 4;
        assert_int_equal(pwrite(fd, &byte, 1, places[i]), 1);
        assert_int_equal(loading_open(w, path, hash, &l, &err), STATUS_OK);
        loading_work(l, d, clock_system(), INT64_MAX);
        assert_int_equal(loading_close(l, &err), STATUS_CORRUPT);
        byte ^= 4;
        assert_int_equal(pwrite(fd, &byte, 1, places[i]), 1);
        close(fd);
    }
    // given up before the end
    assert_int_equal(loading_open(w, path, hash, &l, &err), STATUS_OK);
    loading_work(l, d, clock_system(), 0);
    assert_int_equal(loading_close(l, &err), STATUS_CANCELED);
    assert_int_equal(loading_close(NULL, &err), STATUS_INVALID);
    weights_close(w);
    fixture_close(&f);
    device_close(d);
}

// The pages of an old file serve again, but not while anybody can see them.
static void test_rewrite(void **state)
{
    (void)state;
    struct fixture f;
    struct stat before, after;
    struct file_map map;
    char hash[HASH_HEX], want[HASH_HEX], old[160], next[160];
    uint8_t *copy;
    struct device *d = device("auto", 2);
    fixture_open(&f, true);
    snprintf(old, sizeof old, "%s/spare", dir);
    snprintf(next, sizeof next, "%s/next", dir);
    for (int held = 0; held < 3; held++) { // by nobody, open, mapped
        assert_int_equal(weights_file_write(old, d, &f.l, f.master, DT_BF16, 1, false, hash, NULL, &err),
                         STATUS_OK);
        assert_int_equal(stat(old, &before), 0);
        int fd = open(old, O_RDONLY);
        assert_int_equal(file_map_open(old, true, &map, &err), STATUS_OK);
        copy = mem_alloc(map.len);
        memcpy(copy, map.data, map.len);
        if (held != 1)
            close(fd);
        if (held != 2)
            file_map_close(&map);
        f.master[0] += 1;
        assert_int_equal(weights_file_hash(d, &f.l, f.master, DT_BF16, 2, want, &err), STATUS_OK);
        assert_int_equal(weights_file_rewrite(next, old, d, &f.l, f.master, DT_BF16, 2, hash, NULL, &err),
                         STATUS_OK);
        assert_string_equal(hash, want);
        assert_int_equal(stat(next, &after), 0);
        assert_int_equal(after.st_ino == before.st_ino, held == 0);
        assert_true((after.st_mode & 0777) == 0600);
        assert_false(file_exists(old));
        if (held == 2)
            assert_memory_equal(copy, map.data, map.len);
        if (held == 1) {
            uint8_t *now = mem_alloc((size_t)before.st_size);
            assert_int_equal(pread(fd, now, (size_t)before.st_size, 0), before.st_size);
            assert_memory_equal(copy, now, (size_t)before.st_size);
            mem_free(now);
            close(fd);
        }
        file_map_close(&map);
        mem_free(copy);
        assert_int_equal(unlink(next), 0);
    }
    // none there: as weights_file_write
    assert_int_equal(weights_file_rewrite(next, old, d, &f.l, f.master, DT_BF16, 2, hash, NULL, &err),
                     STATUS_OK);
    assert_string_equal(hash, want);
    fixture_close(&f);
    device_close(d);
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/ooze-loading-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/weights.safetensors", dir);
    pool_thread_init();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return file_remove_tree(dir, &err) == STATUS_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_threads),
                                       cmocka_unit_test(test_every_byte_counts),
                                       cmocka_unit_test(test_rewrite)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
