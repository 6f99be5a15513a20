#!/usr/bin/env python3
"""Golden file of the losses: "Losses" of algorithms.md restated in float64 torch, gradients by autograd with the stop-gradients that the
papers state. Writes tests/golden/loss.bin, read by tests/oracle/test_loss.c. Run from the repository's root:

    python3 tests/golden/make_loss.py

Inputs are random, float32-representable, and away from the edges of every clip and mask (at least 1e-3 in the ratio), so that
the derivative exists. Format, little-endian: magic "OOZELOSS", u32 n_cases, then per case
    u32 loss, aggregation, kept_denominator (0/1), n_members, n_tokens     (ids of base/runconfig.h)
    f64 eps_low, eps_high, beta
    members: n_members x (u32 trajectory, group, multiplicity, length)
    f32 lp, lp_old, lp_roll, advantage [n_tokens]; u8 mask [n_tokens]
    f64 value; f64 grad [n_tokens]                                          d value / d lp
"""
import struct
import sys

import torch

torch.set_default_dtype(torch.float64)
LOSSES = ["two_sided_is", "icepop", "ppo_clip", "sft"]
TOKEN_MEAN, SEQUENCE_MEAN, GROUP_MEAN = 1, 2, 3


def terms(loss, lp, lp_old, lp_roll, adv, p):
    """Per-token term to be minimised, and which tokens the loss keeps."""
    if loss == "two_sided_is":
        r = torch.exp(lp - lp_roll)
        inside = (r > 1 - p["eps_low"]) & (r < 1 + p["eps_high"])
        f = torch.where(inside, r, torch.zeros_like(r)).detach()
        return -f * adv * lp, inside
    if loss == "icepop":
        rho = torch.exp(lp_old - lp_roll)
        inside = (rho >= 1 / p["beta"]) & (rho <= p["beta"])
        pop = torch.where(inside, rho, torch.zeros_like(rho)).detach()
        r = torch.exp(lp - lp_old.detach())
        return -pop * torch.minimum(r * adv, torch.clamp(r, 1 - p["eps_low"], 1 + p["eps_high"]) * adv), inside
    if loss == "ppo_clip":
        r = torch.exp(lp - lp_old.detach())
        surrogate = torch.minimum(r * adv, torch.clamp(r, 1 - p["eps_low"], 1 + p["eps_high"]) * adv)
        return -surrogate, torch.ones_like(lp, dtype=torch.bool)
    return -lp, torch.ones_like(lp, dtype=torch.bool)


def aggregate(kind, members, term, mask, counted):
    """The three means, written as sums over sequences (no weights per member: a second statement of aggregate.c)."""
    at, spans = 0, []
    for m in members:
        spans.append(slice(at, at + m["length"]))
        at += m["length"]
    sums = [(term[s] * mask[s]).sum() for s in spans]
    counts = [counted[s].sum().item() for s in spans]
    if kind == TOKEN_MEAN:
        top = sum(m["mult"] * s for m, s in zip(members, sums))
        return top / sum(m["mult"] * c for m, c in zip(members, counts))
    if kind == SEQUENCE_MEAN:
        total, n = 0, 0
        for j in sorted({m["trajectory"] for m in members}):
            idx = [i for i, m in enumerate(members) if m["trajectory"] == j]
            length = sum(counts[i] for i in idx)
            if length == 0:
                continue
            mult = members[idx[0]]["mult"]
            total = total + mult * sum(sums[i] for i in idx) / length
            n += mult
        return total / n
    total, n = 0, 0
    for g in sorted({m["group"] for m in members}):
        idx = [i for i, m in enumerate(members) if m["group"] == g]
        length = sum(members[i]["mult"] * counts[i] for i in idx)
        if length == 0:
            continue
        total = total + sum(members[i]["mult"] * sums[i] for i in idx) / length
        n += 1
    return total / n


def f32(x):
    return x.to(torch.float32)


def away(r, edges):
    return all(((r - e).abs() > 1e-3).all().item() for e in edges)


def make_members(gen):
    """4 groups of 2..4 trajectories, some with two segments, some repeated."""
    members, trajectory = [], 0
    for group in range(4):
        for _ in range(int(torch.randint(2, 5, (1,), generator=gen))):
            mult = 1 + int(torch.randint(0, 3, (1,), generator=gen)) // 2
            for _ in range(1 + int(torch.randint(0, 2, (1,), generator=gen))):
                length = int(torch.randint(3, 14, (1,), generator=gen))
                members.append(dict(trajectory=trajectory, group=group, mult=mult, length=length))
            trajectory += 1
    return members


def make_case(out, loss, kind, kept, seed):
    gen = torch.Generator().manual_seed(seed)
    p = dict(eps_low=0.2, eps_high=0.28, beta=2.0)
    members = make_members(gen)
    n = sum(m["length"] for m in members)
    while True:
        roll = f32(-3 * torch.rand(n, generator=gen) - 0.01)
        old = f32(roll.double() + 0.45 * torch.randn(n, generator=gen))
        lp = f32((roll if loss == "two_sided_is" else old).double() + 0.25 * torch.randn(n, generator=gen))
        edges = [1 - p["eps_low"], 1 + p["eps_high"]]
        if (away(torch.exp(lp.double() - roll.double()), edges) and away(torch.exp(lp.double() - old.double()), edges)
                and away(torch.exp(old.double() - roll.double()), [0.5, 2.0])):
            break
    adv = torch.cat([f32(torch.randn(1, generator=gen)).expand(m["length"]) for m in members])
    mask = (torch.rand(n, generator=gen) < 0.7).double()
    mask[: members[0]["length"]] = 0  # a sequence without a trained token
    x = lp.double().clone().requires_grad_(True)
    term, inside = terms(loss, x, old.double(), roll.double(), adv.double(), p)
    counted = mask * inside.double() if kept else mask
    value = aggregate(kind, members, term, mask, counted)
    value.backward()
    out += struct.pack("<5I", LOSSES.index(loss), kind, kept, len(members), n)
    out += struct.pack("<3d", p["eps_low"], p["eps_high"], p["beta"])
    for m in members:
        out += struct.pack("<4I", m["trajectory"], m["group"], m["mult"], m["length"])
    for v in (lp, old, roll, adv):
        out += v.numpy().astype("<f4").tobytes()
    out += mask.numpy().astype("u1").tobytes()
    out += struct.pack("<d", value.item()) + x.grad.numpy().astype("<f8").tobytes()


def main():
    out, cases = bytearray(), 0
    for i, loss in enumerate(LOSSES):
        for kind in (TOKEN_MEAN, SEQUENCE_MEAN, GROUP_MEAN):
            for kept in (0, 1):
                make_case(out, loss, kind, kept, 1000 + 10 * i + 2 * kind + kept)
                cases += 1
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/loss.bin"
    with open(path, "wb") as f:
        f.write(b"OOZELOSS" + struct.pack("<I", cases) + out)
    print(f"{path}: {cases} cases, {len(out)} bytes")


if __name__ == "__main__":
    main()
