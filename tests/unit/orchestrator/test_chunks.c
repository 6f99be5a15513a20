// Weights in pieces: what is asked for comes whole and in bounds; what is not there says so; a removed file is served to its end.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "orchestrator/chunks.h"

#define BYTES ((size_t)MSG_CHUNK + 12345)

static char dir[64];
static uint8_t *content;

static void make_file(int version, size_t n, char *ret, size_t size)
{
    struct error err;
    snprintf(ret, size, "%s/%d", dir, version);
    assert_int_equal(file_write_atomic(ret, content, n, 0600, &err), STATUS_OK);
}

static struct msg_chunk_data ask(struct chunks *c, int64_t version, int64_t offset, int64_t bytes,
                                 int64_t now)
{
    struct msg_chunk_data d;
    const struct msg_chunk_request q = {.version = version, .offset = offset, .bytes = bytes};
    chunks_answer(c, &q, now, &d);
    assert_int_equal(d.version, version);
    return d;
}

static void test_pieces(void **state)
{
    (void)state;
    struct chunks c = {0};
    char path[128];
    make_file(3, BYTES, path, sizeof path);
    assert_int_equal(ask(&c, 3, 0, 100, 0).total, 0); // not offered
    chunks_offer(&c, 3, path, 0);
    unlink(path); // as the trainer does when it has newer ones
    for (int64_t at = 0, n; at < (int64_t)BYTES; at += n) {
        struct msg_chunk_data d = ask(&c, 3, at, MSG_CHUNK - 1, 1);
        int64_t left = (int64_t)BYTES - at;
        n = left < MSG_CHUNK - 1 ? left : MSG_CHUNK - 1;
        assert_int_equal(d.n, n);
        assert_int_equal(d.offset, at);
        assert_int_equal(d.total, BYTES);
        assert_memory_equal(d.data, content + at, (size_t)n);
    }
    struct msg_chunk_data d = ask(&c, 3, (int64_t)BYTES, 5, 1);
    assert_int_equal(d.n, 0);
    assert_int_equal(d.offset, BYTES);
    d = ask(&c, 3, INT64_MAX, 5, 1);
    assert_int_equal(d.n, 0);
    assert_int_equal(d.offset, BYTES);
    d = ask(&c, 3, 0, INT64_MAX, 1); // the wire refuses such a request; its answer is bounded all the same
    assert_int_equal(d.n, MSG_CHUNK);
    assert_int_equal(ask(&c, 2, 0, 5, 1).total, 0);
    chunks_close(&c);
}

static void test_bounds(void **state)
{
    (void)state;
    struct chunks c = {0};
    char path[128];
    for (int v = 0; v <= CHUNKS_FILES; v++) { // one more than there is room for
        make_file(v, 10, path, sizeof path);
        chunks_offer(&c, v, path, v);
        unlink(path);
    }
    assert_int_equal(ask(&c, 0, 0, 5, 100).total, 0);
    for (int v = 1; v <= CHUNKS_FILES; v++)
        assert_int_equal(ask(&c, v, 0, 5, v == 4 ? 200 : 100).total, 10);
    chunks_tick(&c, 101 + CHUNKS_IDLE_MS); // only version 4 was asked for since
    for (int v = 1; v <= CHUNKS_FILES; v++)
        assert_int_equal(ask(&c, v, 0, 5, 200).total, v == 4 ? 10 : 0);
    chunks_close(&c);
}

static void test_cut_short(void **state)
{
    (void)state;
    struct chunks c = {0};
    char path[128];
    make_file(1, 1000, path, sizeof path);
    chunks_offer(&c, 1, path, 0);
    assert_int_equal(truncate(path, 500), 0);
    assert_int_equal(ask(&c, 1, 0, 400, 0).n, 400);
    assert_int_equal(ask(&c, 1, 400, 400, 0).total, 0);
    chunks_offer(&c, 9, "/nowhere/at/all", 0);
    assert_int_equal(ask(&c, 9, 0, 5, 0).total, 0);
    chunks_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pieces), cmocka_unit_test(test_bounds),
                                       cmocka_unit_test(test_cut_short)};
    strcpy(dir, "/tmp/ooze-chunks-XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    content = malloc(BYTES);
    for (size_t i = 0; i < BYTES; i++)
        content[i] = (uint8_t)(i * 2654435761u >> 13);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    struct error err;
    free(content);
    return file_remove_tree(dir, &err) == STATUS_OK ? rc : 1;
}
