#!/usr/bin/env python3
"""Peer of bench_train: one optimizer step of SmolLM2-135M's shapes in PyTorch on the CPU.

The same work as ours: 16 sequences of 1,024 tokens (--sequences, --length), every position trained by cross entropy, bf16
products over f32 master weights (autocast), gradient clipping by the global norm, AdamW. What makes torch fast here is used:
scaled_dot_product_attention(is_causal), the fused RMSNorm and AdamW, the three and two matrices of a layer that share an
input as one, and a cross entropy over chunks of rows that takes the gradient of the logits in the same pass (so that logits
are neither stored nor computed twice).

  torch_train.py step|memory --serve [--mode auto|eager|compile] [--micro N] [--lean] [--pure] [--threads N] [--models DIR]
  torch_train.py --explore      tokens per second and peak memory of each configuration, each in a process of its own

The protocol on stdin and stdout is the one of `ooze bench`: a line {"ready": true, …}, then one measured step for each line
"run". --mode auto (the default) tries FAST below on one micro-batch each, serves with the fastest and remembers it in
DIR/torch_train.json (delete the file to have it tried again). --lean: checkpointed layers (recomputation), the leanest
configuration; the memory row reports its peak beside. --pure: parameters and moments in bf16 (for information: another algorithm).
"""
import argparse
import json
import os
import subprocess
import sys
import time

HIDDEN, LAYERS, HEADS, KV, D, FFN, VOCAB = 576, 30, 9, 3, 64, 1536, 49152


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--serve", action="store_true")
    p.add_argument("--explore", action="store_true")
    p.add_argument("--trial", action="store_true", help="one configuration, one micro-batch: a line of JSON")
    p.add_argument("row", nargs="?", choices=["step", "memory"], default="step")
    p.add_argument("--mode", choices=["eager", "compile", "auto"], default="auto")
    p.add_argument("--micro", type=int, default=1, help="sequences in a micro-batch")
    p.add_argument("--sequences", type=int, default=16)
    p.add_argument("--length", type=int, default=1024)
    p.add_argument("--threads", type=int, default=0, help="0: all cores")
    p.add_argument("--layers", type=int, default=LAYERS)
    p.add_argument("--lean", action="store_true")
    p.add_argument("--pure", action="store_true")
    p.add_argument("--chunk", type=int, default=512, help="rows of logits alive at once")
    p.add_argument("--models", help="folder to remember the fastest configuration in; weights are random")
    a = p.parse_args()
    a.threads = a.threads or len(os.sched_getaffinity(0))
    return a


def peak_bytes():
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def build(a):
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    half = torch.bfloat16

    class ChunkedCrossEntropy(torch.autograd.Function):
        """Sum of -log p(target) over rows, a chunk of rows at a time; the gradient is taken on the way."""

        @staticmethod
        def forward(ctx, hidden, weight, targets):
            w = weight.to(half)
            hidden = hidden.to(half)
            dh = torch.empty_like(hidden)
            dw = torch.zeros_like(weight, dtype=torch.float32)
            loss = torch.zeros((), dtype=torch.float32)
            for i in range(0, hidden.shape[0], a.chunk):
                h, t = hidden[i : i + a.chunk], targets[i : i + a.chunk]
                logits = (h @ w.t()).float()
                lse = logits.logsumexp(-1, keepdim=True)
                loss += (lse.squeeze(1) - logits.gather(1, t[:, None]).squeeze(1)).sum()
                p = logits.sub_(lse).exp_()
                p.scatter_add_(1, t[:, None], torch.full((h.shape[0], 1), -1.0))
                d = p.to(half)
                dh[i : i + a.chunk] = d @ w
                dw += d.t() @ h
            ctx.save_for_backward(dh, dw.to(weight.dtype))
            return loss

        @staticmethod
        def backward(ctx, g):
            dh, dw = ctx.saved_tensors
            return dh.float().mul_(g) if not a.pure else dh * g, dw.mul_(g), None

    def rotate(x, cos, sin):
        lo, hi = x.chunk(2, -1)
        return torch.cat((lo * cos - hi * sin, hi * cos + lo * sin), -1).to(x.dtype)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.Parameter(torch.ones(HIDDEN)), nn.Parameter(torch.ones(HIDDEN))
            self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KV) * D, bias=False)
            self.o = nn.Linear(HEADS * D, HIDDEN, bias=False)
            self.gate_up = nn.Linear(HIDDEN, 2 * FFN, bias=False)
            self.down = nn.Linear(FFN, HIDDEN, bias=False)

        def forward(self, x, cos, sin):
            b, t, _ = x.shape
            n = F.rms_norm(x, (HIDDEN,), self.norm1, 1e-5)
            q, k, v = self.qkv(n).view(b, t, HEADS + 2 * KV, D).transpose(1, 2).split((HEADS, KV, KV), 1)
            y = F.scaled_dot_product_attention(
                rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True
            )
            x = x + self.o(y.transpose(1, 2).reshape(b, t, HEADS * D))
            n = F.rms_norm(x, (HIDDEN,), self.norm2, 1e-5)
            g, u = self.gate_up(n).chunk(2, -1)
            return x + self.down(F.silu(g) * u)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCAB, HIDDEN)
            self.layers = nn.ModuleList(Layer() for _ in range(a.layers))
            self.norm = nn.Parameter(torch.ones(HIDDEN))
            angle = torch.arange(a.length)[:, None] / 100000 ** (torch.arange(0, D, 2) / D)
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())

        def forward(self, ids):
            x = self.embed(ids)
            cos, sin = self.cos.to(half), self.sin.to(half)
            for layer in self.layers:
                x = checkpoint(layer, x, cos, sin, use_reentrant=False) if a.lean else layer(x, cos, sin)
            return F.rms_norm(x, (HIDDEN,), self.norm, 1e-5).reshape(-1, HIDDEN)

    model = Model()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(std=0.02)
    if a.pure:
        model = model.to(half)
    body = torch.compile(model) if a.mode == "compile" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    optimizer.zero_grad(set_to_none=True)

    def micro_batch(ids, targets, scale):
        if a.pure:
            hidden = body(ids)
        else:
            with torch.autocast("cpu", dtype=half):
                hidden = body(ids)
        loss = ChunkedCrossEntropy.apply(hidden, model.embed.weight, targets)
        (loss * scale).backward()
        return float(loss.detach())

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, VOCAB, (a.sequences, a.length + 1), generator=generator)

    def step(n=a.sequences):
        total = 0.0
        for i in range(0, n, a.micro):
            rows = ids[i : i + a.micro]
            total += micro_batch(rows[:, :-1], rows[:, 1:].reshape(-1), 1 / (n * a.length))
        update()
        return total / (n * a.length)

    return torch, micro_batch, update, step, ids


