#!/usr/bin/env bash
# `ooze bench` against programs that only speak its protocol: medians of runs taken in turn, on one class of kernels and on several, goals,
# bounds, parts, limits; and what happens when a side says an error, dies, floods, hangs, spins or is not installed, and when it is
# interrupted. No Python: the peer's interpreter is a shell.
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
# classes FILE ANSWER…: a program that runs the class it is told (auto: best), notes class and line, and answers run i of a class with the
# i-th answer, in which CLASS becomes 100 for best, 50 for avx512, 10 for avx2.
classes() {
  local file=$suite/$1
  shift
  {
    printf '#!%s\nisa=auto; while [ $# -gt 1 ]; do [ "$1" = --isa ] && isa=$2; shift; done\n' "$BASH"
    printf '[ $isa = auto ] && isa=best\ncase $isa in best) x=100 ;; avx512) x=50 ;; avx2) x=10 ;; *) echo "{\\"error\\":\\"no $isa\\"}"; exit 1 ;; esac\n'
    printf 'echo "$isa start" >>"%s/turns"; echo "{\\"ready\\":true,\\"isa\\":\\"$isa\\",\\"bytes\\":1000}"\nanswers=(' "$tmp"
    printf ' %q' "$@"
    printf ')\ni=0\nwhile read -r line; do\n  echo "$isa $line" >>"%s/turns"\n  [ "$line" = run ] || exit 0\n' "$tmp"
    printf '  a=${answers[i]}; echo "${a/CLASS/$x}"; [ $((i + 1)) -lt ${#answers[@]} ] && i=$((i + 1))\ndone\n'
  } >"$file"
  chmod +x "$file"
}
turns() { paste -s -d ',' "$tmp/turns" | diff - <(echo "$1") || fail "not in turn"; }
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

say "several classes: rounds of ours on each and of the peer once; each class has its ratio"
classes bench_decode '{"value":CLASS}' '{"value":1CLASS}' '{"value":2CLASS}'
program bench/peers/llama.py '{"ready":true,"bytes":1000}' '{"value":40}' '{"value":50}' '{"value":60}'
bench 0 decode-b1 --json --runs 3 --isa auto,avx512,avx2
turns "$(printf '%s start,' best avx512 avx2)$(printf 'best run,avx512 run,avx2 run,llama.py run,%.0s' 1 2 3)best quit,avx512 quit,avx2 quit,llama.py quit"
jq -s -e 'map([.processor.isa, .ours, .peer.value, .ratio, .holds, .runs, .peer_runs, .complete]) ==
  [["best", 1100, 50, 22, true, 3, 3, true], ["avx512", 150, 50, 3, true, 3, 3, true], ["avx2", 110, 50, 2.2, true, 3, 3, true]]' "$tmp/bench.out" >/dev/null ||
  fail "$(cat "$tmp/bench.out")"
told 'decode-b1 3/3 +bench_decode on avx2 '
say "classes after the first take part in some of the rounds"
bench 3 decode-b1 --json --runs 3 --isa auto,avx2 --isa-runs 1
turns "best start,avx2 start,best run,avx2 run,avx2 quit,llama.py run,best run,llama.py run,best run,llama.py run,best quit,llama.py quit"
jq -s -e 'map([.ours, .peer.value, .runs, .peer_runs, .complete, .spread.ratio]) ==
  [[1100, 50, 3, 3, true, [2.5, 35]], [10, 50, 1, 3, true, [0.25, 0.25]]]' "$tmp/bench.out" >/dev/null || fail "$(cat "$tmp/bench.out")"
say "a row whose programs do not fit into memory together: each is there for its run only; with one class it stays"
classes bench_grpo '{"value":CLASS}' '{"value":7}'
program bench/peers/trl_grpo.py '{"ready":true}' '{"value":400}'
bench 0 grpo-iteration --json --runs 2 --isa auto,avx512
turns "$(printf 'best start,best run,best quit,avx512 start,avx512 run,avx512 quit,trl_grpo.py run,%.0s' 1 2)trl_grpo.py quit"
jq -s -e 'map([.ours, .ratio, .runs, .complete]) == [[100, 4, 2, true], [50, 8, 2, true]]' "$tmp/bench.out" >/dev/null || fail "$(cat "$tmp/bench.out")"
bench 0 grpo-iteration --json --runs 2
turns "best start,best run,trl_grpo.py run,best run,trl_grpo.py run,best quit,trl_grpo.py quit"

say "a class that this machine does not have, or that fails later: the others go on"
bench 1 decode-b1 --json --runs 2 --isa amx,avx2
jq -s -e '.[0].error == "bench_decode: no amx" and .[0].isa == "amx" and .[1].complete and .[1].runs == 2' "$tmp/bench.out" >/dev/null || fail "$(cat "$tmp/bench.out")"
sed -i 's/^  a=/  [ $isa,$i = best,1 ] \&\& exit 4\n&/' "$suite/bench_decode"
bench 1 decode-b1 --json --runs 3 --isa auto,avx2
jq -s -e 'map([.complete, .runs, .peer_runs, .ours, .error]) == [[false, 1, 3, 100, "bench_decode ended with code 4 without an answer"], [true, 3, 3, 110, null]]' \
  "$tmp/bench.out" >/dev/null || fail "$(cat "$tmp/bench.out")"
