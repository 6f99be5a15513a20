// Parts of a weights file: see parts.h. The thread that fills the weights; constant once made.
#include "model/parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define LENGTH_BYTES 8  // before the JSON of a header
#define DIGITS_MAX   19 // of a version

static void part_add(struct parts *p, struct part part)
{
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 2048;
        p->parts = mem_grow(p->parts, (size_t)p->cap, sizeof *p->parts);
    }
    p->parts[p->n++] = part;
}

// Cuts `rows` rows of row_bytes bytes each, the first at `begin`, into parts like part: a matrix may be packed in pieces of this many
// rows (kernels.h, weight_pack), and what they have to do with a part leaves it in the cache.
static void rows_add(struct parts *p, struct part part, int64_t rows, int64_t row_bytes, size_t begin)
{
    for (part.row = 0; part.row < rows; part.row += part.rows) {
        part.rows = rows - part.row < FP8_BLOCK ? rows - part.row : FP8_BLOCK;
        part.begin = begin + (size_t)(part.row * row_bytes);
        part.end = part.begin + (size_t)(part.rows * row_bytes);
        part_add(p, part);
    }
}

static int by_begin(const void *a, const void *b)
{
    const struct part *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->kind > y->kind) - (x->kind < y->kind);
}

static void parts_list(struct parts *p, const struct weights *w)
{
    const struct param *params = w->l.params, *e = w->embedding_param;
    part_add(p, (struct part){.kind = PART_REST});
    rows_add(p, (struct part){.kind = PART_EMBEDDING}, e->rows,
             e->cols * (int64_t)dtype_bytes(weights_embedding_dtype(w->dtype)), p->places[2 * (e - params)]);
    for (int32_t i = 0; i < w->n_linears; i++) {
        struct linear *l = w->linears[i];
        for (int k = 0; k < l->n_parts; k++) {
            struct gemm_weight *g = &l->fwd[k];
            rows_add(p, (struct part){.kind = PART_MATRIX, .weight = g}, g->n,
                     g->k * (int64_t)dtype_bytes(g->dtype), p->places[2 * (l->params[k] - params)]);
        }
    }
    qsort(p->parts, (size_t)p->n, sizeof *p->parts, by_begin);
}

const struct parts *parts_of(struct weights *w)
{
    static const char before[] = "\"version\":\"";
    assert(!w->train);
    if (w->parts)
        return w->parts;
    struct parts *p = mem_must(1, sizeof *p);
    plan_init(&p->plan, &w->l, w->dtype);
    plan_header(&p->plan, w->dtype, 0, &p->header);
    const char *version = strstr(p->header.data + LENGTH_BYTES, before);
    assert(version);
    p->digit = (size_t)(version - p->header.data) + sizeof before - 1;
    while (p->header.data[p->header.len - 1] == ' ')
        p->header.len--; // another version, another padding
    p->places = mem_must((size_t)w->l.n * 2, sizeof *p->places);
    for (int32_t i = 0; i < p->plan.n; i++) {
        const struct plan_tensor *t = &p->plan.tensors[i];
        p->places[2 * (t->param - w->l.params) + t->is_scale] = (size_t)t->begin;
    }
    parts_list(p, w);
    w->parts = p;
    return p;
}

void parts_free(struct parts *p)
{
    if (!p)
        return;
    plan_done(&p->plan);
    buf_done(&p->header);
    free(p->places);
    free(p->parts);
    free(p);
}

bool parts_begin_file(const struct parts *p, const void *data, size_t bytes, size_t *ret_header)
{
    const char *file = data, *want = p->header.data;
    size_t digits = 0, after = p->digit + 1, tail = p->header.len - after;
    if (bytes < p->header.len + DIGITS_MAX + MEM_ALIGN ||
        memcmp(file + LENGTH_BYTES, want + LENGTH_BYTES, p->digit - LENGTH_BYTES) != 0)
        return false;
    while (digits < DIGITS_MAX && file[p->digit + digits] >= '0' && file[p->digit + digits] <= '9')
        digits++;
    size_t end = p->digit + digits + tail, padded = (end + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    if (digits == 0 || memcmp(file + p->digit + digits, want + after, tail) != 0 ||
        bytes != padded + (size_t)p->plan.data_bytes)
        return false;
    for (; end < padded; end++)
        if (file[end] != ' ')
            return false;
    for (int i = 0; i < LENGTH_BYTES; i++)
        if ((uint8_t)file[i] != (uint8_t)((uint64_t)(padded - LENGTH_BYTES) >> 8 * i))
            return false;
    *ret_header = padded;
    return true;
}