def trial(a):
    """Seconds of a micro-batch and of the update, after one step that warms up."""
    torch, micro_batch, update, step, ids = build(a)
    step(a.micro)
    rows, best = ids[: a.micro], 1e9
    for _ in range(2):
        start = time.perf_counter()
        micro_batch(rows[:, :-1], rows[:, 1:].reshape(-1), 1e-3)
        best = min(best, time.perf_counter() - start)
    start = time.perf_counter()
    update()
    tail = time.perf_counter() - start
    tokens = a.sequences * a.length
    seconds = best * a.sequences / a.micro + tail
    print(json.dumps({"mode": a.mode, "micro": a.micro, "lean": a.lean, "pure": a.pure, "tokens_per_s": tokens / seconds,
                      "micro_s": best, "update_s": tail, "peak_bytes": peak_bytes()}), flush=True)


def trials(a, configurations):
    out = []
    for extra in configurations:
        r = subprocess.run([sys.executable, os.path.abspath(__file__), "--trial", "--threads", str(a.threads),
                            "--sequences", str(a.sequences), "--length", str(a.length)] + extra,
                           stdout=subprocess.PIPE)
        if r.returncode == 0:
            out.append(json.loads(r.stdout.splitlines()[-1]))
            print(json.dumps(out[-1]), file=sys.stderr, flush=True)
    return out


FAST = [["--mode", m, "--micro", n] for m, n in (("compile", "1"), ("compile", "2"), ("compile", "4"), ("eager", "2"))]
LEAN = [["--mode", "eager", "--micro", "1", "--lean"]]
INFORMATION = [["--mode", "eager", "--micro", "1"], ["--mode", "eager", "--micro", "4"]] + LEAN + [
    ["--mode", "compile", "--micro", "2", "--pure"]]


def fastest(a):
    """The trials of FAST, and of LEAN where memory is asked for, from the file if the same torch wrote it."""
    import importlib.metadata
    key = f"torch {importlib.metadata.version('torch')}, {a.threads} threads, {a.sequences} x {a.length}"
    path = os.path.join(a.models, "torch_train.json") if a.models else None
    known = {}
    if path and os.path.exists(path):
        with open(path) as f:
            known = json.load(f)
    found = known.get(key, {})
    for name, configurations in (("fast", FAST), ("lean", LEAN if a.row == "memory" else [])):
        if configurations and name not in found:
            found[name] = max(trials(a, configurations), key=lambda t: t["tokens_per_s"])
    if path:
        known[key] = found
        with open(path, "w") as f:
            json.dump(known, f, indent=1)
    return found


def serve(a):
    found = {}
    if a.mode == "auto":
        found = fastest(a)
        a.mode, a.micro = found["fast"]["mode"], found["fast"]["micro"]
    torch, micro_batch, update, step, ids = build(a)
    step(a.micro)  # threads, compiler, allocator
    print(json.dumps({"ready": True, "name": f"torch {torch.__version__} {a.mode}{' pure bf16' if a.pure else ''}"
                      f"{' checkpointed' if a.lean else ''}, {a.micro} sequences a micro-batch",
                      "threads": torch.get_num_threads(), "leanest_bytes": found.get("lean", {}).get("peak_bytes")}),
          flush=True)
    for line in sys.stdin:
        if line.strip() == "quit":
            break
        if line.strip() != "run":
            continue
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
        rate, peak = a.sequences * a.length / seconds, peak_bytes()
        print(json.dumps({"value": rate if a.row == "step" else peak, "tokens_per_s": rate, "peak_bytes": peak,
                          "seconds": seconds, "loss": loss}), flush=True)


def main():
    a = arguments()
    if a.trial:
        trial(a)
    elif a.explore:
        trials(a, FAST + INFORMATION)
    else:
        serve(a)


if __name__ == "__main__":
    main()
