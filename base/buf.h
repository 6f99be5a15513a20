// A growable byte buffer. Grows by doubling; aborts (mem_must) when the machine is out of memory, so callers
// bound what they append from outside input by `limit`.
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; // NUL-terminated whenever non-NULL
    size_t len;
    size_t cap;
};

void buf_done(struct buf *b); // frees; leaves an empty, usable buffer
void buf_clear(struct buf *b);
void buf_reserve(struct buf *b, size_t more);
void buf_append(struct buf *b, const void *p, size_t n);
void buf_puts(struct buf *b, const char *s);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// Removes the first n bytes.
void buf_consume(struct buf *b, size_t n);
// Hands the (NUL-terminated, never NULL) bytes to the caller, who frees them; the buffer is empty again.
char *buf_take(struct buf *b, size_t *ret_len);

#endif
