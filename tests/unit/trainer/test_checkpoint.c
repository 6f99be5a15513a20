// trainer/checkpoint.h, trainer/export.h, trainer/publish.h: what lies on disk.
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// cmocka wants the four above first
#include <cmocka.h>

#include "base/file.h"
#include "model/folder.h"
#include "tests/unit/trainer/tiny.h"
#include "trainer/checkpoint.h"
#include "trainer/export.h"
#include "trainer/publish.h"

#define STEPS 6

static char run_dir[256];

static int setup(void **state)
{
    (void)state;
    snprintf(run_dir, sizeof run_dir, "%s/ooze-trainer-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    return mkdtemp(run_dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    struct error err;
    return file_remove_tree(run_dir, &err);
}

static void path_of(char *ret, size_t n, const char *fmt, long long k)
{
    char name[128];
    snprintf(name, sizeof name, fmt, k);
    snprintf(ret, n, "%s/%s", run_dir, name);
}

static struct trainer *open_trainer(const struct run_config *c)
{
    struct trainer *t = NULL;
    struct error err = {0};
    if (trainer_open(c, run_dir, &t, &err) || trainer_restart(t, &err))
        fail_msg("%s", err.text);
    return t;
}

static void run_step(struct trainer *t, const struct tiny_step *s, int k)
{
    static struct step_result r;
    struct error err = {0};
    struct msg_prepare m = s->msg;
    m.step = k;
    m.stage_first = k == 0;
    m.optimizer_reset = k == 3;
    m.updates = 1 + k % 2;
    m.packing_seed = (uint64_t)k;
    if (trainer_step(t, &m, &r, &err))
        fail_msg("%s", err.text);
    assert_int_equal(r.outcome, k == 3 ? STEP_REJECTED : STEP_APPLIED);
}

static bool same_state(const struct trainer *a, const struct trainer *b)
{
    size_t n = (size_t)a->layout.total * sizeof(float);
    return memcmp(a->master, b->master, n) == 0 && memcmp(a->optimizer.m, b->optimizer.m, n) == 0 &&
           memcmp(a->optimizer.v, b->optimizer.v, n) == 0 && a->optimizer.updates == b->optimizer.updates &&
           a->step == b->step && a->stage == b->stage && a->reset_pending == b->reset_pending;
}

// A run that is stopped after any step and resumed by another process equals the uninterrupted one bit for bit, weights hash
// included. Step 3 was to reset the optimizer and is rejected, so step 4 does; odd steps have two updates.
static void test_resume_is_bit_exact(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct tiny_step steps[STEPS];
    char hash[HASH_HEX], resumed_hash[HASH_HEX], checkpoint[HASH_HEX], dir[512];
    struct error err = {0};
    for (int k = 0; k < STEPS; k++)
        tiny_step_init(&steps[k], 8, 0, 2, 100 + (uint64_t)k);
    steps[3].ids[5] = -1;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        c->trainer.dtype = bf16 ? RUN_BF16 : RUN_F32;
        struct trainer *whole = open_trainer(c);
        for (int k = 0; k < STEPS; k++) {
            path_of(dir, sizeof dir, "checkpoints/step-%lld", k);
            if (checkpoint_write(whole, dir, "abc", checkpoint, &err))
                fail_msg("%s", err.text);
            run_step(whole, &steps[k], k);
        }
        assert_int_equal(weights_file_hash(NULL, &whole->layout, whole->master, DT_FP8, STEPS, hash, &err),
                         STATUS_OK);
        for (int k = 0; k < STEPS; k++) {
            struct trainer *resumed = NULL;
            c->trainer.threads = 1 + k % 2;
            path_of(dir, sizeof dir, "checkpoints/step-%lld", k);
            assert_int_equal(trainer_open(c, run_dir, &resumed, &err), STATUS_OK);
            if (checkpoint_read(resumed, dir, k == STEPS - 1 ? checkpoint : NULL, &err))
                fail_msg("%s", err.text);
            for (int j = k; j < STEPS; j++)
                run_step(resumed, &steps[j], j);
            assert_true(same_state(whole, resumed));
            assert_int_equal(weights_file_hash(resumed->device, &resumed->layout, resumed->master, DT_FP8,
                                               STEPS, resumed_hash, &err),
                             STATUS_OK);
            assert_string_equal(hash, resumed_hash);
            trainer_close(resumed);
        }
        c->trainer.threads = 1;
        trainer_close(whole);
    }
    for (int k = 0; k < STEPS; k++)
        tiny_step_done(&steps[k]);
    free(c);
}

