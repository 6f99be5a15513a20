"""The text of the tokenizer golden test, generated. tests/unit/text/text_gen.h is the same generator in C: both make the
same bytes out of (seeds, ranges, chunk number), so that the 2 MB need not be stored.

A chunk is a mix of pieces of the seed sentences, random characters of every script that Unicode 14 assigns, white space,
digits, contractions, emoji sequences, stacked marks, controls, code and look-alikes of special tokens.
"""
import unicodedata

MASK = (1 << 64) - 1
CHUNK_BYTES = 4096
SPACES = [0x20, 0x20, 0x20, 0x0A, 0x0A, 0x09, 0x0D, 0x0B, 0x0C, 0x85, 0xA0, 0x1680, 0x180E, 0x2003, 0x200B, 0x2028, 0x2029,
          0x202F, 0x205F, 0x3000, 0xFEFF, 0x1C]
DIGITS = [0x30, 0x30, 0x30, 0x660, 0x966, 0xE50, 0xFF10, 0x1D7CE]
CONTRACTIONS = ["'s", "'S", "'t", "'re", "'RE", "'Ve", "'m", "'ll", "'LL", "'d", "'D", "'\u017f", "\u2019s", "'x", "''", "'"]
EMOJI = [0x1F600, 0x1F44D, 0x1F3FD, 0x200D, 0xFE0F, 0x20E3, 0x1F1E9, 0x1F1EA, 0x2764, 0x1F468, 0x1F469, 0x1F525, 0x2640, 0xE0067]
CODE = ["()", "{", "}", "[]", "=>", "->", "==", "!=", "+=", "//", "/*", "*/", "::", ";\n", "\n\n", "\r\n", "\n\t", "    ", "#!", "$_"]
LOOKALIKES = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", "<tool_call>", "</tool_call>",
              "<think>", "[gMASK]", "<sop>", "<|im_", "<|", "|>", "MASK", " MASK ", "stripL", "  stripL ", "stripR  ", "caf\u00e9TOK",
              "cafe\u0301TOK", "wordy", "<|user|>"]


class Rng:
    """splitmix64."""

    def __init__(self, seed):
        self.state = (seed * 0x9E3779B97F4A7C15 + 0x1234567) & MASK

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
        return (z >> 33) % n


def assigned_ranges():
    """Ranges of code points that are characters in this Python's Unicode: no surrogates, private use or holes."""
    assert unicodedata.unidata_version.startswith("14."), "the product's tables (PCRE2 10.42) are Unicode 14"
    ranges, start = [], None
    for cp in range(0x110001):
        ok = cp < 0x110000 and unicodedata.category(chr(cp)) not in ("Cn", "Cs", "Co")
        if ok and start is None:
            start = cp
        if not ok and start is not None:
            ranges.append((start, cp - 1))
            start = None
    return ranges


def chunk(seeds, ranges, number):
    r = Rng(number)
    out, size = [], 0
    while size < CHUNK_BYTES:
        kind = r.below(20)
        piece = []
        if kind < 8:
            s = seeds[r.below(len(seeds))]
            at = r.below(len(s))
            n = 1 + r.below(60)
            piece = [ord(c) for c in s[at:at + n]]
        elif kind < 10:
            low, high = ranges[r.below(len(ranges))]
            for _ in range(1 + r.below(12)):
                piece.append(low + r.below(high - low + 1))
        elif kind == 10:
            for _ in range(1 + r.below(8)):
                low, high = ranges[r.below(len(ranges))]
                piece.append(low + r.below(high - low + 1))
        elif kind == 11:
            same = r.below(2)
            c = SPACES[r.below(len(SPACES))]
            for _ in range(1 + r.below(10)):
                piece.append(c if same else SPACES[r.below(len(SPACES))])
        elif kind == 12:
            zero = DIGITS[r.below(len(DIGITS))]
            for _ in range(1 + r.below(9)):
                piece.append(zero + r.below(10))
        elif kind == 13:
            piece = [ord(c) for c in CONTRACTIONS[r.below(len(CONTRACTIONS))]]
        elif kind == 14:
            for _ in range(1 + r.below(8)):
                piece.append(EMOJI[r.below(len(EMOJI))])
        elif kind == 15:
            piece.append(0x41 + r.below(58))
            for _ in range(1 + r.below(5)):
                piece.append(0x300 + r.below(0x70))
        elif kind == 16:
            for _ in range(1 + r.below(4)):
                c = r.below(65)
                piece.append(c if c < 32 else 0x7F + c - 32)
        elif kind == 17:
            for _ in range(1 + r.below(6)):
                piece += [ord(c) for c in CODE[r.below(len(CODE))]]
        elif kind == 18:
            piece = [ord(c) for c in LOOKALIKES[r.below(len(LOOKALIKES))]]
        else:
            for _ in range(1 + r.below(4)):
                piece.append(0x1100 + r.below(0x13))
                piece.append(0x1161 + r.below(0x15))
                if r.below(2):
                    piece.append(0x11A8 + r.below(0x1B))
        text = "".join(map(chr, piece))
        out.append(text)
        size += len(text.encode("utf-8"))
    return "".join(out)


def read_seeds(path):
    return [line for line in open(path, encoding="utf-8").read().split("\n") if line]
