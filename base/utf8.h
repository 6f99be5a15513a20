// UTF-8 by the Unicode standard's table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF.
#ifndef BASE_UTF8_H
#define BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

// Bytes of s that are valid from the start; == n when all of it is.
size_t utf8_valid_prefix(const char *s, size_t n);

// One character at s (n >= 1): its length 1…4 when valid, and *ret_cp; 0 when the bytes are invalid or cut
// off.
size_t utf8_decode(const char *s, size_t n, uint32_t *ret_cp);
// Writes 1…4 bytes; returns how many. cp is a valid scalar value.
size_t utf8_encode(uint32_t cp, char out[4]);

// How s[0, n) begins when it is not valid there: length >= 1 of the maximal subpart of an ill-formed sequence
// (Unicode 3.9, D93b), the unit that one U+FFFD replaces. *ret_incomplete: more bytes could still complete
// it.
size_t utf8_bad_length(const char *s, size_t n, bool *ret_incomplete);

// Appends s to b with each maximal ill-formed subpart replaced by U+FFFD: what Python's errors="replace"
// does.
void utf8_repair(struct buf *b, const char *s, size_t n);

// For texts of a fixed size, which %.40s or their own end may have cut inside a character: makes s valid where it stands. A character
// cut off at the end goes, each other ill-formed subpart becomes one '?'; so s never grows.
void utf8_mend(char *s);

#endif
