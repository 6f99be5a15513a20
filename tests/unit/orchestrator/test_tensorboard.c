// TensorBoard files: the record format by known answers, and an event taken apart again.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "orchestrator/tensorboard.h"

// CRC-32C("123456789") is 0xE3069283, the check value of the algorithm; masked as TFRecord has it: ror 15, plus 0xa282ead8.
static void test_record(void **state)
{
    (void)state;
    struct buf b = {0};
    tensorboard_record(&b, "123456789", 9);
    assert_int_equal(b.len, 8 + 4 + 9 + 4);
    const unsigned char *p = (const unsigned char *)b.data;
    const uint32_t crc = 0xE3069283u, want = (crc >> 15 | crc << 17) + 0xa282ead8u;
    uint32_t got = (uint32_t)p[21] | (uint32_t)p[22] << 8 | (uint32_t)p[23] << 16 | (uint32_t)p[24] << 24;
    assert_int_equal(p[0], 9);
    assert_int_equal(got, want);
    buf_done(&b);
}

static void test_events(void **state)
{
    (void)state;
    char dir[] = "/tmp/ooze-tb-XXXXXX", path[256], cmd[300], *data;
    struct tensorboard *t;
    struct error err;
    size_t n;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(tensorboard_open(dir, 5000, &t, &err), STATUS_OK);
    json_t *j = json_pack("{s:i, s:I, s:f, s:s, s:n}", "step", 300, "wall_ms", (json_int_t)6500, "train/loss",
                          0.5, "stage", "rl", "lag", 0);
    assert_int_equal(tensorboard_write(t, 6500, 300, j, &err), STATUS_OK);
    json_decref(j);
    tensorboard_close(t);
    snprintf(cmd, sizeof cmd, "mv %s/tensorboard/events.out.tfevents.0000000005.ooze.* %s/events", dir, dir);
    assert_int_equal(system(cmd), 0);
    snprintf(path, sizeof path, "%s/events", dir);
    assert_int_equal(file_read(path, 1 << 20, &data, &n, &err), STATUS_OK);
    size_t first = (size_t)data[0] + 16; // the version record
    assert_memory_equal(data + 12 + 9 + 2, "brain.Event:2", 13);
    const char *event = data + first + 12;
    static const unsigned char want[] = {0x09, 0,    0,    0,    0,    0,    0,   0x1a, 0x40, // wall_time 6.5
                                         0x10, 0xac, 0x02,                                    // step 300
                                         0x2a, 0x13, 0x0a, 0x11, 0x0a, 0x0a, 't', 'r',  'a',
                                         'i',  'n',  '/',                                      // one value
                                         'l',  'o',  's',  's',  0x15, 0,    0,   0,    0x3f}; // 0.5
    assert_int_equal((unsigned char)data[first], sizeof want);
    assert_memory_equal(event, want, sizeof want);
    assert_int_equal(n, first + 16 + sizeof want);
    free(data);
    assert_int_equal(file_remove_tree(dir, &err), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_record), cmocka_unit_test(test_events)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
