// base/file.h: whole or not at all.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka wants its four first
#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/ooze-file-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    struct error err;
    return file_remove_tree(dir, &err) == STATUS_OK && !file_exists(dir) ? 0 : -1;
}

static const char *in_dir(const char *name)
{
    static char path[4][256];
    static int turn;
    struct error err;
    turn = (turn + 1) % 4;
    assert_int_equal(file_join(path[turn], sizeof(path[turn]), dir, name, &err), STATUS_OK);
    return path[turn];
}

static int n_entries(void)
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));) {
        n += e->d_name[0] != '.' || (e->d_name[1] && strcmp(e->d_name, "..") != 0);
    }
    closedir(d);
    return n;
}

static void test_read_write(void **state)
{
    (void)state;
    struct error err;
    char *data = NULL;
    size_t n;
    assert_int_equal(file_read(in_dir("f"), 100, &data, &n, &err), STATUS_NOTFOUND);
    assert_int_equal(file_write_atomic(in_dir("f"), "a\0b", 3, 0600, &err), STATUS_OK);
    assert_int_equal(file_read(in_dir("f"), 3, &data, &n, &err), STATUS_OK);
    assert_int_equal(n, 3);
    assert_memory_equal(data, "a\0b", 4);
    free(data);
    data = NULL;
    assert_int_equal(file_read(in_dir("f"), 2, &data, &n, &err), STATUS_LIMIT);
    assert_null(data);
    struct stat st;
    assert_int_equal(stat(in_dir("f"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(file_write_atomic(in_dir("f"), "", 0, 0600, &err), STATUS_OK);
    assert_int_equal(file_read(in_dir("f"), 0, &data, &n, &err), STATUS_OK);
    assert_int_equal(n, 0);
    assert_string_equal(data, "");
    free(data);
    assert_int_equal(file_write_atomic(in_dir("no/f"), "x", 1, 0600, &err), STATUS_NOTFOUND);
    assert_int_equal(n_entries(), 1);
}

static void test_atomic(void **state)
{
    (void)state;
    struct error err;
    struct file_atomic f;
    char *data;
    size_t n;
    assert_int_equal(file_write_atomic(in_dir("f"), "old", 3, 0600, &err), STATUS_OK);
    assert_int_equal(file_atomic_open(&f, in_dir("f"), 0600, &err), STATUS_OK);
    assert_int_equal(file_atomic_write(&f, "ne", 2, &err), STATUS_OK);
    assert_int_equal(file_read(in_dir("f"), 9, &data, &n, &err), STATUS_OK);
    assert_string_equal(data, "old"); // not visible yet
    free(data);
    file_atomic_abandon(&f);
    assert_int_equal(n_entries(), 1);
    assert_int_equal(file_atomic_open(&f, in_dir("f"), 0600, &err), STATUS_OK);
    assert_int_equal(file_atomic_write(&f, "ne", 2, &err), STATUS_OK);
    assert_int_equal(file_atomic_write(&f, "w", 1, &err), STATUS_OK);
    assert_int_equal(file_atomic_commit(&f, &err), STATUS_OK);
    file_atomic_abandon(&f);
    assert_int_equal(file_read(in_dir("f"), 9, &data, &n, &err), STATUS_OK);
    assert_string_equal(data, "new");
    free(data);
    assert_int_equal(n_entries(), 1);
}

static void test_folders(void **state)
{
    (void)state;
    struct error err;
    char path[16] = "untouched";
    assert_int_equal(file_mkdirs(in_dir("a/b/c"), 0700, &err), STATUS_OK);
    assert_int_equal(file_mkdirs(in_dir("a/b/c"), 0700, &err), STATUS_OK);
    assert_true(file_exists(in_dir("a/b/c")));
    assert_int_equal(file_write_atomic(in_dir("a/f"), "x", 1, 0600, &err), STATUS_OK);
    assert_int_not_equal(file_mkdirs(in_dir("a/f/c"), 0700, &err), STATUS_OK); // a file is in the way
    assert_int_equal(symlink("/", in_dir("a/link")), 0);
    assert_int_equal(file_remove_tree(in_dir("a"), &err), STATUS_OK); // the link, not what it points to
    assert_false(file_exists(in_dir("a")));
    assert_true(file_exists("/tmp"));
    assert_int_equal(file_remove_tree(in_dir("a"), &err), STATUS_OK);
    assert_int_not_equal(file_join(path, sizeof(path), "/a/long/folder", "name", &err), STATUS_OK);
}

static void test_map(void **state)
{
    (void)state;
    struct error err;
    struct file_map m;
    assert_int_equal(file_write_atomic(in_dir("m"), "mapped", 6, 0600, &err), STATUS_OK);
    assert_int_equal(file_map_open(in_dir("m"), true, &m, &err), STATUS_OK);
    assert_int_equal(m.len, 6);
    assert_memory_equal(m.data, "mapped", 6);
    file_map_close(&m);
    assert_int_equal(symlink(in_dir("m"), in_dir("l")), 0);
    assert_int_not_equal(file_map_open(in_dir("l"), true, &m, &err), STATUS_OK);
    assert_int_equal(file_map_open(in_dir("l"), false, &m, &err), STATUS_OK);
    file_map_close(&m);
    assert_int_equal(file_write_atomic(in_dir("m"), "", 0, 0600, &err), STATUS_OK);
    assert_int_equal(file_map_open(in_dir("m"), true, &m, &err), STATUS_OK);
    assert_null(m.data);
    assert_int_equal(m.len, 0);
    file_map_close(&m);
    assert_int_equal(file_map_open(in_dir("none"), true, &m, &err), STATUS_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_read_write, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_atomic, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_folders, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_map, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
