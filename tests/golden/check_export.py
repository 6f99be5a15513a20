#!/usr/bin/env python3
"""Does a folder that ooze wrote load in transformers, and does it compute what the original does?

    python3 tests/golden/check_export.py ORIGINAL EXPORTED [--tokens 64]

Both are loaded in f32 (an FP8 folder is dequantised here: code * block scale) and run on the same random token ids. Exits 1
when a logit differs by more than 1e-3; an export in another format than the original's (bf16, FP8) is only reported.
"""
import argparse
import json
import os
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM


def folder_load(folder):
    config = AutoConfig.from_pretrained(folder)
    if not getattr(config, "quantization_config", None):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    del config.quantization_config
    state, out = load_file(os.path.join(folder, "model.safetensors")), {}
    for name, w in state.items():
        if name.endswith("_scale_inv"):
            continue
        scale = state.get(name + "_scale_inv")
        w = w.float()
        if scale is not None:
            full = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            w = w * full[: w.shape[0], : w.shape[1]]
        out[name] = w
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, surplus = model.load_state_dict(out, strict=False)
    if surplus or any(m != "lm_head.weight" for m in missing):
        sys.exit(f"check_export.py: {folder}: missing {missing}, surplus {surplus}")
    model.tie_weights()
    return model


def dtype_of(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    return "fp8" if c.get("quantization_config") else c.get("torch_dtype") or c.get("dtype")


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("original")
    args.add_argument("exported")
    args.add_argument("--tokens", type=int, default=64)
    args = args.parse_args()
    a, b = folder_load(args.original), folder_load(args.exported)
    torch.manual_seed(0)
    ids = torch.randint(0, a.config.vocab_size, (1, args.tokens))
    with torch.no_grad():
        x, y = a(ids).logits, b(ids).logits
    worst = (x - y).abs().max().item()
    top = (x.argmax(-1) == y.argmax(-1)).float().mean().item()
    exact = dtype_of(args.exported) in ("float32", dtype_of(args.original))
    print(f"{args.exported}: largest difference of a logit {worst:.2e}, top-1 equal {top:.4f}"
          f"{'' if exact else ' (another format: reported only)'}")
    sys.exit(1 if exact and not worst <= 1e-3 else 0)


if __name__ == "__main__":
    main()
