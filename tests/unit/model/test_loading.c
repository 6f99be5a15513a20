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
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "model/folder.h"
#include "model/loading.h"
#include "model/parts.h"

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
        assert_int_equal(loading_open(b, path, hash, NULL, &l, &err), STATUS_OK);
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
        assert_int_equal(loading_open(w, path, hash, NULL, &l, &err), STATUS_OK);
        loading_work(l, d, clock_system(), INT64_MAX);
        assert_int_equal(loading_close(l, &err), STATUS_CORRUPT);
        byte ^= 4;
        assert_int_equal(pwrite(fd, &byte, 1, places[i]), 1);
        close(fd);
    }
    // given up before the end
    assert_int_equal(loading_open(w, path, hash, NULL, &l, &err), STATUS_OK);
    loading_work(l, d, clock_system(), 0);
    assert_int_equal(loading_close(l, &err), STATUS_CANCELED);
    assert_int_equal(loading_close(NULL, &err), STATUS_INVALID);
    weights_close(w);
    fixture_close(&f);
    device_close(d);
}

// ---- pages that go round ----------------------------------------------------------------------------------------------------

enum holder { NOBODY, OPEN, MAPPED, KEPT, READING, OTHER_PROCESS, KILLED, HOLDERS };

static enum status rewrite(const struct fixture *f, struct device *d, const char *next, const char *old,
                           struct kept *kept, int64_t version, char hash[HASH_HEX])
{
    const struct weights_output out = {.path = next, .old = old, .kept = kept};
    return weights_file_rewrite(&out, false, d, &f->l, f->master, DT_BF16, version, hash, NULL, &err);
}