told 'decode-b1 on auto: bench_decode ended with code 4'
bench 1 decode-b1 --json --runs 3 --isa auto,avx2 --isa-runs 1 # the peer's rounds end with it: no complete row for the other class either
jq -s -e 'map([.complete, .runs, .peer_runs, .ours, .error]) == [[false, 1, 1, 100, "bench_decode ended with code 4 without an answer"],
  [false, 1, 1, 10, "llama.py ran in 1 of 3 rounds"]]' "$tmp/bench.out" >/dev/null || fail "$(cat "$tmp/bench.out")"

say "several rows and classes in one table; a program that runs another class than asked"
program bench_decode "$ready" '{"value":100}'
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

say "unlike numbers of threads; a peer that does not say its own is not asked"
program bench_decode "$ready" '{"value":100}'
program bench/peers/llama.py '{"ready":true,"bytes":1000,"threads":1}' '{"value":10}'
bench 3 decode-b1 --json --runs 1
is '.ratio == 10 and .holds == false and .why == "2 threads beside 1"'
program bench/peers/llama.py '{"ready":true,"bytes":1000,"threads":2}' '{"value":10}'
bench 0 decode-b1 --json --runs 1
is '.holds and .why == null'

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
program bench_refit "$ready" '{"value":2,"bound":0.5,"limits":{"stall":{"value":5,"at_most":4}}}'
bench 3 refit --json --runs 1 # told beside a ratio that is missed, too
is '.ratio == 0.25 and .holds == false and (.why | test("stall"))'

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

say "interrupted, or out of time: figures of the complete rounds"
program bench_decode "$ready" '{"value":100}' '{"value":110}' '{"value":120}'
classes bench_train '{"value":CLASS,"bound":50}'
# the peer: two answers, then it hangs
cat >"$suite/bench/peers/llama.py" <<END
echo '{"ready":true,"bytes":1000}'
for v in 50 60; do read -r line; echo "{\"value\":\$v}"; done
read -r line; echo >"$tmp/hanging"; while :; do sleep 1; done
END
for signal in INT TERM; do
  rm -f "$tmp/hanging"
  "$ooze" bench decode-b1 train-mfu --json --isa avx2 >"$tmp/bench.out" 2>"$tmp/bench.err" &
  victim=$!
  wait_for "the peer's third run" test -e "$tmp/hanging"
  kill -$signal $victim
  start=$SECONDS
  wait $victim
  code=$?
  [ $code -eq 1 ] || fail "SIG$signal: exit code $code"
  [ $((SECONDS - start)) -lt 30 ] || fail "took $((SECONDS - start)) s to end"
  [ "$(wc -l <"$tmp/bench.out")" -eq 1 ] || fail "another row after SIG$signal: $(cat "$tmp/bench.out")"
  is '.complete == false and .runs == 2 and .peer_runs == 2 and .ours == 105 and .peer.value == 55 and .error == "interrupted"'
  no_children
done
rm -f "$tmp/hanging"
"$ooze" bench decode-b1 >"$tmp/bench.out" 2>"$tmp/bench.err" &
victim=$!
wait_for "the peer's third run" test -e "$tmp/hanging"
kill -INT $victim
wait $victim
grep -q -E '^decode-b1 .* 105 +55 ' "$tmp/bench.out" || fail "$(cat "$tmp/bench.out")"
grep -q -E 'of 2 of the rounds only: interrupted' "$tmp/bench.out" || fail "$(cat "$tmp/bench.out")"
bench 1 decode-b1 --json --deadline 1
is '.complete == false and .runs == 2 and .ours == 105 and (.error | test("did not answer within 1 s"))'
# interrupted before the first round: nothing but the reason
printf 'echo >"%s/hanging"; read -r line\n' "$tmp" >"$suite/bench/peers/llama.py"
rm -f "$tmp/hanging"
"$ooze" bench decode-b1 --json >"$tmp/bench.out" 2>"$tmp/bench.err" &
victim=$!
wait_for "the peer's start" test -e "$tmp/hanging"
kill -INT $victim
wait $victim
is '. == {name: "decode-b1", error: "interrupted"}'
no_children

say "a program that does not rest while the other one runs"
slow() { # WAIT ANSWER: runs of half a second; WAIT is what it does before it reads its next line
  printf 'echo %q\nwhile %s read -r line; do [ "$line" = run ] || exit 0; sleep 0.5; echo %q; done\n' "$ready" "$1" "$2"
}
slow 'until read -r -t 0; do :; done;' '{"value":50}' >"$suite/bench/peers/llama.py"
{ echo "#!$BASH"; slow '' '{"value":100,"bound":90}'; } >"$suite/bench_decode"
bench 0 decode-b1 --json --runs 2
is '.waiting_cpu > 0.05'
told 'those that wait took [0-9]+ % of a core'
bench 0 decode-bandwidth --json --runs 1
is '.waiting_cpu == 0'
slow '' '{"value":50}' >"$suite/bench/peers/llama.py"
bench 0 decode-b1 --json --runs 2
is '.waiting_cpu < 0.02'

say "deadlines, and a program that will not quit"
program bench_decode "$ready" '{"value":100}'
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
bench 2 gemm --isa-runs 0
bench 2 gemm --isa avx2 --isa-runs 1
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
