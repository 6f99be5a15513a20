#!/usr/bin/env python3
"""The engine with FP8 weights against transformers on the same weights dequantised, position by position.

    fp8_top1.py BUILD_DIR MODEL_DIR [--positions 5000] [--dtype fp8|bf16|f32]

At every position of a set of texts the engine's greedy next token is compared with transformers' best one, computed in f32 from weights
that went through E4M3 with 128x128 block scales in torch here. Half of the positions are greedy answers of the engine itself to chat
prompts, half are code and English (sources and docstrings of Python's standard library; there every prefix is a request).

Passes at 99.5%. With FP8 and bf16 weights the engine also rounds the inputs of matrix products, keys and values to bf16; transformers
here computes in f32 throughout. How near the two best logits are at the differences, agreement with transformers that rounds the inputs
of its linear layers too, and agreement with the f32 original are reported beside it.
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
LENGTH, ANSWER = 160, 128


def passages(folder, positions):
    """(1, ids): ids[0] is given, everything after it is compared."""
    tokenizer, out, n = AutoTokenizer.from_pretrained(folder), [], 0
    for module in MODULES:
        ids = [int(i) for i in tokenizer(inspect.getsource(__import__(module)), add_special_tokens=False)["input_ids"]]
        for at in (0, len(ids) // 2):
            if n < positions:
                out.append((1, ids[at:at + LENGTH]))
                n += len(out[-1][1])
    return out


def engine_next(a, texts):
    """The engine's next token behind every prefix, one request after the other: each finds the pages of the one before it."""
    asked = [{"ids": ids[:t], "max_new": 1, "temperature": 0, "ignore_eos": True} for first, ids in texts
             for t in range(first, len(ids) + 1)]
    got = common.engine_lines(a.build, a.model, "generate", asked, "--dtype", a.dtype, "--max-running", 1, "--page-tokens", 32)
    return [r["output_ids"][0] for r in got]


def round_inputs(model):
    """Inputs of every matrix product with weights are rounded to bf16, as the engine does."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16().float(),))
    return model


def best_of(model, texts):
    """Best token and distance of the two best logits at each compared position of all texts."""
    best, gaps = [], []
    for first, ids in texts:
        top = common.logits_of(model, ids)[first - 1:].topk(2)
        best += top.indices[:, 0].tolist()
        gaps += (top.values[:, 0] - top.values[:, 1]).tolist()
    return best, gaps


def share(a, b):
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def report(what, ours, theirs, n_answers):
    best, gaps = theirs
    apart = [g for x, y, g in zip(ours, best, gaps) if x != y]
    print(f"{what}: equal {share(ours, best):.4f} (answers {share(ours[:n_answers], best[:n_answers]):.4f}, "
          f"passages {share(ours[n_answers:], best[n_answers:]):.4f}); at the {len(apart)} differences the two best logits are "
          f"{statistics.median(apart) if apart else 0:.3f} apart in the median, {max(apart, default=0):.3f} at most "
          f"(all positions: median {statistics.median(gaps):.3f})", flush=True)
    return share(ours, best)


def main():
    o = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    o.add_argument("build")
    o.add_argument("model")
    o.add_argument("--positions", type=int, default=5000)
    o.add_argument("--dtype", default="fp8", choices=["fp8", "bf16", "f32"])
    a = o.parse_args()
    prompts = [common.prompt_ids(a.model, p) for p in common.PROMPTS]
    chats = common.engine_lines(a.build, a.model, "generate",
                                [{"ids": p, "max_new": ANSWER, "temperature": 0, "ignore_eos": True} for p in prompts],
                                "--dtype", a.dtype)
    ours = [t for c in chats for t in c["output_ids"]]
    n_answers = len(ours)
    text = passages(a.model, a.positions - n_answers)
    ours += engine_next(a, text)
    # the last id of an answer is only predicted, so it is left out here
    texts = [(len(p), p + c["output_ids"][:-1]) for p, c in zip(prompts, chats)] + text
    original = common.model_open(a.model)
    f32, _ = best_of(original, texts)
    model = common.model_open(a.model, common.fp8_state(a.model)) if a.dtype == "fp8" else original
    plain = best_of(model, texts)
    equal = report(f"transformers on the {a.dtype} weights, f32 throughout", ours, plain, n_answers)
    if a.dtype != "f32":
        report("transformers on them, inputs of products in bf16", ours, best_of(round_inputs(model), texts), n_answers)
    print(f"top-1 equal to the f32 original: engine {share(ours, f32):.4f}, transformers on the {a.dtype} weights {share(plain[0], f32):.4f}")
    common.verdict(equal >= LEAST and len(ours) >= a.positions,
                   f"engine in {a.dtype} against transformers on the dequantised weights: top-1 equal at {equal:.4f} of "
                   f"{len(ours)} positions (at least {LEAST})")


if __name__ == "__main__":
    main()
