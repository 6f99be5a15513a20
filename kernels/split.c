// Division of work and scratch memory. Both live in struct scratch, one per device; any thread of the pool
// runs the range function, the calling thread does the rest.
//
// Invariants
//   1. Ranges depend on sizes and thread count only and never cut through a reduction: no bit depends on
//   them.
//   2. buf[t] is touched by thread t alone; buffers only grow, and go with the device.
#include "kernels/scratch.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"

struct split {
    split_fn *fn;
    void *ctx;
    int64_t n, align;
    int tasks;
};

static int64_t split_bound(const struct split *s, int task)
{
    int64_t units = ceil_div(s->n, s->align);
    return min_i64(units * task / s->tasks * s->align, s->n);
}

static void split_task(void *ctx, int task, int thread)
{
    const struct split *s = ctx;
    int64_t begin = split_bound(s, task), end = split_bound(s, task + 1);
    if (begin < end)
        s->fn(s->ctx, begin, end, thread);
}

void split_run(struct device *d, int64_t n, int64_t align, double ns_per_item, split_fn *fn, void *ctx)
{
    assert(n >= 0 && align > 0);
    if (n == 0)
        return;
    int threads = pool_threads(d->pool);
    int64_t units = ceil_div(n, align);
    double ranges = (double)n * ns_per_item / SPLIT_MIN_NS;
    // A few ranges a thread even out what the guess missed.
    int64_t most = min_i64(threads == 1 ? 1 : 8 * (int64_t)threads, units);
    struct split s = {.fn = fn, .ctx = ctx, .n = n, .align = align};
    s.tasks = (int)(ranges < 2 ? 1 : ranges < (double)most ? (int64_t)ranges : most);
    if (s.tasks > threads && s.tasks < 4 * threads) // few ranges: make them come out even
        s.tasks = s.tasks / threads * threads;
    if (s.tasks <= 1)
        fn(ctx, 0, n, 0);
    else
        pool_run(d->pool, s.tasks, split_task, &s);
}

int attn_trees(int n_seqs, const struct attn_seq *seqs, int32_t *ret_first)
{
    int n = 0;
    for (int i = 0; i < n_seqs; i++) {
        if (seqs[i].pos0 == 0)
            ret_first[n++] = i;
        else
            assert(n > 0 && seqs[i].pos0 % ATTN_BLOCK == 0 && seqs[i].pos0 > 0 &&
                   seqs[i].pos0 <= seqs[ret_first[n - 1]].n_rows);
    }
    ret_first[n] = n_seqs;
    return n;
}

static void *scratch_grow(struct scratch_buf *b, size_t bytes)
{
    if (b->bytes < bytes) {
        mem_free(b->p);
        b->bytes = bytes + bytes / 4;
        b->p = mem_alloc(b->bytes);
        if (!b->p) {
            fprintf(stderr, "kernels: no memory for %zu bytes of scratch\n", b->bytes);
            abort(); // see base/mem.h: dying is safe anywhere, and no op could go on
        }
    }
    return b->p;
}

void *scratch_get(struct device *d, int thread, size_t bytes)
{
    struct scratch *s = d->scratch;
    assert(thread >= 0 && thread < s->n_threads);
    return scratch_grow(&s->thread[thread], bytes);
}

void *scratch_shared(struct device *d, size_t bytes)
{
    struct scratch *s = d->scratch;
    return scratch_grow(&s->shared, bytes);
}

struct scratch *scratch_open(int n_threads)
{
    struct scratch *s = mem_must(1, sizeof *s);
    s->n_threads = n_threads;
    s->thread = mem_must((size_t)n_threads, sizeof *s->thread);
    return s;
}

void scratch_close(struct scratch *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n_threads; i++)
        mem_free(s->thread[i].p);
    mem_free(s->shared.p);
    free(s->thread);
    free(s);
}
