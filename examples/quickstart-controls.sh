#!/usr/bin/env bash
# Two controls of the quickstart, from the same seed and the same start: is it the rewards that teach, and would more SFT have done?
#   permuted   the rl stage with rewards permuted at random within each group
#   more sft   instead of rl, SFT goes on for as long as rl took (wall time)
#   examples/quickstart-controls.sh [SEED]     needs runs/quickstart-SEED/; leaves runs/control-permuted-SEED/ and runs/control-sft-SEED/
set -euo pipefail
seed=${1:-1}
[[ $seed =~ ^[0-9]+$ ]] || { echo "usage: examples/quickstart-controls.sh [SEED]" >&2; exit 2; }
cd "$(dirname "$0")/.."
ooze=build/release/bin/ooze base=$PWD/runs/quickstart-$seed
[ -s "$base/summary.json" ] || { echo "run examples/quickstart.sh $seed first" >&2; exit 1; }

# Wall time of the two stages, and how many SFT steps fit into that of rl.
steps=$(grep -o '"stage":"[a-z]*","wall_ms":[0-9]*' "$base/metrics.jsonl" | tr -d '"' | tr ':,' '  ' | awk '
  $2 == "sft" { if (!a) a = $4; b = $4; n++ }
  $2 == "rl"  { c = $4 }
  END { printf "%d", (c - b) / ((b - a) / (n - 1)) }')
echo "rl took as long as $steps steps of SFT"

run() { # name, overrides…
  local dir=runs/$1-$seed
  shift
  [ ! -e "$dir" ] || { echo "$dir is there already" >&2; exit 1; }
  "$ooze" run examples/quickstart.yaml seed="$seed" run_dir="$dir" stages.sft.data="$base/demos.jsonl" "$@"
  "$ooze" audit "$dir"
  "$ooze" eval "$dir"
}
run control-permuted stages.rl.permute_rewards=true
run control-sft stages.rl.kind=sft stages.rl.data="$base/demos.jsonl" stages.rl.batch_rows=128 stages.rl.max_tokens=64 \
  stages.rl.loss=sft stages.rl.steps="$steps" stages.rl.optimizer.lr=2e-4
