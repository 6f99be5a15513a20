#!/usr/bin/env bash
# `ooze bench` against programs that only speak its protocol: medians of runs taken in turn, goals, bounds, parts, limits; and what happens
# when a side says an error, dies, floods, hangs or is not installed. No Python: the peer's interpreter is a shell.
. "$(dirname "$0")/lib.sh"
suite=$tmp/suite
mkdir -p "$suite/bench/peers"
export OOZE_BENCH_SUITE=$suite OOZE_BENCH_MODELS=$tmp/models OOZE_BENCH_PYTHON=$BASH

# program FILE READY ANSWER…: gives the answers one after the other, then the last one again; notes each line it gets in $tmp/turns.
program() {
  local file=$suite/$1 ready=$2
  shift 2
  {
    printf '#!%s\n' "$BASH"
    printf 'echo "%s $*" >>"%s/args"; echo talk; echo %q\n' "${file##*/}" "$tmp" "$ready"
    printf 'answers=('
    printf ' %q' "$@"
    printf ')\ni=0\nwhile read -r line; do\n  echo "%s $line" >>"%s/turns"\n' "${file##*/}" "$tmp"
    printf '  [ "$line" = run ] || exit 0\n  echo "${answers[i]}"; [ $((i + 1)) -lt ${#answers[@]} ] && i=$((i + 1))\ndone\n'
  } >"$file"
  chmod +x "$file"
}
# bench CODE ARGUMENT…: runs it, expects that exit code.
bench() {
  local want=$1
  shift
  : >"$tmp/turns" >"$tmp/args"
  timeout "$patience" "$ooze" bench "$@" >"$tmp/bench.out" 2>"$tmp/bench.err"
  code=$?
  [ $code -eq "$want" ] || fail "ooze bench $*: exit code $code, expected $want"
}
# is FILTER: holds of the JSON on stdout.
is() { jq -e "$1" "$tmp/bench.out" >/dev/null || fail "not $1: $(cat "$tmp/bench.out")"; }
told() { grep -q -E -- "$1" "$tmp/bench.err" || fail "does not say /$1/: $(cat "$tmp/bench.err")"; }
no_children() { [ -z "$(own_processes)" ] || fail "left behind: $(own_processes)"; }

ready='{"ready":true,"isa":"avx2","threads":2,"bytes":1000}'
say "a row that holds: medians, turns, arguments"
program bench_decode "$ready" '{"value":130,"step_ms":8}' '{"value":110,"step_ms":9}' '{"value":120,"step_ms":7}'
program bench/peers/llama.py '{"ready":true,"name":"peer 1.0","bytes":1040}' '{"value":90}' '{"value":100}' '{"value":150}'
bench 0 decode-b1 --json --runs 3 --isa avx2 --threads 2
is '.name == "decode-b1" and .unit == "tok/s" and .ours == 120 and .peer == {name: "peer 1.0", value: 100}'
is '.ratio == 1.2 and .goal == 1.1 and .holds and .runs == 3 and .processor.isa == "avx2" and .processor.threads == 2'
is '.processor.model != "" and .processor.cores > 0 and .spread.ours == [110, 130] and .spread.peer == [90, 150]'
is '.figures == {step_ms: 8} and .peer_info.bytes == 1040'
printf '%s run\n' bench_decode llama.py bench_decode llama.py bench_decode llama.py >"$tmp/expected"
printf '%s quit\n' bench_decode llama.py >>"$tmp/expected"
cmp "$tmp/turns" "$tmp/expected" || fail "not in turn: $(cat "$tmp/turns")"
grep -q -F -- "bench_decode --row b1 --serve --models $tmp/models --threads 2 --isa avx2" "$tmp/args" || fail "$(cat "$tmp/args")"
grep -q -F -- "llama.py decode-b1 --model q8_0-bf16head.gguf --serve --models $tmp/models --threads 2" "$tmp/args" || fail "$(cat "$tmp/args")"
grep llama.py "$tmp/args" | grep -q -- --isa && fail "the peer was told our class"
told '^bench_decode: talk'
told 'decode-b1 3/3 '