static void flip_byte(const char *path, long at)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    int c = fgetc(f);
    assert_int_equal(fseek(f, -1, SEEK_CUR), 0);
    fputc(c ^ 1, f);
    fclose(f);
}

static void test_damage_is_refused(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct trainer *t = open_trainer(c), *other = open_trainer(c);
    static const char *const files[] = {"model.safetensors", "optimizer.safetensors", "state.json"};
    char dir[512], path[600], hash[HASH_HEX];
    struct error err = {0};
    path_of(dir, sizeof dir, "checkpoints/step-%lld", 0);
    for (int k = 0; k < 9; k++) {
        assert_int_equal(checkpoint_write(t, dir, "abc", hash, &err), STATUS_OK); // over the damaged one
        snprintf(path, sizeof path, "%s/%s", dir, files[k % 3]);
        if (k < 3)
            flip_byte(path, k == 2 ? 30 : -9);
        else if (k < 6)
            assert_int_equal(truncate(path, 40), 0);
        else
            assert_int_equal(unlink(path), 0);
        other->master[0] = 0.5f;
        enum status rc = checkpoint_read(other, dir, hash, &err);
        assert_true(rc == STATUS_CORRUPT || rc == STATUS_INVALID || rc == STATUS_NOTFOUND);
        assert_non_null(strstr(err.text, "step-0"));
        assert_true(other->master[0] == 0.5f); // what it had, it keeps
    }
    // of other numerics
    assert_int_equal(checkpoint_write(t, dir, "abc", hash, &err), STATUS_OK);
    snprintf(other->device->numerics_id, sizeof other->device->numerics_id, "something else");
    assert_int_equal(checkpoint_read(other, dir, hash, &err), STATUS_REFUSED);
    c->check.numerics = RUN_NUMERICS_RELAXED;
    assert_int_equal(checkpoint_read(other, dir, hash, &err), STATUS_OK);
    c->check.numerics = RUN_NUMERICS_STRICT;
    // of another shape
    c->model.hidden = 16;
    c->model.head_dim = 4;
    struct trainer *small = open_trainer(c);
    assert_int_not_equal(checkpoint_read(small, dir, hash, &err), STATUS_OK);
    trainer_close(small);
    // not the one that was recorded
    hash[3] ^= 1;
    trainer_close(other);
    other = t;
    assert_int_equal(checkpoint_read(other, dir, hash, &err), STATUS_CORRUPT);
    trainer_close(t);
    free(c);
}

static int count_entries(const char *dir)
{
    DIR *d = opendir(dir);
    int n = 0;
    if (!d)
        return 0;
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.' || strlen(e->d_name) > 2;
    closedir(d);
    return n;
}

static void test_prune_and_clean(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct trainer *t = open_trainer(c);
    char dir[512], hash[HASH_HEX], folder[512];
    struct error err = {0};
    path_of(folder, sizeof folder, "checkpoints", 0);
    assert_int_equal(file_remove_tree(folder, &err), STATUS_OK);
    path_of(dir, sizeof dir, "checkpoints/step-%lld", 12);
    assert_int_equal(checkpoint_write(t, dir, "abc", hash, &err), STATUS_OK);
    assert_int_equal(count_entries(folder), 1);                                   // no temporaries stay
    assert_int_equal(checkpoint_remove(run_dir, "/etc/step-1", &err), STATUS_OK); // missing is fine
    assert_int_equal(checkpoint_remove(run_dir, run_dir, &err), STATUS_REFUSED);
    assert_int_equal(checkpoint_remove(run_dir, folder, &err), STATUS_REFUSED);
    path_of(dir, sizeof dir, "step-%lld", 3); // a checkpoint's name in another folder
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(checkpoint_remove(run_dir, dir, &err), STATUS_REFUSED);
    path_of(dir, sizeof dir, "checkpoints/.tmp-step-%lld", 99);
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(count_entries(folder), 2);
    assert_int_equal(checkpoint_clean(run_dir, &err), STATUS_OK);
    assert_int_equal(count_entries(folder), 1);
    path_of(dir, sizeof dir, "checkpoints/step-%lld", 12);
    assert_int_equal(checkpoint_remove(run_dir, dir, &err), STATUS_OK);
    assert_int_equal(count_entries(folder), 0);
    trainer_close(t);
    free(c);
}

