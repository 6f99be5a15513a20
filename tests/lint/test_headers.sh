#!/usr/bin/env bash
# Every header of a room compiles alone, and twice, without a warning. Headers of an ISA folder (kernels/avx2/…) are
# included only by files of that folder and need its flags: they get them.
set -euo pipefail
cd "${OOZE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}"
rooms=(base proto net text ledger rl kernels model rollout trainer orchestrator cli)
export CC=${CC:-cc}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

check_header() { # scratch folder, header
  local flags=()
  case $2 in
    kernels/avx2/*) flags=(-mavx2 -mfma -mf16c) ;;
    kernels/avx512*/*) flags=(-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mavx2 -mfma -mf16c) ;;
  esac
  local source="$1/${2//\//_}.c"
  printf '#include "%s"\n#include "%s"\nint main(void);\nint main(void) { return 0; }\n' "$2" "$2" >"$source"
  if ! "$CC" -std=c17 -Wall -Wextra -Wstrict-prototypes -Werror -D_GNU_SOURCE -I. "${flags[@]}" -fsyntax-only "$source"; then
    echo "FAILED: $2 does not compile alone"
    return 1
  fi
}
export -f check_header

# what compiles nothing must not pass
printf '#pragma once\nsize_t broken(void);\n' >"$scratch/broken.h"
if (cd "$scratch" && check_header "$scratch" broken.h) >/dev/null 2>&1; then
  echo "the lint passes a header that needs another"
  exit 1
fi

present=()
for room in "${rooms[@]}"; do [ -d "$room" ] && present+=("$room"); done
find "${present[@]}" -name '*.h' | sort >"$scratch/list"
[ -s "$scratch/list" ] || { echo "no headers found"; exit 1; }
# shellcheck disable=SC2016
xargs -P 2 -I{} bash -c 'check_header "$0" {}' "$scratch" <"$scratch/list"
echo "$(wc -l <"$scratch/list") headers compile alone"
