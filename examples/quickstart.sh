#!/usr/bin/env bash
# From nothing to a measurably better model: installs what is missing, builds, and runs examples/quickstart.yaml.
#   examples/quickstart.sh [SEED]     default 1; leaves the run in runs/quickstart-SEED/, with summary.json
# OOZE_SKIP_INSTALL=1 leaves packages alone. Further arguments are configuration overrides (stages.rl.steps=10).
set -euo pipefail
seed=${1:-1}
shift || true
[[ $seed =~ ^[0-9]+$ ]] || { echo "usage: examples/quickstart.sh [SEED] [KEY=VALUE…]" >&2; exit 2; }
cd "$(dirname "$0")/.."
started=$(date +%s)

[ -n "${OOZE_SKIP_INSTALL:-}" ] || scripts/install.sh build
cmake --preset release >build-release.log 2>&1 || { cat build-release.log >&2; rm -f build-release.log; exit 1; }
rm -f build-release.log
cmake --build --preset release --target ooze ooze-orchestrator ooze-trainer ooze-rollout task-sort task-tool quickstart-demos

bin=$PWD/build/release/bin
run=runs/quickstart-$seed
if [ -e "$run" ]; then
  echo "$run is there already: remove it, or go on with it by $bin/ooze resume $run" >&2
  exit 1
fi
mkdir -p "$run"
"$bin/quickstart-demos" "$seed" 10000 >"$run/demos.jsonl"
"$bin/ooze" run examples/quickstart.yaml seed="$seed" run_dir="$run" stages.sft.data="$PWD/$run/demos.jsonl" "$@"

"$bin/ooze" audit "$run"
"$bin/ooze" eval --summary "$run" --seed "$seed" --wall "$(($(date +%s) - started))" >"$run/summary.json.tmp"
mv "$run/summary.json.tmp" "$run/summary.json"
"$bin/ooze" eval "$run"
