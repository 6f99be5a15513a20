// TensorBoard event files; see tensorboard.h. Runs on the loop's thread.
#include "orchestrator/tensorboard.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"

struct tensorboard {
    FILE *file;
    struct buf event, summary, value, record;
    char path[4096];
};

// CRC-32C (Castagnoli), reflected polynomial 0x82F63B78.
static uint32_t crc32c(const void *p, size_t n)
{
    const unsigned char *s = p;
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= s[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static uint32_t masked(const void *p, size_t n)
{
    uint32_t crc = crc32c(p, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void put_fixed(struct buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        buf_putc(b, (char)(v >> 8 * i & 0xff));
}

static void put_varint(struct buf *b, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        buf_putc(b, (char)(v | 0x80));
    buf_putc(b, (char)v);
}

static void put_bytes(struct buf *b, int field, const void *p, size_t n)
{
    put_varint(b, (uint64_t)field << 3 | 2);
    put_varint(b, n);
    buf_append(b, p, n);
}

static void put_double(struct buf *b, int field, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_varint(b, (uint64_t)field << 3 | 1);
    put_fixed(b, bits, 8);
}

static void put_float(struct buf *b, int field, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_varint(b, (uint64_t)field << 3 | 5);
    put_fixed(b, bits, 4);
}

void tensorboard_record(struct buf *out, const void *payload, size_t n)
{
    struct buf head = {0};
    put_fixed(&head, n, 8);
    buf_append(out, head.data, head.len);
    put_fixed(out, masked(head.data, head.len), 4);
    buf_append(out, payload, n);
    put_fixed(out, masked(payload, n), 4);
    buf_done(&head);
}

// A record that could not be written whole leaves a tail that readers stop at; the next one starts behind it only if it was cut off.
static enum status flush_event(struct tensorboard *t, struct error *err)
{
    buf_clear(&t->record);
    tensorboard_record(&t->record, t->event.data, t->event.len);
    long at = ftell(t->file);
    if (fwrite(t->record.data, 1, t->record.len, t->file) == t->record.len && fflush(t->file) == 0)
        return STATUS_OK;
    int why = errno;
    clearerr(t->file);
    if (at >= 0 && ftruncate(fileno(t->file), at) == 0)
        fseek(t->file, at, SEEK_SET);
    return error_errno(err, why, "writing %s", t->path);
}

enum status tensorboard_open(const char *run_dir, int64_t wall_ms, struct tensorboard **ret,
                             struct error *err)
{
    static const char version[] = "brain.Event:2";
    char dir[2048];
    enum status rc = file_join(dir, sizeof dir, run_dir, "tensorboard", err);
    if (rc || (rc = file_mkdirs(dir, 0700, err)))
        return rc;
    struct tensorboard *t = mem_must(1, sizeof *t);
    snprintf(t->path, sizeof t->path, "%s/events.out.tfevents.%010" PRId64 ".ooze.%d", dir, wall_ms / 1000,
             (int)getpid());
    t->file = fopen(t->path, "we");
    if (!t->file) {
        rc = error_errno(err, errno, "creating %s", t->path);
        tensorboard_close(t);
        return rc;
    }
    put_double(&t->event, 1, (double)wall_ms / 1000);
    put_bytes(&t->event, 3, version, sizeof version - 1);
    if ((rc = flush_event(t, err))) {
        tensorboard_close(t);
        return rc;
    }
    *ret = t;
    return STATUS_OK;
}

void tensorboard_close(struct tensorboard *t)
{
    if (!t)
        return;
    if (t->file)
        fclose(t->file);
    buf_done(&t->event);
    buf_done(&t->summary);
    buf_done(&t->value);
    buf_done(&t->record);
    free(t);
}

enum status tensorboard_write(struct tensorboard *t, int64_t wall_ms, int64_t step, const json_t *figures,
                              struct error *err)
{
    const char *name;
    json_t *v;
    buf_clear(&t->event);
    buf_clear(&t->summary);
    json_object_foreach((json_t *)figures, name, v)
    {
        double x = json_number_value(v);
        if (!json_is_number(v) || !isfinite(x) || !strcmp(name, "step") || !strcmp(name, "wall_ms"))
            continue;
        buf_clear(&t->value);
        put_bytes(&t->value, 1, name, strlen(name));
        put_float(&t->value, 2, (float)x);
        put_bytes(&t->summary, 1, t->value.data, t->value.len);
    }
    put_double(&t->event, 1, (double)wall_ms / 1000);
    put_varint(&t->event, 2 << 3 | 0);
    put_varint(&t->event, (uint64_t)step);
    put_bytes(&t->event, 5, t->summary.data ? t->summary.data : "", t->summary.len);
    return flush_event(t, err);
}
