// Where each tensor lies in a weights file: see plan.h. Any thread; no state.
#include "model/plan.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/kernels.h"

#define HEADER_ALIGN 64

enum dtype param_dtype(const struct param *p, enum dtype dtype)
{
    if (dtype == DT_F32)
        return DT_F32;
    return dtype == DT_FP8 && p->fp8 ? DT_FP8 : DT_BF16;
}

static int64_t blocks(int64_t n)
{
    return (n + FP8_BLOCK - 1) / FP8_BLOCK;
}

int64_t param_scales(const struct param *p)
{
    return blocks(p->rows) * blocks(p->cols);
}

static void tensor_add(struct plan *p, const struct param *param, bool is_scale, enum dtype dtype)
{
    struct plan_tensor *t = &p->tensors[p->n++];
    *t = (struct plan_tensor){.param = param, .is_scale = is_scale, .dtype = dtype};
    t->rows = is_scale ? blocks(param->rows) : param->rows;
    t->cols = is_scale ? blocks(param->cols) : param->cols;
    snprintf(t->name, sizeof(t->name), "%s%s", param->name, is_scale ? "_scale_inv" : "");
    t->begin = p->data_bytes;
    t->bytes = t->rows * t->cols * (int64_t)dtype_bytes(dtype);
    p->data_bytes += t->bytes;
}

void plan_init(struct plan *p, const struct layout *l, enum dtype dtype)
{
    assert(dtype == DT_F32 || dtype == DT_BF16 || dtype == DT_FP8);
    *p = (struct plan){0};
    p->tensors = mem_must((size_t)l->n * 2, sizeof(p->tensors[0]));
    static const enum dtype order[] = {DT_F32, DT_BF16, DT_FP8};
    for (int k = 0; k < 3; k++)
        for (int32_t i = 0; i < l->n; i++) {
            const struct param *param = &l->params[i];
            enum dtype t = param_dtype(param, dtype);
            if (order[k] == DT_F32 && t == DT_FP8)
                tensor_add(p, param, true, DT_F32);
            if (t == order[k])
                tensor_add(p, param, false, t);
        }
}

void plan_done(struct plan *p)
{
    if (!p)
        return;
    free(p->tensors);
    *p = (struct plan){0};
}

void plan_header(const struct plan *p, enum dtype dtype, int64_t version, struct buf *out)
{
    buf_clear(out);
    buf_append(out, "\0\0\0\0\0\0\0\0", 8);
    // "format": readers of the Hugging Face stack want to know whose layout it is.
    buf_puts(out, "{\"__metadata__\":{\"format\":\"pt\"");
    if (version >= 0)
        buf_printf(out, ",\"version\":\"%" PRId64 "\",\"dtype\":\"%s\"", version, dtype_name(dtype));
    buf_putc(out, '}');
    for (int32_t i = 0; i < p->n; i++) {
        const struct plan_tensor *t = &p->tensors[i];
        buf_printf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, dtype_name(t->dtype));
        if (!t->param->vector)
            buf_printf(out, "%" PRId64 ",", t->rows);
        buf_printf(out, "%" PRId64 "],\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", t->cols, t->begin,
                   t->begin + t->bytes);
    }
    buf_putc(out, '}');
    while (out->len % HEADER_ALIGN)
        buf_putc(out, ' ');
    uint64_t n = out->len - 8;
    for (int i = 0; i < 8; i++)
        out->data[i] = (char)(n >> 8 * i);
}
