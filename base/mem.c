// Memory: see mem.h. mem_* are thread-safe (malloc is); an arena belongs to one thread.
#include "base/mem.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

struct arena_chunk {
    struct arena_chunk *next;
    size_t size; // usable bytes behind the header
    size_t used;
};
#define CHUNK_HEADER ((sizeof(struct arena_chunk) + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN)
#define CHUNK_MIN    ((size_t)64 << 10)
#define HUGE_PAGE    ((size_t)2 << 20)

void *mem_alloc(size_t bytes)
{
    if (bytes == 0 || bytes > SIZE_MAX - MEM_ALIGN)
        return NULL;
    size_t rounded = (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    bool large = rounded >= 2 * HUGE_PAGE;
    void *p;
    if (posix_memalign(&p, large ? HUGE_PAGE : MEM_ALIGN, rounded))
        return NULL;
    // Weights, moments and activations are walked from end to end: in pages of 4 KiB a tenth of that is spent on finding pages.
    if (large)
        (void)madvise(p, rounded / HUGE_PAGE * HUGE_PAGE,
                      MADV_HUGEPAGE); // a wish: kernels without huge pages refuse it
    memset(p, 0, rounded);
    return p;
}

void mem_free(void *p)
{
    free(p);
}

void mem_copy_past(void *dst, const void *src, size_t n)
{
    size_t lines = 0;
    assert((uintptr_t)dst % MEM_ALIGN == 0);
#if defined(__SSE2__)
    for (; (lines + 1) * MEM_ALIGN <= n; lines++) {
        const __m128i *from = (const __m128i *)(const void *)((const char *)src + lines * MEM_ALIGN);
        __m128i *to = (__m128i *)(void *)((char *)dst + lines * MEM_ALIGN);
        __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2),
                e = _mm_loadu_si128(from + 3);
        _mm_stream_si128(to, a);
        _mm_stream_si128(to + 1, b);
        _mm_stream_si128(to + 2, c);
        _mm_stream_si128(to + 3, e);
    }
    _mm_sfence(); // such stores come after others unless told
#endif
    memcpy((char *)dst + lines * MEM_ALIGN, (const char *)src + lines * MEM_ALIGN, n - lines * MEM_ALIGN);
}

static _Noreturn void mem_die(size_t n, size_t size)
{
    fprintf(stderr, "level=error event=out_of_memory cause=\"no memory for %zu x %zu bytes\"\n", n, size);
    abort();
}

void *mem_must(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p)
        mem_die(n, size);
    return p;
}

void *mem_grow(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n ? n : 1, size ? size : 1, &bytes))
        mem_die(n, size);
    void *q = realloc(p, bytes);
    if (!q)
        mem_die(n, size);
    return q;
}

char *mem_strndup(const char *s, size_t n)
{
    char *p = mem_must(n + 1, 1);
    memcpy(p, s, n);
    return p;
}

char *mem_strdup(const char *s)
{
    return mem_strndup(s, strlen(s));
}

char *mem_printf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *s = NULL;
    if (vasprintf(&s, fmt, ap) < 0)
        mem_die(1, strlen(fmt));
    va_end(ap);
    return s;
}

void arena_init(struct arena *a, size_t limit_bytes)
{
    *a = (struct arena){.limit = limit_bytes};
}

void arena_done(struct arena *a)
{
    if (!a)
        return;
    for (struct arena_chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    *a = (struct arena){.limit = a->limit};
}

// A round that needed several chunks leaves one with room for all it handed out, so that rounds alike settle on one
// chunk and allocate nothing more.
void arena_reset(struct arena *a)
{
    size_t room = a->used;
    a->used = 0;
    if (a->head && !a->head->next) {
        a->head->used = 0;
        return;
    }
    for (struct arena_chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    a->head = room ? aligned_alloc(MEM_ALIGN, CHUNK_HEADER + room) : NULL;
    if (a->head)
        *a->head = (struct arena_chunk){.size = room};
}

void *arena_alloc(struct arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 4)
        return NULL;
    size_t need = (bytes ? bytes + MEM_ALIGN - 1 : MEM_ALIGN) / MEM_ALIGN * MEM_ALIGN;
    if (a->limit && (need > a->limit || a->used > a->limit - need))
        return NULL;
    struct arena_chunk *c = a->head;
    if (!c || c->size - c->used < need) {
        size_t size = c ? c->size * 2 : CHUNK_MIN;
        if (size > ((size_t)64 << 20))
            size = (size_t)64 << 20;
        if (size < need)
            size = need;
        c = aligned_alloc(MEM_ALIGN, CHUNK_HEADER + size);
        if (!c)
            return NULL;
        *c = (struct arena_chunk){.next = a->head, .size = size};
        a->head = c;
    }
    void *p = (char *)c + CHUNK_HEADER + c->used;
    c->used += need;
    a->used += need;
    return p;
}

void *arena_zalloc(struct arena *a, size_t bytes)
{
    void *p = arena_alloc(a, bytes);
    if (p)
        memset(p, 0, bytes);
    return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    char *p = arena_alloc(a, n + 1);
    if (p) {
        memcpy(p, s, n);
        p[n] = 0;
    }
    return p;
}

void *arena_memdup(struct arena *a, const void *p, size_t bytes)
{
    void *q = arena_alloc(a, bytes);
    if (q && bytes)
        memcpy(q, p, bytes);
    return q;
}
