// utf8: validation, decoding and lossy repair, after the Unicode standard's table 3-7. Pure functions, any
// thread.
#include "base/utf8.h"

#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD"

// Length of the sequence that lead byte c starts and the range its second byte must lie in; 0: c starts none.
static size_t lead_length(uint8_t c, uint8_t *ret_low, uint8_t *ret_high)
{
    *ret_low = 0x80;
    *ret_high = 0xBF;
    if (c < 0x80)
        return 1;
    if (c < 0xC2)
        return 0;
    if (c < 0xE0)
        return 2;
    if (c < 0xF0) {
        if (c == 0xE0)
            *ret_low = 0xA0; // overlong below
        if (c == 0xED)
            *ret_high = 0x9F; // surrogates above
        return 3;
    }
    if (c > 0xF4)
        return 0;
    if (c == 0xF0)
        *ret_low = 0x90;
    if (c == 0xF4)
        *ret_high = 0x8F;
    return 4;
}

// How many bytes of s agree with a well-formed sequence (>= 1 when s[0] is a lead byte), and that sequence's
// length.
static size_t match_length(const char *s, size_t n, size_t *ret_want)
{
    uint8_t low, high;
    size_t want = lead_length((uint8_t)s[0], &low, &high);
    *ret_want = want;
    if (want == 0)
        return 0;
    size_t i = 1;
    for (; i < want && i < n; i++) {
        uint8_t c = (uint8_t)s[i];
        if (c < low || c > high)
            break;
        low = 0x80;
        high = 0xBF;
    }
    return i;
}

size_t utf8_decode(const char *s, size_t n, uint32_t *ret_cp)
{
    size_t want;
    if (n == 0 || match_length(s, n, &want) != want || want == 0)
        return 0;
    static const uint8_t lead_bits[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t cp = (uint8_t)s[0] & lead_bits[want];
    for (size_t i = 1; i < want; i++)
        cp = cp << 6 | ((uint8_t)s[i] & 0x3F);
    *ret_cp = cp;
    return want;
}

size_t utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

size_t utf8_valid_prefix(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        if (i + 8 <= n) { // ASCII goes eight bytes at a time
            memcpy(&eight, s + i, 8);
            if ((eight & 0x8080808080808080u) == 0) {
                i += 8;
                continue;
            }
        }
        size_t want;
        if (match_length(s + i, n - i, &want) != want || want == 0)
            return i;
        i += want;
    }
    return n;
}

size_t utf8_bad_length(const char *s, size_t n, bool *ret_incomplete)
{
    size_t want;
    size_t have = match_length(s, n, &want);
    *ret_incomplete = want > 0 && have == n && have < want;
    return have ? have : 1;
}

void utf8_mend(char *s)
{
    char *to = s;
    for (size_t n = strlen(s); n > 0;) {
        size_t good = utf8_valid_prefix(s, n);
        memmove(to, s, good);
        to += good;
        s += good;
        n -= good;
        if (n == 0)
            break;
        bool incomplete;
        size_t bad = utf8_bad_length(s, n, &incomplete);
        if (!incomplete)
            *to++ = '?';
        s += bad;
        n -= bad;
    }
    *to = '\0';
}

void utf8_repair(struct buf *b, const char *s, size_t n)
{
    while (n > 0) {
        size_t good = utf8_valid_prefix(s, n);
        buf_append(b, s, good);
        s += good;
        n -= good;
        if (n == 0)
            return;
        bool incomplete;
        size_t bad = utf8_bad_length(s, n, &incomplete);
        buf_append(b, REPLACEMENT, 3);
        s += bad;
        n -= bad;
    }
}
