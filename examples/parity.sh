#!/usr/bin/env bash
# Are trainer and engine one forward pass, bit for bit? The quickstart's model, tasks and stages, asynchronous (max_lag 2), in both dtypes
# and both ways to deal with KV caches when new weights arrive; every second step all its trajectories are scored again under the weights
# that sampled them. Small steps, many refits: generation is in the middle of something whenever weights change.
#   examples/parity.sh [SEED] [KEY=VALUE…]     default 1; leaves runs/parity-DTYPE-KV-SEED/
# Exit code 0 when in every run at least 10 % of the trained tokens were scored again, at least 100 of those trajectories cross a refit,
# and the largest difference of a log-probability is 0. Uses what is built in build/release (OOZE_BIN_DIR: elsewhere).
set -euo pipefail
seed=${1:-1}
shift || true
[[ $seed =~ ^[0-9]+$ ]] || { echo "usage: examples/parity.sh [SEED] [KEY=VALUE…]" >&2; exit 2; }
cd "$(dirname "$0")/.."
bin=${OOZE_BIN_DIR:-$PWD/build/release/bin}
if [ -z "${OOZE_BIN_DIR:-}" ]; then
  cmake --preset release >build-release.log 2>&1 || { cat build-release.log >&2; rm -f build-release.log; exit 1; }
  rm -f build-release.log
  cmake --build --preset release --target ooze ooze-orchestrator ooze-trainer ooze-rollout task-sort task-tool quickstart-demos
fi
for need in jq sqlite3; do command -v "$need" >/dev/null || { echo "needs $need" >&2; exit 1; }; done

printf '%-5s %-10s %9s %15s %9s %13s %14s %8s %13s\n' dtype kv steps 'trained tokens' coverage trajectories 'across a refit' skipped max_abs_diff
good=yes
for dtype in bf16 fp8; do
  for kv in keep recompute; do
    run=runs/parity-$dtype-$kv-$seed
    [ ! -e "$run" ] || { echo "$run is there already: remove it" >&2; exit 1; }
    mkdir -p "$run"
    "$bin/quickstart-demos" "$seed" 10000 >"$run/demos.jsonl"
    "$bin/ooze" run --quiet examples/quickstart.yaml seed="$seed" run_dir="$run" stages.sft.data="$PWD/$run/demos.jsonl" \
      rollout.dtype=$dtype rollout.kv_on_refit=$kv check.every=2 check.share=1 eval.n=0 \
      stages.sft.steps=60 stages.rl.steps=80 stages.rl.groups_per_step=2 stages.rl.zero_variance=keep "$@"
    parity=$("$bin/ooze" audit --json "$run" | jq -c .parity)
    trained=$(sqlite3 -readonly "$run/ledger.sqlite" 'SELECT SUM(n_sampled) FROM unit WHERE state = 5 AND source = 0')
    steps=$(sqlite3 -readonly "$run/ledger.sqlite" 'SELECT COUNT(DISTINCT step) FROM unit WHERE state = 5 AND source = 0')
    jq -r --arg d $dtype --arg k $kv --arg t "$trained" --arg s "$steps" \
      '[$d, $k, $s, $t, (.coverage * 1000 | round / 10 | tostring) + " %", .segments, .refit_crossings, .skipped, .max_abs_diff] | @tsv' <<<"$parity" |
      awk -F '\t' '{ printf "%-5s %-10s %9s %15s %9s %13s %14s %8s %13s\n", $1, $2, $3, $4, $5, $6, $7, $8, $9 }'
    jq -e '.coverage >= 0.1 and .refit_crossings >= 100 and .max_abs_diff == 0 and .failed == 0' <<<"$parity" >/dev/null || good=no
  done
done
[ $good = yes ] || { echo "NOT shown" >&2; exit 1; }