say "below the goal; the table; several rows; an even number of runs"
program bench_decode "$ready" '{"value":100,"bound":200,"bound_name":"reading"}' '{"value":104,"bound":100,"bound_name":"reading"}'
bench 3 decode-b1 --json --quiet --runs 2
is '.holds == false and .ours == 102 and .peer.value == 95'
[ "$(wc -l <"$tmp/bench.err")" -eq 2 ] || fail "--quiet: $(cat "$tmp/bench.err")" # what the programs say
bench 3 decode-b1 decode-bandwidth --quiet --runs 2
grep -q -E '^decode-b1 +avx2 +tok/s +102 +95 +1.07x +1.10x +BELOW peer 1.0' "$tmp/bench.out" || fail "table: $(cat "$tmp/bench.out")"
grep -q -E '^decode-bandwidth +avx2 +GB/s +102 +150 +0.68x +0.75x +BELOW bound: reading' "$tmp/bench.out" || fail "table: $(cat "$tmp/bench.out")"
bench 0 decode-b1-q8_0 --json --quiet --runs 2 # for information: no goal to miss
is '.goal == 0 and .ratio > 1.07'

say "several classes: each row once with each, one table; a program that runs another class than asked"
printf '#!%s\nwhile [ $# -gt 1 ]; do [ "$1" = --isa ] && isa=$2; shift; done\necho "{\\"ready\\":true,\\"isa\\":\\"$isa\\"}"\n' "$BASH" >"$suite/bench_train"
printf 'while read -r line; do [ "$line" = run ] || exit 0; echo "{\\"value\\":${#isa}00,\\"bound\\":500}"; done\n' >>"$suite/bench_train"
cp "$suite/bench_train" "$suite/bench_refit" && chmod +x "$suite/bench_train" "$suite/bench_refit"
bench 0 train-mfu refit --runs 1 --quiet --isa avx512,avx2
[ "$(grep -c '^row ' "$tmp/bench.out")" -eq 1 ] || fail "heads: $(cat "$tmp/bench.out")"
awk '$5 == 500 { print $1, $2, $4 }' "$tmp/bench.out" >"$tmp/rows"
printf '%s\n' "train-mfu avx512 600" "train-mfu avx2 400" "refit avx512 600" "refit avx2 400" | cmp - "$tmp/rows" || fail "$(cat "$tmp/bench.out")"
bench 0 train-mfu --runs 1 --quiet --json --isa avx2,avx512
[ "$(jq -r .processor.isa "$tmp/bench.out" | paste -s -d ' ')" = "avx2 avx512" ] || fail "$(cat "$tmp/bench.out")"
bench 1 decode-b1 train-mfu --runs 1 --quiet --json --isa avx512
[ "$(jq -s length "$tmp/bench.out")" -eq 2 ] || fail "$(cat "$tmp/bench.out")"
told 'decode-b1 on avx512: bench_decode runs on avx2, asked for avx512'
bench 2 decode-b1 --isa ,
bench 2 decode-b1 --isa a,b,c,d,e,f,g,h,i

say "a goal of the program's own; bytes too far apart"
program bench_decode '{"ready":true,"isa":"fake","threads":2,"bytes":1000,"goal":0.5}' '{"value":100,"bound":190}'
bench 0 decode-bandwidth --json --runs 1
is '.goal == 0.5 and .ratio > 0.52 and (.peer.name | startswith("bound"))'
program bench/peers/llama.py '{"ready":true,"bytes":1060}' '{"value":10}'
bench 3 decode-b1 --json --runs 1
is '.ratio == 10 and .holds == false and (.why | test("bytes"))'

say "less is better; parts; limits"
program bench_grpo "$ready" '{"value":2}'
program bench/peers/trl_grpo.py '{"ready":true}' '{"value":9}'
bench 0 grpo-iteration --json --runs 1
is '.ratio == 4.5 and .holds'
program bench_gemm "$ready" '{"value":1,"parts":{"a":4,"b":9}}'
program bench_dnnl '{"ready":true}' '{"value":1,"parts":{"a":2,"b":4.5}}'
bench 0 gemm --json --runs 1
is '.ratio > 1.999 and .ratio < 2.001 and .parts.b.ratio == 2 and .holds'
program bench_dnnl '{"ready":true}' '{"value":1,"parts":{"a":0.5,"b":10}}'
bench 3 gemm --json --runs 1
is '.ratio > 2.6 and .parts.b.ratio == 0.9 and .holds == false and (.why | test("^b has 0.9"))'
program bench_dnnl '{"ready":true}' '{"value":1,"parts":{"a":0.5}}'
bench 1 gemm --json --runs 1
is '.name == "gemm" and (.error | test("bench_dnnl: part b"))'
program bench_refit "$ready" '{"value":2,"bound":1.5,"limits":{"stall":{"value":3,"at_most":4}}}'
bench 0 refit --json --runs 1
program bench_refit "$ready" '{"value":2,"bound":1.5,"limits":{"stall":{"value":5,"at_most":4}}}'
bench 3 refit --json --runs 1
is '.ratio == 0.75 and .holds == false and (.why | test("stall"))'

