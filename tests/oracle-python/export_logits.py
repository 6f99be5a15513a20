#!/usr/bin/env python3
"""Folders written by `ooze-trainer --export` load in transformers and compute the same logits.

    export_logits.py BUILD_DIR MODEL_DIR

f32 and bf16 exports are compared with the model they were made from (its tensors rounded to bf16 for the latter), to 1e-3. The FP8
export is dequantised here and compared with MODEL_DIR quantised here by the rule of docs/algorithms.md: tensor by tensor and in logits.
"""
import argparse
import os
import subprocess
import tempfile

import torch

import common

TOLERANCE = 1e-3


def fp8_folder_load(folder):
    from safetensors.torch import load_file
    state, out = load_file(os.path.join(folder, "model.safetensors")), {}
    for name, w in state.items():
        if name.endswith("_scale_inv"):
            continue
        w, scale = w.float(), state.get(name + "_scale_inv")
        if scale is not None:
            w = w * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:w.shape[0], :w.shape[1]]
        out[name] = w
    return out


def compare(name, a, b, prompts):
    worst = max((common.logits_of(a, p) - common.logits_of(b, p)).abs().max().item() for p in prompts)
    print(f"{name}: largest difference of a logit {worst:.2e}", flush=True)
    return worst <= TOLERANCE


def main():
    o = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    o.add_argument("build")
    o.add_argument("model")
    a = o.parse_args()
    prompts = [common.prompt_ids(a.model, p) for p in common.PROMPTS[:5]]
    ok = True
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in ("f32", "bf16", "fp8"):
            out = os.path.join(scratch, dtype)
            subprocess.check_call([os.path.join(a.build, "bin", "ooze-trainer"), "--export", a.model, out, "--dtype", dtype])
            if dtype == "f32":
                ok &= compare("f32 export", common.model_open(a.model), common.model_open(out), prompts)
            elif dtype == "bf16":
                rounded = {k: v.bfloat16().float() for k, v in common.state_load(a.model).items()}
                ok &= compare("bf16 export", common.model_open(a.model, rounded), common.model_open(out), prompts)
            else:
                got, want = fp8_folder_load(out), common.fp8_state(a.model)
                unequal = sorted(k for k in set(got) | set(want)
                                 if k not in got or k not in want or not torch.equal(got[k], want[k]))
                print(f"fp8 export: {len(got)} tensors, {len(unequal)} differ from our rule in torch {unequal[:3]}")
                ok &= not unequal
                ok &= compare("fp8 export", common.model_open(a.model, want), common.model_open(out, got), prompts)
            again = common.prompt_ids(out, common.PROMPTS[0])
            ok &= again == prompts[0]
    common.verdict(ok, f"exported folders load, logits within {TOLERANCE:g}")


if __name__ == "__main__":
    main()
