#!/usr/bin/env python3
"""Does TensorBoard itself read our event files? pip install tensorboard; tensorboard_reads.py RUN

Compares every scalar of RUN/tensorboard with RUN/metrics.jsonl; exit code 0 when they agree."""
import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = sys.argv[1]
events = EventAccumulator(run + "/tensorboard", size_guidance={"scalars": 0})
events.Reload()
want = {}
for line in open(run + "/metrics.jsonl"):
    row = json.loads(line)
    for name, value in row.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in ("step", "wall_ms"):
            want.setdefault(name, []).append((row["step"], value))
bad = 0
for name, points in want.items():
    got = [(e.step, e.value) for e in events.Scalars(name)]
    if len(got) != len(points) or any(g[0] != w[0] or abs(g[1] - w[1]) > 1e-6 * max(1, abs(w[1])) for g, w in zip(got, points)):
        bad += 1
        print("differs:", name, len(got), len(points))
print(f"{len(want)} names, {sum(map(len, want.values()))} points, {bad} names differ")
sys.exit(1 if bad or not want else 0)
