#!/usr/bin/env bash
# Everything there is to prove on this machine: installs what is missing, builds the release and the asan+ubsan
# presets, runs the tests of both. The last line counts them, both presets together: "N passed, N failed, N skipped".
#   tests/run.sh [PRESET…]      default: release asan
#   OOZE_SKIP_INSTALL=1 leaves packages alone; OOZE_TEST_JOBS=N runs N tests at once (default 2)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
presets=("${@:-release}")
[ $# -gt 0 ] || presets=(release asan)
jobs=${OOZE_TEST_JOBS:-2}
passed=0 failed=0 skipped=0

finish() {
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
  exit
}
fail() { # something before the tests
  echo "FAILED: $1"
  failed=$((failed + 1))
}
say() { echo "== $* ($((SECONDS / 60)) min $((SECONDS % 60)) s)"; }

# Counts the test cases of a JUnit file by their state. A test that could not even be started is a failure, whatever
# ctest calls it; only exit code 77 is a skip.
count() {
  local junit=$1 total bad odd
  total=$(grep -c '<testcase ' "$junit")
  bad=$(grep -c '<testcase .*status="fail"' "$junit")
  odd=$(grep -c '<testcase .*status="\(notrun\|disabled\)"' "$junit")
  local skips
  skips=$(grep -c '<skipped message="SKIP_RETURN_CODE=77"' "$junit")
  passed=$((passed + total - bad - odd))
  failed=$((failed + bad + odd - skips))
  skipped=$((skipped + skips))
  grep '<testcase .*status="fail"' "$junit" | sed 's/.*<testcase name="\([^"]*\)".*/FAILED: \1/'
}

if [ -z "${OOZE_SKIP_INSTALL:-}" ]; then
  say "packages"
  scripts/install.sh build test || { fail "installing packages"; finish; }
fi

for preset in "${presets[@]}"; do
  say "$preset: build"
  log=build/$preset/build.log
  mkdir -p "build/$preset"
  if ! { cmake --preset "$preset" && cmake --build --preset "$preset"; } >"$log" 2>&1; then
    tail -n 40 "$log"
    fail "$preset: build (all of it in $log)"
    continue
  fi
  say "$preset: tests"
  junit=$PWD/build/$preset/junit.xml
  rm -f "$junit"
  ctest --test-dir "build/$preset" -j "$jobs" --output-on-failure --no-tests=error --output-junit "$junit"
  if [ -s "$junit" ]; then
    count "$junit"
  else
    fail "$preset: ctest left no result"
  fi
done
say "done"
finish