say "errors: said by a program, not a number, no bound, death, not ready, flood"
program bench_decode "$ready" '{"value":100}'
program bench/peers/llama.py '{"error":"not installed: run tests/bench/setup.sh"}'
bench 1 decode-b1 --json
is '.name == "decode-b1" and (.error == "llama.py: not installed: run tests/bench/setup.sh")'
told 'llama.py: not installed'
program bench/peers/llama.py '{"ready":true,"bytes":1000}' '{"value":3}' '{"error":"no memory"}'
bench 1 decode-b1 --runs 3
told 'llama.py: no memory'
program bench/peers/llama.py '{"ready":true,"bytes":1000}' '{"value":0}'
bench 1 decode-b1 --runs 1
told 'value 0'
program bench/peers/llama.py '{"ready":true,"bytes":1000}' '{"value":"fast"}'
bench 1 decode-b1 --runs 1
told 'a number'
bench 1 decode-bandwidth --runs 1
told 'no bound'
program bench/peers/llama.py '{"ready":true,"bytes":1000}' '{"value"'
bench 1 decode-b1 --runs 1
told 'llama.py'
printf 'echo {\\"ready\\":true}; read -r line; kill -SEGV $$\n' >"$suite/bench/peers/llama.py"
bench 1 decode-b1 --runs 1
told 'llama.py was ended by signal 11'
printf 'echo {\\"ready\\":true}; read -r line; exit 3\n' >"$suite/bench/peers/llama.py"
bench 1 decode-b1 --runs 1
told 'llama.py ended with code 3'
printf 'echo {\\"steady\\":true}; read -r line\n' >"$suite/bench/peers/llama.py"
bench 1 decode-b1 --runs 1
told 'does not say ready'
printf 'head -c 3000000 /dev/zero; read -r line\n' >"$suite/bench/peers/llama.py"
bench 1 decode-b1 --runs 1
told 'without an answer'
no_children

say "deadlines, and a program that will not quit"
printf 'echo {\\"ready\\":true}; read -r line; trap "" TERM; while :; do sleep 1; done\n' >"$suite/bench/peers/llama.py"
start=$SECONDS
bench 1 decode-b1 --runs 1 --deadline 1
told 'llama.py did not answer within 1 s'
[ $((SECONDS - start)) -lt 60 ] || fail "took $((SECONDS - start)) s"
no_children

say "missing: the peer's Python, the peer, our program, the row; wrong usage"
bench 1 decode-b1 --python "$tmp/nowhere/python"
told 'setup.sh'
rm "$suite/bench/peers/llama.py"
bench 1 decode-b1
told 'no peer'
rm "$suite/bench_gemm"
bench 1 gemm
told 'no program .*bench_gemm'
bench 1 gemm refit --json --runs 1 --quiet # the others go on
[ "$(jq -s length "$tmp/bench.out")" -eq 2 ] || fail "$(cat "$tmp/bench.out")"
bench 2 nonsense
told 'ooze bench --list'
bench 2
bench 2 gemm --runs 0
bench 2 gemm --all
bench 2 gemm --deadline soon
bench 0 --list
[ "$(grep -c -E '^[a-z]' "$tmp/bench.out")" -ge 10 ] || fail "--list: $(cat "$tmp/bench.out")"

say "profile"
printf '#!%s\necho "profile of $*"\n' "$BASH" >"$suite/bench_profile"
chmod +x "$suite/bench_profile"
bench 0 profile b1 --threads 1
grep -q '^profile of b1 --threads 1$' "$tmp/bench.out" || fail "$(cat "$tmp/bench.out")"
rm "$suite/bench_profile"
bench 1 profile
told 'bench_profile'

say "killed: the programs go, too"
program bench/peers/llama.py '{"ready":true,"bytes":1000}' '{"value":3}'
printf 'echo {\\"ready\\":true}; read -r line; echo >"%s/hanging"; while :; do sleep 1; done\n' "$tmp" >"$suite/bench/peers/llama.py"
"$ooze" bench decode-b1 >/dev/null 2>&1 &
victim=$!
wait_for "the peer's run" test -e "$tmp/hanging"
{ kill -KILL $victim && wait $victim; } 2>/dev/null
gone() { [ -z "$(own_processes)" ]; }
wait_for "the end of its children" gone
echo ok
