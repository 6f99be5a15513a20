#!/usr/bin/env python3
"""Greedy tokens of the engine in f32 against transformers' f32 greedy search, prompt by prompt.

    greedy_f32.py BUILD_DIR MODEL_DIR [--tokens 64]

A split is allowed only where transformers' two best logits lie within 1e-4 of each other. Behind a split the texts differ for good
reason; there each of the engine's tokens is checked to be transformers' best (again within 1e-4) given the engine's own text.
"""
import argparse

import torch

import common

NEAR = 1e-4


@torch.no_grad()
def greedy(model, ids, n):
    past, out, step = None, [], torch.tensor([ids])
    for _ in range(n):
        r = model(step, past_key_values=past, use_cache=True)
        past, best = r.past_key_values, int(r.logits[0, -1].argmax())
        out.append(best)
        step = torch.tensor([[best]])
    return out


def main():
    o = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    o.add_argument("build")
    o.add_argument("model")
    o.add_argument("--tokens", type=int, default=64)
    a = o.parse_args()
    prompts = [common.prompt_ids(a.model, p) for p in common.PROMPTS]
    ours = common.engine_lines(a.build, a.model, "generate",
                               [{"ids": p, "max_new": a.tokens, "temperature": 0, "ignore_eos": True} for p in prompts],
                               "--dtype", "f32")
    model, bad, splits, least, worst = common.model_open(a.model), 0, 0, float("inf"), 0.0
    for i, (p, answer) in enumerate(zip(prompts, ours)):
        got, want = answer["output_ids"], greedy(model, p, a.tokens)
        if len(got) != a.tokens:
            bad += 1
            print(f"prompt {i}: {len(got)} tokens instead of {a.tokens}")
            continue
        logits = common.logits_of(model, p + got)[len(p) - 1:-1]
        logprobs = logits.log_softmax(-1)[range(a.tokens), got]
        worst = max(worst, (logprobs - torch.tensor(answer["logprobs"])).abs().max().item())
        top = logits.topk(2).values
        short = top[:, 0] - logits[range(a.tokens), got]  # 0 where the engine's token is the best
        least = min(least, (top[:, 0] - top[:, 1]).min().item())
        for t in torch.nonzero(short > NEAR)[:, 0].tolist():
            bad += 1
            print(f"prompt {i} position {t}: token {got[t]} is {short[t]:.2e} below transformers' best")
        if got != want:
            t = next(t for t in range(a.tokens) if got[t] != want[t])
            gap, splits = (top[t, 0] - top[t, 1]).item(), splits + 1
            print(f"prompt {i}: split at position {t}, top two logits {gap:.2e} apart")
            bad += gap > NEAR
    common.verdict(not bad, f"{len(prompts)} prompts x {a.tokens} greedy tokens in f32: {splits} splits at ties, {bad} differences; "
                            f"closest top two {least:.1e}; log-probabilities differ by at most {worst:.1e}")


if __name__ == "__main__":
    main()
