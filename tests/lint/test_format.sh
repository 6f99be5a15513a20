#!/usr/bin/env bash
# Sources are as .clang-format says. Versions of clang-format differ in details: only Debian 12's (14) is asked; where
# there is another, or none, the test is skipped (77).
set -euo pipefail
cd "${OOZE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}"
format=$(command -v clang-format-14 || command -v clang-format || true)
if [ -z "$format" ] || ! "$format" --version | grep -q 'version 14\.'; then
  echo "no clang-format 14 here"
  exit 77
fi
if printf 'int  x;\n' | "$format" --style=file --assume-filename=x.c --dry-run -Werror 2>/dev/null; then
  echo "clang-format finds nothing to say about bad format"
  exit 1
fi
find . \( -name build -o -name runs -o -name '.*' -not -name . \) -prune -o \( -name '*.c' -o -name '*.h' \) -print0 |
  sort -z >"${TMPDIR:-/tmp}/ooze-format.$$"
trap 'rm -f "${TMPDIR:-/tmp}/ooze-format.$$"' EXIT
xargs -0 -P 2 -n 16 "$format" --style=file --dry-run -Werror <"${TMPDIR:-/tmp}/ooze-format.$$"
echo "$(tr -cd '\0' <"${TMPDIR:-/tmp}/ooze-format.$$" | wc -c) files are formatted"
