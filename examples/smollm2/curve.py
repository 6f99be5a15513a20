#!/usr/bin/env python3
"""The reward curve of a run, from RUN/metrics.jsonl: mean reward of each task per step, lag and time, as a Markdown table.

    curve.py RUN
"""
import json
import os
import sys


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: curve.py RUN")
    rows = {}
    with open(os.path.join(sys.argv[1], "metrics.jsonl"), encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            if "step" in row:
                rows.setdefault(row["step"], {}).update(row)
    names = sorted({k for r in rows.values() for k in r if k.startswith("reward/") and k.endswith("/mean")})
    columns = [("step", "step", "{:d}")] + [(n, n.split("/")[1], "{:.3f}") for n in names] + \
        [("lag/mean", "lag", "{:.2f}"), ("rollout/response_len", "tokens", "{:.1f}"), ("train/masked_high", "masked high", "{:.4f}"),
         ("train/masked_low", "masked low", "{:.4f}"), ("time/step", "seconds", "{:.1f}")]
    print("| " + " | ".join(title for _, title, _ in columns) + " |")
    print("|" + "---|" * len(columns))
    for step in sorted(rows):
        r = rows[step]
        if any(n in r for n in names):
            print("| " + " | ".join(form.format(r[key]) if isinstance(r.get(key), (int, float)) else "–" for key, _, form in columns) + " |")


if __name__ == "__main__":
    main()
