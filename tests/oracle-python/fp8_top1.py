#!/usr/bin/env python3
"""The engine with FP8 weights against transformers on the same weights dequantised, position by position.

    fp8_top1.py BUILD_DIR MODEL_DIR [--positions 5000] [--dtype fp8|bf16|f32]

At every position of a set of texts the engine's greedy next token (one request a prefix; prefixes share their KV pages) is compared with
transformers' best token, computed in f32 from weights that went through E4M3 with 128x128 block scales in torch here. The engine rounds
the inputs of matrix products to bf16; transformers here does not. Passes at 99.5%. Agreement with the f32 original, and how near the two
best logits are where the engine and transformers differ, are reported.

Half of the positions are English and code (docstrings and sources of Python's standard library), half are greedy answers of the model
itself to chat prompts.
"""
import argparse
import inspect
import statistics

import torch
from transformers import AutoTokenizer

import common

LEAST = 0.995
MODULES = ["textwrap", "argparse", "string", "heapq", "bisect", "random", "statistics", "shelve", "queue", "sched", "tempfile",
           "fractions", "calendar", "difflib", "shlex", "optparse"]
LENGTH = 160


def texts_of(folder, answers, positions):
    tokenizer, out, n = AutoTokenizer.from_pretrained(folder), [], 0
    for module in MODULES:
        if n >= positions // 2:
            break
        source = inspect.getsource(__import__(module))
        ids = [int(i) for i in tokenizer(source, add_special_tokens=False)["input_ids"]]
        for at in (0, len(ids) // 2):
            out.append((1, ids[at:at + LENGTH]))
            n += len(out[-1][1])
    for prompt, answer in answers:
        out.append((len(prompt), prompt + answer))
        n += len(answer)
    if n < positions:
        raise SystemExit(f"fp8_top1.py: the texts give {n} positions only")
    return out


@torch.no_grad()
def best_of(model, texts):
    """Per text: best token and distance of the two best logits at each compared position."""
    out = []
    for first, ids in texts:
        top = common.logits_of(model, ids)[first - 1:].topk(2)
        out.append((top.indices[:, 0].tolist(), (top.values[:, 0] - top.values[:, 1]).tolist()))
    return out


def flat(lists):
    return [x for part in lists for x in part]


def main():
    o = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    o.add_argument("build")
    o.add_argument("model")
    o.add_argument("--positions", type=int, default=5000)
    o.add_argument("--dtype", default="fp8", choices=["fp8", "bf16", "f32"])
    a = o.parse_args()
    prompts = [common.prompt_ids(a.model, p) for p in common.PROMPTS]
    chats = common.engine_lines(a.build, a.model, "generate",
                                [{"ids": p, "max_new": 128, "temperature": 0, "ignore_eos": True} for p in prompts],
                                "--dtype", a.dtype)
    texts = texts_of(a.model, [(p, c["output_ids"]) for p, c in zip(prompts, chats)], a.positions)
    # one request after the other, so that each finds the pages of the prefix before it
    asked = [{"ids": ids[:t], "max_new": 1, "temperature": 0, "ignore_eos": True} for first, ids in texts
             for t in range(first, len(ids) + 1)]
    ours = [r["output_ids"][0] for r in common.engine_lines(a.build, a.model, "generate", asked, "--dtype", a.dtype,
                                                            "--max-running", 1, "--page-tokens", 32)]
    original = common.model_open(a.model)
    f32 = flat(b for b, _ in best_of(original, texts))
    if a.dtype == "fp8":
        model = common.model_open(a.model, common.fp8_state(a.model))
    else:
        model = original
    theirs = best_of(model, texts)
    best, gaps = flat(b for b, _ in theirs), flat(g for _, g in theirs)
    equal = sum(x == y for x, y in zip(ours, best)) / len(ours)
    apart = [g for x, y, g in zip(ours, best, gaps) if x != y]
    to_f32 = sum(x == y for x, y in zip(ours, f32)) / len(ours)
    theirs_f32 = sum(x == y for x, y in zip(best, f32)) / len(ours)
    print(f"where they differ ({len(apart)} positions) transformers' two best logits are "
          f"{statistics.median(apart) if apart else 0:.3f} apart in the median, {max(apart, default=0):.3f} at most; "
          f"over all positions {statistics.median(gaps):.3f}")
    print(f"top-1 equal to the f32 model: engine {to_f32:.4f}, transformers on the same {a.dtype} weights {theirs_f32:.4f}")
    common.verdict(equal >= LEAST and len(ours) >= a.positions,
                   f"engine in {a.dtype} against transformers on the dequantised weights: top-1 equal at {equal:.4f} of "
                   f"{len(ours)} positions (at least {LEAST})")


if __name__ == "__main__":
    main()
