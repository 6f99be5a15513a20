#!/usr/bin/env python3
"""Writes tests/golden/text/: small tokenizers trained in five pre-tokenizer styles, and what Hugging Face makes of text
with them. The C tests need none of this; run it again only to change the golden files.

  FAMILY.json  tokenizer.json of about 2,000 pieces
  ids.bin      per chunk of generated text (text_gen.py): the first 8 bytes of SHA-256 over the ids (int32, little endian),
               with every added token recognised and with markers read as plain text
  chat.json    conversations and their ids by transformers' apply_chat_template, with the standard templates (text_chat.py)

Needs: tokenizers, transformers, jinja2.
"""
import hashlib
import inspect
import json
import os
import struct
import sys

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import text_chat
import text_gen

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "text")
N_CHUNKS = 512
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GLM4 = LLAMA3
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])


def special(*names):
    return [{"content": n, "special": True} for n in names]


# family: pre-tokenizer, normalizer, added tokens, ignore_merges, merges as pairs
FAMILIES = {
    "gpt2": (pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True), None,
             special("<|endoftext|>") + [{"content": "MASK", "lstrip": True}, {"content": "stripL", "lstrip": True, "normalized": True},
                                         {"content": "stripR", "rstrip": True}, {"content": "wordy", "single_word": True},
                                         {"content": "<think>"}], False, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]), None,
               special("<|endoftext|>", "<|im_start|>", "<|im_end|>"), False, False),
    "llama3": (split_then_bytes(LLAMA3), None,
               special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), True, True),
    "qwen": (split_then_bytes(QWEN2), normalizers.NFC(),
             special("<|endoftext|>", "<|im_start|>", "<|im_end|>") +
             [{"content": c} for c in ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")] +
             [{"content": "caf\u00e9TOK", "normalized": True}], False, True),
    "glm": (split_then_bytes(GLM4), None,
            special("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
                    "<|observation|>") +
            [{"content": c} for c in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
                                      "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")], True, True),
    "o200k": (split_then_bytes(O200K), None, special("<|endoftext|>"), True, True),
}


def corpus(seeds, ranges):
    for i in range(1500):
        yield text_gen.chunk(seeds, ranges, 1_000_000 + i)
    for module in (json, os, inspect, struct, text_gen):
        yield inspect.getsource(module)
    for _ in range(20):
        yield from seeds


def train(name, seeds, ranges):
    pre, norm, added, ignore_merges, pairs = FAMILIES[name]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    if norm:
        tok.normalizer = norm
    tok.train_from_iterator(corpus(seeds, ranges), trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    doc = json.loads(tok.to_str())
    merges = [m if isinstance(m, list) else m.split(" ") for m in doc["model"]["merges"]]
    if ignore_merges:  # words that only the whole-word look-up can find
        merges = [m for i, m in enumerate(merges) if i < 600 or i % 17]
    doc["model"]["merges"] = merges if pairs else [" ".join(m) for m in merges]
    doc["model"]["ignore_merges"] = ignore_merges
    vocab = doc["model"]["vocab"]
    fresh = iter(range(len(vocab), len(vocab) + len(added)))
    doc["added_tokens"] = [
        {"id": vocab[a["content"]] if a["content"] in vocab else next(fresh), "content": a["content"], "single_word": a.get("single_word", False), "lstrip": a.get("lstrip", False),
         "rstrip": a.get("rstrip", False), "normalized": a.get("normalized", False), "special": a.get("special", False)}
        for a in added]
    return doc


def digest(ids):
    return hashlib.sha256(struct.pack("<%di" % len(ids), *ids)).digest()[:8]


def plain_twin(doc):
    """The tokenizer that reads markers (special, <…> and […]) as text: tokenizers' own encode_special_tokens."""
    twin = json.loads(json.dumps(doc))
    for a in twin["added_tokens"]:
        c = a["content"]
        if len(c) >= 3 and (c[0] + c[-1]) in ("<>", "[]"):
            a["special"] = True
    tok = Tokenizer.from_str(json.dumps(twin))
    tok.encode_special_tokens = True
    return tok


def main():
    os.makedirs(OUT, exist_ok=True)
    seeds = text_gen.read_seeds(os.path.join(HERE, "text_seeds.txt"))
    ranges = text_gen.assigned_ranges()
    chunks = [text_gen.chunk(seeds, ranges, i) for i in range(N_CHUNKS)]
    text = "".join(chunks)
    out = [b"OOZETXT1", struct.pack("<I", len(ranges))] + [struct.pack("<II", *r) for r in ranges]
    out += [hashlib.sha256(text.encode()).digest()[:8], struct.pack("<II", N_CHUNKS, len(FAMILIES))]
    docs = {}
    for name in FAMILIES:
        path = os.path.join(OUT, name + ".json")
        if "--retrain" in sys.argv or not os.path.exists(path):
            with open(path, "w", encoding="utf-8") as f:
                json.dump(train(name, seeds, ranges), f, ensure_ascii=False, separators=(",", ":"))
        docs[name] = json.load(open(path, encoding="utf-8"))
        tok, plain = Tokenizer.from_str(json.dumps(docs[name])), plain_twin(docs[name])
        out.append(struct.pack("<16s", name.encode()))
        n_ids = 0
        for c in chunks:
            ids = tok.encode(c, add_special_tokens=False).ids
            n_ids += len(ids)
            out.append(digest(ids) + digest(plain.encode(c, add_special_tokens=False).ids))
        whole = tok.encode(text, add_special_tokens=False).ids
        out.append(digest(whole))
        print("%-8s %d bytes, %d ids" % (name, len(text.encode()), n_ids))
    with open(os.path.join(OUT, "ids.bin"), "wb") as f:
        f.write(b"".join(out))
    with open(os.path.join(OUT, "chat.json"), "w", encoding="utf-8") as f:
        json.dump(text_chat.golden(docs), f, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    main()