// Reads the file in a process of its own, which says so and then reads on until it is killed.
static pid_t reader_start(const char *file)
{
    int pipes[2];
    char byte;
    assert_int_equal(pipe(pipes), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct kept kept = {0};
        struct kept_map *m;
        size_t n;
        if (kept_read(&kept, file, &m, &n, &err) || write(pipes[1], "r", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(pipes[1]);
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    close(pipes[0]);
    return pid;
}

static void reader_kill(pid_t pid)
{
    int status;
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
}

// The pages of an old file serve again, but not while anybody reads them: what a reader sees stays what it was.
static void test_rewrite(void **state)
{
    (void)state;
    struct fixture f;
    struct stat before, after;
    struct device *d = device("auto", 2);
    char hash[HASH_HEX], want[HASH_HEX], old[160], next[160];
    fixture_open(&f, true);
    snprintf(old, sizeof old, "%s/spare", dir);
    snprintf(next, sizeof next, "%s/next", dir);
    for (int held = 0; held < HOLDERS; held++) {
        struct kept reader = {0}, writer = {0};
        struct file_map map = {0};
        struct kept_map *m = NULL;
        size_t n = 0;
        pid_t pid = 0;
        assert_int_equal(rewrite(&f, d, old, NULL, &writer, 1, hash), STATUS_OK);
        assert_int_equal(stat(old, &before), 0);
        uint8_t *copy = mem_alloc((size_t)before.st_size), *now = mem_alloc((size_t)before.st_size);
        int fd = open(old, O_RDONLY);
        assert_int_equal(pread(fd, copy, (size_t)before.st_size, 0), before.st_size);
        if (held == OPEN)
            assert_int_equal(file_share(fd, old, &err), STATUS_OK);
        if (held == MAPPED)
            assert_int_equal(file_map_open(old, true, &map, &err), STATUS_OK);
        if (held == KEPT || held == READING)
            assert_int_equal(kept_read(&reader, old, &m, &n, &err), STATUS_OK);
        if (held == KEPT)
            kept_release(m);
        if (held == OTHER_PROCESS || held == KILLED)
            pid = reader_start(old);
        if (held == KILLED)
            reader_kill(pid);
        f.master[0] += 1;
        assert_int_equal(weights_file_hash(d, &f.l, f.master, DT_BF16, 2, want, &err), STATUS_OK);
        assert_int_equal(rewrite(&f, d, next, old, &writer, 2, hash), STATUS_OK);
        assert_string_equal(hash, want);
        assert_int_equal(stat(next, &after), 0);
        assert_int_equal(after.st_ino == before.st_ino, held == NOBODY || held == KEPT || held == KILLED);
        assert_int_equal(after.st_mode & 0777, 0600);
        assert_false(file_exists(old));
        if (held == MAPPED)
            assert_memory_equal(copy, map.data, map.len);
        if (held == READING) {
            assert_memory_equal(copy, m->data, n);
            kept_release(m);
        }
        if (held == OPEN || held == OTHER_PROCESS) {
            assert_int_equal(pread(fd, now, (size_t)before.st_size, 0), before.st_size);
            assert_memory_equal(copy, now, (size_t)before.st_size);
        }
        if (held == OTHER_PROCESS)
            reader_kill(pid);
        close(fd);
        file_map_close(&map);
        kept_done(&reader);
        kept_done(&writer);
        mem_free(copy);
        mem_free(now);
        assert_int_equal(unlink(next), 0);
    }
    // none there: a fresh one
    assert_int_equal(rewrite(&f, d, next, old, NULL, 2, hash), STATUS_OK);
    assert_string_equal(hash, want);
    fixture_close(&f);
    device_close(d);
}

// Versions of other lengths (a header that gets longer and shorter) go round through two files; a reader that keeps its maps loads each of
// them, finds pages that a restarted trainer left, and holds on to none that have lost their name.
static void test_pages_go_round(void **state)
{
    (void)state;
    static const int64_t versions[] = {8, 9, 10, 11, 99, 100, 1, 2, 1000000, 3, 4, 5};
    struct fixture f;
    struct device *d = device("auto", 2);
    struct kept reader = {0}, writer = {0};
    struct weights *w, *expect;
    char hash[HASH_HEX], spare[160], file[2][160];
    size_t n;
    fixture_open(&f, true);
    n = 3 * (size_t)f.c.vocab * sizeof(float);
    float *want = mem_alloc(n), *got = mem_alloc(n);
    snprintf(spare, sizeof spare, "%s/spare", dir);
    assert_int_equal(weights_open(d, &f.c, &f.l, DT_BF16, false, &w, &err), STATUS_OK);
    assert_int_equal(weights_open(d, &f.c, &f.l, DT_BF16, false, &expect, &err), STATUS_OK);
    for (int i = 0; i < 12; i++) {
        struct loading *l;
        struct stat st;
        snprintf(file[i % 2], sizeof file[0], "%s/%d", dir, i);
        layout_init_random(&f.l, &f.c, (uint64_t)i, f.master);
        if (i == 6)
            kept_done(&writer); // as if it had been started again
        assert_int_equal(rewrite(&f, d, file[i % 2], spare, &writer, versions[i], hash), STATUS_OK);
        assert_int_equal(stat(file[i % 2], &st), 0);
        assert_int_equal(loading_open(w, file[i % 2], hash, &reader, &l, &err), STATUS_OK);
        loading_work(l, d, clock_system(), INT64_MAX);
        if (loading_close(l, &err))
            fail_msg("version %d: %s", i, err.text);
        weights_set(expect, f.master);
        logits_of(&f, d, expect, want);
        logits_of(&f, d, w, got);
        assert_memory_equal(got, want, n);
        int kept = 0;
        for (int k = 0; k < KEPT_MAPS; k++)
            kept += reader.maps[k].data != NULL;
        assert_true(kept <= 2);
        if (i > 0)
            assert_int_equal(rename(file[1 - i % 2], spare), 0);
    }
    unlink(spare);
    unlink(file[1]);
    struct kept_map *m; // of a name that is gone there is no map, even if it is kept
    assert_int_equal(kept_read(&reader, file[1], &m, &n, &err), STATUS_NOTFOUND);
    for (int k = 0; k < KEPT_MAPS; k++)
        assert_null(reader.maps[k].data);
    kept_done(&writer);
    weights_close(w);
    weights_close(expect);
    mem_free(want);
    mem_free(got);
    fixture_close(&f);
    device_close(d);
}

// ---- headers ----------------------------------------------------------------------------------------------------------------

struct change {
    const char *from, *to; // the first occurrence in the header; NULL: `at`
    size_t at;             // from the end of the header when > 0: this byte becomes to[0]
    enum status opens;     // without a hash
};

// A file that was loaded before is still mapped when its header changes: what it says then counts, however little that is, and
// what says the same in other words is still fine.
static void test_header_changes(void **state)
{
    (void)state;
    static const struct change changes[] = {
        {"\"version\":\"41\"", "\"version\":\"42\"", 0, STATUS_OK}, // the hash tells
        {"\"version\":\"41\"", "\"version\":\"4x\"", 0, STATUS_OK},
        {"\"version\":\"41\"", "\"version\":\"4\\\"", 0, STATUS_INVALID},
        {"\"version\":\"41\",", "\"version\":\"41\" ", 0, STATUS_INVALID},
        {"\"BF16\",\"shape\":[3001,", "\"F16\" ,\"shape\":[3001,", 0, STATUS_TYPE},
        {"\"shape\":[3001,320]", "\"shape\":[320,3001]", 0, STATUS_INVALID},
        {"\"shape\":[3001,320]", "\"shape\":[3000,320]", 0, STATUS_CORRUPT},
        {"layers.1.mlp.up_proj", "layers.1.mlp.op_proj", 0, STATUS_NOTFOUND},
        {"layers.1.mlp.up_proj", "layers.0.mlp.up_proj", 0, STATUS_INVALID}, // there twice
        {"{\"__metadata__\"", "[\"__metadata__\"", 0, STATUS_INVALID},
        {NULL, "x", 1, STATUS_INVALID}, // in the padding
        {NULL, "\n", 1, STATUS_OK},
        {NULL, "\0", 1, STATUS_INVALID},
    };
    struct fixture f;
    struct weights *w, *expect;
    struct kept kept = {0};
    struct device *d = device("auto", 2);
    struct loading *l;
    char hash[HASH_HEX];
    int64_t bytes;
    fixture_open(&f, true);
    size_t n = 3 * (size_t)f.c.vocab * sizeof(float);
    float *want = mem_alloc(n), *got = mem_alloc(n);
    assert_int_equal(weights_file_write(path, d, &f.l, f.master, DT_BF16, 41, false, hash, &bytes, &err),
                     STATUS_OK);
    int fd = open(path, O_RDWR);
    uint64_t length;
    assert_int_equal(pread(fd, &length, 8, 0), 8);
    char *header = mem_must(length + 1, 1), *changed = mem_must(length + 1, 1);
    assert_int_equal(pread(fd, header, length, 8), length);
    assert_int_equal(header[length - 1], ' ');
    assert_int_equal(weights_open(d, &f.c, &f.l, DT_BF16, false, &w, &err), STATUS_OK);
    assert_int_equal(weights_open(d, &f.c, &f.l, DT_BF16, false, &expect, &err), STATUS_OK);
    weights_set(expect, f.master);
    logits_of(&f, d, expect, want);
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        const struct change *c = &changes[i];
        for (int hashed = 0; hashed < 2; hashed++) {
            assert_int_equal(pwrite(fd, header, length, 8), length);
            assert_int_equal(loading_open(w, path, hash, &kept, &l, &err), STATUS_OK); // as it was
            loading_work(l, d, clock_system(), INT64_MAX);
            assert_int_equal(loading_close(l, &err), STATUS_OK);
            memcpy(changed, header, length);
            char *at = c->from ? strstr(changed, c->from) : changed + length - c->at;
            assert_non_null(at);
            memcpy(at, c->to, c->from ? strlen(c->to) : 1);
            assert_int_equal(pwrite(fd, changed, length, 8), length);
            enum status rc = loading_open(w, path, hashed ? hash : NULL, &kept, &l, &err);
            if (rc != c->opens)
                fail_msg("change %zu: %s: %s", i, status_name(rc), rc ? err.text : "");
            if (rc)
                continue;
            loading_work(l, d, clock_system(), INT64_MAX);
            assert_int_equal(loading_close(l, &err), hashed ? STATUS_CORRUPT : STATUS_OK);
            logits_of(&f, d, w, got);
            assert_memory_equal(got, want, n);
        }
    }
    // a length that says otherwise, and a file that ends elsewhere
    assert_int_equal(pwrite(fd, header, length, 8), length);
    for (int k = -1; k < 2; k += 2) {
        uint64_t other = length + (uint64_t)(int64_t)(64 * k);
        assert_int_equal(pwrite(fd, &other, 8, 0), 8);
        assert_int_not_equal(loading_open(w, path, NULL, &kept, &l, &err), STATUS_OK);
        assert_int_equal(pwrite(fd, &length, 8, 0), 8);
        assert_int_equal(ftruncate(fd, bytes + k), 0);
        assert_int_equal(loading_open(w, path, NULL, &kept, &l, &err), STATUS_CORRUPT);
        assert_int_equal(ftruncate(fd, bytes), 0);
    }
    assert_int_equal(ftruncate(fd, (off_t)length / 2), 0);
    assert_int_equal(loading_open(w, path, NULL, &kept, &l, &err), STATUS_CORRUPT);
    close(fd);
    kept_done(&kept);
    weights_close(w);
    weights_close(expect);
    free(header);
    free(changed);
    mem_free(want);
    mem_free(got);
    fixture_close(&f);
    device_close(d);
}

// The header as our writer writes it is known by its bytes, whatever the version; with any byte of it changed it is not.
static void test_header_known(void **state)
{
    (void)state;
    static const int64_t versions[] = {0, 41, INT64_MAX};
    struct fixture f;
    struct device *d = device("auto", 2);
    fixture_open(&f, true);
    for (int t = DT_F32; t <= DT_FP8; t++) {
        struct weights *w;
        assert_int_equal(weights_open(d, &f.c, &f.l, (enum dtype)t, false, &w, &err), STATUS_OK);
        for (int v = 0; v < 3; v++) {
            char hash[HASH_HEX], *file;
            int64_t bytes;
            size_t n, header;
            assert_int_equal(weights_file_write(path, d, &f.l, f.master, (enum dtype)t, versions[v], false,
                                                hash, &bytes, &err),
                             STATUS_OK);
            assert_int_equal(file_read(path, (size_t)bytes, &file, &n, &err), STATUS_OK);
            assert_true(parts_begin_file(parts_of(w), file, n, &header));
            assert_true(header > 8 && header % 64 == 0 && file[header - 1] != '\0');
            assert_false(parts_begin_file(parts_of(w), file, n - 1, &header));
            for (size_t i = 0; i < header; i++) {
                if (file[i] >= '0' && file[i] <= '9') // of the version, perhaps
                    continue;
                file[i] ^= 1;
                if (parts_begin_file(parts_of(w), file, n, &header))
                    fail_msg("byte %zu of the header may be another", i);
                file[i] ^= 1;
            }
            free(file);
        }
        weights_close(w);
    }
    fixture_close(&f);
    device_close(d);
}

// Paths longer than what messages have room for.
static void test_long_path(void **state)
{
    (void)state;
    char folder[1024], file[1100], hash[HASH_HEX];
    int64_t bytes;
    struct fixture f;
    struct weights *w;
    struct device *d = device("auto", 1);
    size_t at = (size_t)snprintf(folder, sizeof folder, "%s", dir);
    for (int i = 0; i < 3; i++) {
        memset(folder + at, 'a', 201);
        folder[at] = '/';
        folder[at += 201] = '\0';
    }
    snprintf(file, sizeof file, "%s/weights", folder);
    assert_int_equal(file_mkdirs(folder, 0700, &err), STATUS_OK);
    fixture_open(&f, true);
    assert_int_equal(weights_file_write(file, d, &f.l, f.master, DT_BF16, 1, false, hash, &bytes, &err),
                     STATUS_OK);
    assert_int_equal(weights_open(d, &f.c, &f.l, DT_BF16, false, &w, &err), STATUS_OK);
    assert_int_equal(weights_load(w, file, hash, &err), STATUS_OK);
    weights_close(w);
    fixture_close(&f);
    device_close(d);
}

// Who comes while a file is being written again, or after its name went to another, is told so.
static void test_reader_comes_late(void **state)
{
    (void)state;
    struct kept reader = {0}, writer = {0};
    struct kept_map *w, *r;
    struct file_map map;
    char old[160], next[160], tmp[160];
    size_t n;
    snprintf(old, sizeof old, "%s/late-1", dir);
    snprintf(next, sizeof next, "%s/late-2", dir);
    snprintf(tmp, sizeof tmp, "%s/late-tmp", dir);
    assert_int_equal(kept_write(&writer, old, NULL, 0600, 10000, NULL, &w, &err), STATUS_OK);
    kept_release(w);
    int fd = open(old, O_RDONLY); // has it open, has not locked it yet
    assert_int_equal(kept_write(&writer, tmp, old, 0600, 10000, NULL, &w, &err), STATUS_OK);
    assert_int_equal(file_share(fd, old, &err), STATUS_AGAIN);
    assert_int_equal(kept_read(&reader, tmp, &r, &n, &err), STATUS_AGAIN);
    assert_int_equal(file_map_open(tmp, true, &map, &err), STATUS_AGAIN);
    kept_release(w);
    assert_int_equal(rename(tmp, next), 0);
    assert_int_equal(file_share(fd, old, &err), STATUS_NOTFOUND);
    assert_int_equal(kept_write(&writer, old, NULL, 0600, 10000, NULL, &w, &err), STATUS_OK);
    kept_release(w);
    assert_int_equal(file_share(fd, old, &err), STATUS_AGAIN); // the name is another file's
    close(fd);
    assert_int_equal(kept_read(&reader, next, &r, &n, &err), STATUS_OK);
    assert_int_equal(n, 10000);
    kept_release(r);
    kept_done(&reader);
    kept_done(&writer);
    unlink(old);
    unlink(next);
}

// ---- an update on the way ---------------------------------------------------------------------------------------------------

struct visits {
    const struct fixture *f;
    uint8_t *seen; // [layout.total]
};

static void visit(void *ctx, struct device *solo, const struct param *p, int64_t begin, int64_t end)
{
    const struct visits *v = ctx;
    assert_non_null(solo);
    assert_true(begin % 16 == 0 && (end % 16 == 0 || end == p->rows * p->cols));
    for (int64_t i = p->offset + begin; i < p->offset + end; i++) {
        v->seen[i]++;
        v->f->master[i] = v->f->master[i] * 0.5f + 1;
    }
}

// Every element is handed over once, before its bytes are made; nothing is when there is no room.
static void test_before(void **state)
{
    (void)state;
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_FP8};
    for (int k = 0; k < 3; k++)
        for (int threads = 1; threads <= 3; threads++) {
            struct fixture f;
            struct device *d = device("auto", threads);
            char hash[HASH_HEX], want[HASH_HEX], alone[HASH_HEX];
            fixture_open(&f, threads % 2);
            size_t n = (size_t)f.l.total * sizeof(float);
            float *first = mem_alloc(n);
            memcpy(first, f.master, n);
            struct visits v = {&f, mem_alloc((size_t)f.l.total)};
            struct weights_before before = {.fn = visit, .ctx = &v};
            struct weights_output out = {.path = "/nowhere/at/all", .before = &before};
            assert_int_not_equal(
                weights_file_rewrite(&out, false, d, &f.l, f.master, dtypes[k], 7, hash, NULL, &err),
                STATUS_OK);
            assert_false(before.done);
            assert_memory_equal(first, f.master, n);
            out.path = path;
            assert_int_equal(
                weights_file_rewrite(&out, false, d, &f.l, f.master, dtypes[k], 7, hash, NULL, &err),
                STATUS_OK);
            assert_true(before.done);
            int64_t visited = 0;
            for (int64_t i = 0; i < f.l.total; i++) {
                assert_true(v.seen[i] <= 1);
                visited += v.seen[i];
                assert_true(f.master[i] == (v.seen[i] ? first[i] * 0.5f + 1 : first[i]));
            }
            assert_int_equal(visited, f.l.n_parameters);
            assert_int_equal(weights_file_hash(d, &f.l, f.master, dtypes[k], 7, want, &err), STATUS_OK);
            assert_string_equal(hash, want);
            memcpy(f.master, first, n);
            memset(v.seen, 0, (size_t)f.l.total);
            out.path = NULL; // the hash alone
            assert_int_equal(
                weights_file_rewrite(&out, false, d, &f.l, f.master, dtypes[k], 7, alone, NULL, &err),
                STATUS_OK);
            assert_string_equal(alone, want);
            mem_free(first);
            mem_free(v.seen);
            fixture_close(&f);
            device_close(d);
        }
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads),           cmocka_unit_test(test_every_byte_counts),
        cmocka_unit_test(test_rewrite),           cmocka_unit_test(test_pages_go_round),
        cmocka_unit_test(test_reader_comes_late), cmocka_unit_test(test_before),
        cmocka_unit_test(test_header_changes),    cmocka_unit_test(test_header_known),
        cmocka_unit_test(test_long_path)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
