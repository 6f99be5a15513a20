#!/usr/bin/env bash
# Walls: a room includes only the rooms it may. Doors: an outside library is included in one room. The tables below are
# those of docs/architecture.md. Headers are named from the root of the repository ("room/header.h"), never relatively.
# The last part builds a small house that breaks each rule once and expects to hear about it.
set -euo pipefail
root=${OOZE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}

read -r -d '' walls <<'TABLE' || true
base         base
proto        base proto
net          base net
text         base text
ledger       base ledger
rl           base rl
kernels      base kernels
model        base kernels model
rollout      base proto net kernels model rollout
trainer      base proto kernels model trainer
orchestrator base proto net text ledger rl orchestrator
cli          base proto net text ledger cli
examples     base net text examples
TABLE

# header (a shell pattern): rooms
read -r -d '' doors <<'TABLE' || true
yaml.h          base
jansson.h       base
openssl/*       base
xxhash.h        base
zmq*.h          proto
protobuf-c/*    proto
uv.h            net
microhttpd.h    net
curl/*          net
pcre2*.h        text
utf8proc.h      text
sqlite3*.h      ledger
*intrin.h       kernels base
cuda*           kernels
nccl*           kernels
mpi.h           kernels
ncurses*        cli
TABLE

allowed_rooms() { # of room $1; empty if there is no such room
  awk -v room="$1" '$1 == room { $1 = ""; print $0 " " }' <<<"$walls"
}

door_of() { # rooms of header $1; empty if no rule speaks of it
  local pattern rooms
  while read -r pattern rooms; do
    # shellcheck disable=SC2053
    if [[ $1 == $pattern ]]; then echo " $rooms "; return; fi
  done <<<"$doors"
}

# Prints one line per violation below $1, in the form of a compiler.
check_house() {
  local file line name room target rest
  cd "$1"
  find . -mindepth 2 \( -name '*.c' -o -name '*.h' -o -name '*.def' \) -not -path './build/*' -not -path './tests/*' \
    -not -path './.*/*' | sort | while read -r file; do
    file=${file#./}
    room=${file%%/*}
    rest=$(allowed_rooms "$room")
    if [ -z "$rest" ]; then
      echo "$file:1: '$room' is no room of the table in tests/lint/test_walls.sh"
      continue
    fi
    { grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$file" || true; } |
      sed -E 's/^([0-9]+):[^"]*"([^"]*)".*/\1 \2/' | while read -r line name; do
      target=${name%%/*}
      case $name in
        */*) [[ $rest == *" $target "* ]] || echo "$file:$line: room $room may not include \"$name\"" ;;
        *) echo "$file:$line: \"$name\" is not named from the root" ;;
      esac
      case $name in *../* | ./*) echo "$file:$line: \"$name\" is not named from the root" ;; esac
    done
    { grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*<' "$file" || true; } |
      sed -E 's/^([0-9]+):[^<]*<([^>]*)>.*/\1 \2/' | while read -r line name; do
      target=$(door_of "$name")
      [ -z "$target" ] || [[ $target == *" $room "* ]] ||
        echo "$file:$line: <$name> has its door in:$target"
    done
  done
}

# ---- the lint sees what it should ----
toy=$(mktemp -d)
trap 'rm -rf "$toy"' EXIT
mkdir -p "$toy"/{base,net,trainer,attic,rollout/deep}
echo '#include "base/status.h"' >"$toy/net/fine.c"
echo '#include "net/loop.h"' >"$toy/base/wall.c"
echo '  #  include "rollout/engine.h"' >"$toy/trainer/wall.h"
echo '#include <zmq.h>' >"$toy/net/door.c"
echo '#include <sqlite3.h>' >"$toy/rollout/deep/door.h"
echo '#include "loop.h"' >"$toy/net/relative.c"
echo '#include "base/../net/loop.h"' >"$toy/trainer/dots.c"
echo 'int x;' >"$toy/attic/x.c"
found=$(check_house "$toy")
for expected in base/wall.c:1: trainer/wall.h:1: net/door.c:1: rollout/deep/door.h:1: net/relative.c:1: \
  trainer/dots.c:1: attic/x.c:1:; do
  grep -q "^$expected" <<<"$found" || { echo "the lint is blind to $expected"; exit 1; }
done
[ "$(wc -l <<<"$found")" -eq 7 ] && ! grep -q fine.c <<<"$found" || { echo "the lint sees too much:"; echo "$found"; exit 1; }

# ---- the house itself ----
found=$(check_house "$root")
if [ -n "$found" ]; then
  echo "$found"
  exit 1
fi
echo "walls and doors hold"
