// The text of the tokenizer golden test, generated: the C twin of tests/golden/text_gen.py, piece for piece.
// Both make the same bytes out of (seeds, ranges, chunk number), so that the 2 MB need not be stored.
#ifndef TESTS_TEXT_GEN_H
#define TESTS_TEXT_GEN_H

#include <stdint.h>
#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"

struct text_gen {
    uint32_t *seeds[64]; // code points
    uint32_t n_seed[64];
    uint32_t n_seeds;
    const uint32_t *ranges; // first, last, first, last …
    uint32_t n_ranges;
};

static uint64_t gen_state;

static uint32_t gen_below(uint32_t n) // splitmix64
{
    gen_state += 0x9E3779B97F4A7C15u;
    uint64_t z = gen_state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (uint32_t)((z >> 33) % n);
}

static void gen_put(struct buf *b, uint32_t cp)
{
    char c[4];
    buf_append(b, c, utf8_encode(cp, c));
}

static void gen_range_char(const struct text_gen *g, uint32_t range, struct buf *b)
{
    uint32_t low = g->ranges[2 * range], high = g->ranges[2 * range + 1];
    gen_put(b, low + gen_below(high - low + 1));
}

#define GEN_PICK(list) list[gen_below(sizeof(list) / sizeof *(list))]

static void gen_piece(const struct text_gen *g, struct buf *b)
{
    static const uint32_t spaces[] = {0x20,   0x20,   0x20,   0x0A,   0x0A,   0x09,   0x0D,   0x0B,
                                      0x0C,   0x85,   0xA0,   0x1680, 0x180E, 0x2003, 0x200B, 0x2028,
                                      0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF, 0x1C};
    static const uint32_t digits[] = {0x30, 0x30, 0x30, 0x660, 0x966, 0xE50, 0xFF10, 0x1D7CE};
    static const uint32_t emoji[] = {0x1F600, 0x1F44D, 0x1F3FD, 0x200D,  0xFE0F,  0x20E3, 0x1F1E9,
                                     0x1F1EA, 0x2764,  0x1F468, 0x1F469, 0x1F525, 0x2640, 0xE0067};
    static const char *const contractions[] = {"'s",  "'S",  "'t", "'re", "'RE",       "'Ve",           "'m",
                                               "'ll", "'LL", "'d", "'D",  "'\xC5\xBF", "\xE2\x80\x99s", "'x",
                                               "''",  "'"};
    static const char *const code[] = {"()", "{",  "}",  "[]",  "=>",   "->",   "==",   "!=",   "+=", "//",
                                       "/*", "*/", "::", ";\n", "\n\n", "\r\n", "\n\t", "    ", "#!", "$_"};
    static const char *const lookalikes[] = {"<|im_start|>",
                                             "<|im_end|>",
                                             "<|endoftext|>",
                                             "<|eot_id|>",
                                             "<|begin_of_text|>",
                                             "<tool_call>",
                                             "</tool_call>",
                                             "<think>",
                                             "[gMASK]",
                                             "<sop>",
                                             "<|im_",
                                             "<|",
                                             "|>",
                                             "MASK",
                                             " MASK ",
                                             "stripL",
                                             "  stripL ",
                                             "stripR  ",
                                             "caf\xC3\xA9TOK",
                                             "cafe\xCC\x81TOK",
                                             "wordy",
                                             "<|user|>"};
    uint32_t kind = gen_below(20), n;
    if (kind < 8) {
        uint32_t s = gen_below(g->n_seeds), at = gen_below(g->n_seed[s]);
        n = 1 + gen_below(60);
        for (uint32_t i = at; i < at + n && i < g->n_seed[s]; i++)
            gen_put(b, g->seeds[s][i]);
    } else if (kind < 10) {
        uint32_t range = gen_below(g->n_ranges);
        for (n = 1 + gen_below(12); n > 0; n--)
            gen_range_char(g, range, b);
    } else if (kind == 10) {
        for (n = 1 + gen_below(8); n > 0; n--)
            gen_range_char(g, gen_below(g->n_ranges), b);
    } else if (kind == 11) {
        uint32_t same = gen_below(2), c = GEN_PICK(spaces);
        for (n = 1 + gen_below(10); n > 0; n--)
            gen_put(b, same ? c : GEN_PICK(spaces));
    } else if (kind == 12) {
        uint32_t zero = GEN_PICK(digits);
        for (n = 1 + gen_below(9); n > 0; n--)
            gen_put(b, zero + gen_below(10));
    } else if (kind == 13) {
        buf_puts(b, GEN_PICK(contractions));
    } else if (kind == 14) {
        for (n = 1 + gen_below(8); n > 0; n--)
            gen_put(b, GEN_PICK(emoji));
    } else if (kind == 15) {
        gen_put(b, 0x41 + gen_below(58));
        for (n = 1 + gen_below(5); n > 0; n--)
            gen_put(b, 0x300 + gen_below(0x70));
    } else if (kind == 16) {
        for (n = 1 + gen_below(4); n > 0; n--) {
            uint32_t c = gen_below(65);
            gen_put(b, c < 32 ? c : 0x7F + c - 32);
        }
    } else if (kind == 17) {
        for (n = 1 + gen_below(6); n > 0; n--)
            buf_puts(b, GEN_PICK(code));
    } else if (kind == 18) {
        buf_puts(b, GEN_PICK(lookalikes));
    } else {
        for (n = 1 + gen_below(4); n > 0; n--) {
            gen_put(b, 0x1100 + gen_below(0x13));
            gen_put(b, 0x1161 + gen_below(0x15));
            if (gen_below(2))
                gen_put(b, 0x11A8 + gen_below(0x1B));
        }
    }
}

// Appends chunk `number`, at least 4,096 bytes.
static void text_gen_chunk(const struct text_gen *g, uint64_t number, struct buf *b)
{
    size_t start = b->len;
    gen_state = number * 0x9E3779B97F4A7C15u + 0x1234567u;
    while (b->len - start < 4096)
        gen_piece(g, b);
}

#endif