static void test_export(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct trainer *t = open_trainer(c);
    char dir[512], out[512], hash[HASH_HEX], path[600];
    struct error err = {0};
    path_of(dir, sizeof dir, "checkpoints/step-%lld", 20);
    assert_int_equal(checkpoint_write(t, dir, "abc", hash, &err), STATUS_OK);
    for (enum dtype d = DT_F32; d <= DT_FP8; d++) {
        float *master = NULL;
        path_of(out, sizeof out, "export-%lld", (long long)d);
        if (export_folder(dir, out, d, &err))
            fail_msg("%s", err.text);
        assert_int_equal(model_folder_read(out, &t->model, &t->layout, &master, &err), STATUS_OK);
        double distance = tiny_distance(master, t->master, t->layout.total);
        assert_true(d == DT_F32 ? distance == 0 : distance < (d == DT_BF16 ? 3e-3 : 4e-2));
        mem_free(master);
        assert_int_equal(export_folder(dir, out, d, &err), STATUS_EXISTS);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    flip_byte(path, -5);
    path_of(out, sizeof out, "export-%lld", 77);
    assert_int_equal(export_folder(dir, out, DT_BF16, &err), STATUS_CORRUPT);
    assert_false(file_exists(out));
    trainer_close(t);
    free(c);
}

static void test_publish(void **state)
{
    (void)state;
    struct run_config *c = tiny_config();
    struct trainer *t = open_trainer(c);
    struct publish p;
    struct error err = {0};
    char shm[512], folder[512], path[RUNCONFIG_PATH], hash[HASH_HEX], again[HASH_HEX];
    int64_t bytes;
    path_of(shm, sizeof shm, "shm", 0);
    path_of(folder, sizeof folder, "weights", 0);
    assert_int_equal(mkdir(shm, 0700), 0);
    assert_int_equal(publish_init(&p, run_dir, "../../etc", shm, &err), STATUS_INVALID);
    path_of(path, sizeof path, "shm/ooze-0abc-7.tmp.123", 0); // of a killed incarnation
    fclose(fopen(path, "w"));
    path_of(path, sizeof path, "shm/ooze-0abd-7", 0); // of another run
    fclose(fopen(path, "w"));
    assert_int_equal(publish_init(&p, run_dir, "0abc", shm, &err), STATUS_OK);
    assert_int_equal(count_entries(shm), 1);
    for (int v = 0; v < 6; v++) {
        t->step = v;
        assert_int_equal(publish_weights(&p, t, false, path, again, &bytes, &err), STATUS_OK);
        assert_true(!*path && bytes == 0);
        if (publish_weights(&p, t, true, path, hash, &bytes, &err))
            fail_msg("%s", err.text);
        assert_string_equal(hash, again);
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, bytes);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_non_null(strstr(path, "/shm/ooze-0abc-"));
        publish_prune(&p, 3);
    }
    assert_int_equal(count_entries(shm), 1 + 3 + 1); // and the pages of the next one
    assert_int_equal(publish_weights(&p, t, true, path, again, &bytes, &err),
                     STATUS_OK); // a replay writes over it
    assert_string_equal(hash, again);
    // shared memory is gone: the run directory takes over
    snprintf(p.shm, sizeof p.shm, "%s/none", run_dir);
    t->step = 6;
    assert_int_equal(publish_weights(&p, t, true, path, hash, &bytes, &err), STATUS_OK);
    assert_non_null(strstr(path, "/weights/6.safetensors"));
    snprintf(p.shm, sizeof p.shm, "%s", shm);
    publish_prune(&p, 3);
    assert_int_equal(count_entries(shm), 1 + 2 + 1);
    assert_int_equal(count_entries(folder), 1);
    publish_leave(&p);
    assert_int_equal(count_entries(shm), 1);
    assert_int_equal(count_entries(folder), 1);
    trainer_close(t);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_resume_is_bit_exact, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damage_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_prune_and_clean, setup, teardown),
        cmocka_unit_test_setup_teardown(test_export, setup, teardown),
        cmocka_unit_test_setup_teardown(test_publish, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
