// Memory: three ways to get it, each naming its life.
//   mem_alloc   big or input-sized blocks (weights, caches, files): NULL on failure, the caller reports it.
//   mem_must    small bookkeeping whose size the program bounds itself: aborts with a message when the
//   machine has
//               nothing left. Every process can be killed at any time without loss (architecture:
//               exactly-once), so dying cleanly is the right answer there.
//   arena       everything whose life is one step or one request: reset at one visible line.
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEM_ALIGN 64 // cache line and widest vector register

// Zeroed, MEM_ALIGN-aligned; NULL when out of memory or bytes == 0. Freed by mem_free.
void *mem_alloc(size_t bytes);
void mem_free(void *p);

// memcpy for bytes that nobody reads soon: whole lines of dst go past the caches, so that they neither fetch what they replace nor
// push out what is in use. dst aligned to MEM_ALIGN.
void mem_copy_past(void *dst, const void *src, size_t n);

// Never NULL. mem_must is zeroed; mem_grow is realloc (contents kept, new part undefined).
void *mem_must(size_t n, size_t size);
void *mem_grow(void *p, size_t n, size_t size);
char *mem_strdup(const char *s);
char *mem_strndup(const char *s, size_t n);
// printf into a fresh string (free with free()).
char *mem_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

// An arena: bump allocation out of chunks, given back all at once. One thread owns an arena.
struct arena_chunk;
struct arena {
    struct arena_chunk *head; // newest chunk first
    size_t used;              // bytes handed out since the last reset
    size_t limit;             // 0 = none; more than this and arena_alloc returns NULL
};

void arena_init(struct arena *a, size_t limit_bytes);
void arena_done(struct arena *a);
// Gives everything back; keeps room for as much again, in one chunk.
void arena_reset(struct arena *a);
// Not zeroed; aligned to MEM_ALIGN; NULL over the limit or out of memory.
void *arena_alloc(struct arena *a, size_t bytes);
void *arena_zalloc(struct arena *a, size_t bytes);
// NULL-terminated copy; NULL on failure.
char *arena_strndup(struct arena *a, const char *s, size_t n);
void *arena_memdup(struct arena *a, const void *p, size_t bytes);

#endif
