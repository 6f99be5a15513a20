#!/usr/bin/env bash
# Everything there is to prove on this machine: installs what is missing, builds the presets and runs their tests:
#   release  all tests; then what depends on the class of kernels once more, as on a processor with AVX-512 but no bf16
#            instructions, and as on one with AVX2 only (tests/isa.h)
#   asan     all tests under the address and undefined-behaviour sanitizers
#   tsan     the tests that have threads, under the thread sanitizer
# The last line counts them all together: "N passed, N failed, N skipped".
#   tests/run.sh [PRESET…]      default: release asan tsan
#   OOZE_SKIP_INSTALL=1 leaves packages alone; OOZE_TEST_JOBS=N runs N tests at once (default 2)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
presets=("${@:-release}")
[ $# -gt 0 ] || presets=(release asan tsan)
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

# run_tests PRESET WHAT [CTEST OPTION…]
run_tests() {
  local preset=$1 what=$2 junit
  shift 2
  say "$preset: $what"
  junit=$PWD/build/$preset/junit.xml
  rm -f "$junit"
  ctest --test-dir "build/$preset" -j "$jobs" --output-on-failure --no-tests=error --output-junit "$junit" "$@"
  if [ -s "$junit" ]; then
    count "$junit"
  else
    fail "$preset: $what: ctest left no result"
  fi
}

# The tests that depend on the class of kernels, with everything above the class masked.
run_masked() {
  local reason
  if reason=$("build/$1/tests/kernels_class" "$2"); then
    OOZE_TEST_ISA=$2 run_tests "$1" "tests on $2" -L '^isa$'
  else
    echo "skipped: $reason"
    skipped=$((skipped + 1))
  fi
}

for preset in "${presets[@]}"; do
  say "$preset: build"
  log=build/$preset/build.log
  mkdir -p "build/$preset"
  target=(all)
  [ "$preset" != tsan ] || target=(thread_tests)
  if ! { cmake --preset "$preset" && cmake --build --preset "$preset" --target "${target[@]}"; } >"$log" 2>&1; then
    tail -n 40 "$log"
    fail "$preset: build (all of it in $log)"
    continue
  fi
  case $preset in
    tsan) run_tests "$preset" "tests that have threads" -L '^threads$' ;;
    *) run_tests "$preset" "tests" ;;
  esac
  if [ "$preset" = release ]; then
    run_masked "$preset" avx512
    run_masked "$preset" avx2
  fi
done
say "done"
finish
