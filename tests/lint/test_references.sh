#!/usr/bin/env bash
# Comments name a section of a manual in docs/ by its title, on one line: "Title" of algorithms.md, or … in algorithms.md. Numbers of
# sections change unnoticed; a title that is gone is found here. A title may stop at its colon. A toy tree is checked
# first, with one reference of each kind that must be seen.
set -euo pipefail
root=${OOZE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
manuals='algorithms|architecture|benchmarks|configuration|protocols'

titles() { # of manual $1: without number and code marks; those with a colon once more without what follows it
  sed -nE 's/^#+ ([0-9]+\. )?//p' "$1" | tr -d '`' | sed -E 'p; s/: .*//'
}

sources() {
  find . \( -name build -o -name runs -o -path './.*' \) -prune -o \
    \( -name '*.c' -o -name '*.h' -o -name '*.def' -o -name '*.proto' -o -name '*.py' -o -name '*.sh' -o -name '*.md' \) \
    -not -name test_references.sh -print0
}

# Prints one line per violation below $1, in the form of a compiler.
check_tree() {
  local file line manual title text
  cd "$1"
  { sources | xargs -0 grep -nE "($manuals)\.md,? (§|section)" || true; } | sed -E 's/^([^:]*:[0-9]+):.*/\1: sections are named by their titles/'
  { sources | xargs -0 grep -noE "\"[^\"]+\" (of|in) ($manuals)\.md" || true; } | while IFS=: read -r file line text; do
    title=${text#\"}
    title=${title%\" *}
    manual=docs/${text##* }
    titles "$manual" | grep -qxF -- "$title" || echo "$file:$line: $manual has no section \"$title\""
  done
}

# ---- the lint sees what it should ----
toy=$(mktemp -d)
trap 'rm -rf "$toy"' EXIT
mkdir -p "$toy"/{docs,rl}
printf '# Manual\n\n## 1. Losses\n\ntext\n\n## 2. Services: `x/1`\n' | tee "$toy/docs/algorithms.md" >"$toy/docs/protocols.md"
printf '// ("Losses" of algorithms.md), "Services" in protocols.md, "Services: x/1" of protocols.md\n' >"$toy/rl/fine.h"
echo '// (algorithms.md §1)' >"$toy/rl/number.h"
echo '"""algorithms.md section 1"""' >"$toy/rl/word.py"
echo 'LOSS(x) // "Loss" of algorithms.md' >"$toy/rl/gone.def"
echo '// "Losses" of protocols.md, "text" of algorithms.md' >"$toy/rl/text.c"
found=$(check_tree "$toy")
for expected in rl/number.h:1: rl/word.py:1: rl/gone.def:1: rl/text.c:1:; do
  grep -q "^./$expected" <<<"$found" || { echo "the lint is blind to $expected"; exit 1; }
done
[ "$(wc -l <<<"$found")" -eq 4 ] && ! grep -q fine.h <<<"$found" || { echo "the lint sees too much:"; echo "$found"; exit 1; }

# ---- the house itself ----
found=$(check_tree "$root")
if [ -n "$found" ]; then
  echo "$found"
  exit 1
fi
echo "$(cd "$root" && sources | xargs -0 grep -ohE "\"[^\"]+\" (of|in) ($manuals)\.md" | wc -l) references hold"
