# What the process tests share: a tiny run of the real programs in a folder of its own, bounded waiting, and an end that leaves nothing
# behind. Sourced by tests/process/test_*.sh; ctest sets OOZE_BIN_DIR and OOZE_SOURCE_DIR.
#
# Every process belongs to a test by the name of its folder ($tmp, unique by mktemp), which stands in the command line of each process of
# a run; only such processes are ever signalled. Ports are ephemeral. Two tests, or two suites, may run at once.
set -uo pipefail
bin=${OOZE_BIN_DIR:?set it to BUILD/bin}
helpers=$(cd "$bin/../tests" && pwd) && [ -x "$bin/ooze" ] && [ -x "$helpers/task_fake" ] || { echo "nothing built in $bin" >&2; exit 1; }
tmp=$(mktemp -d "${TMPDIR:-/tmp}/ooze-test-XXXXXX")
ooze=$bin/ooze
sanitized=
ldd "$bin/ooze-trainer" | grep -q 'lib[atu]*san' && sanitized=1
patience=$((sanitized ? 240 : 100)) # seconds for anything that must happen; a loaded machine is no failure
export OOZE_TEST_TMP=$tmp

for need in jq sqlite3 curl; do
  command -v "$need" >/dev/null || { echo "skipped: no $need here"; exit 77; }
done

# Pids of living processes of this test, other than the shell itself.
own_processes() {
  local f pid
  for f in /proc/[0-9]*/cmdline; do
    pid=${f#/proc/} pid=${pid%/cmdline}
    [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ] && continue
    { tr '\0' ' ' <"$f"; } 2>/dev/null | grep -q -F "$tmp" && echo "$pid"
  done
}

say() { printf '== %s\n' "$*"; }

fail() {
  echo "FAILED: $*" >&2
  local f
  for f in "$tmp"/*.err "$tmp"/*.out "$tmp"/*/logs/*.log; do
    [ -s "$f" ] && { echo "--- $f"; tail -n 25 "$f"; } >&2
  done
  exit 1
}

# Ends what is left, checks that the run's own means would have ended it, removes the folder.
finish() {
  local code=$? pid left i id
  trap - EXIT
  for pid in $(own_processes); do kill -TERM "$pid" 2>/dev/null; done
  for ((i = 0; i < 150; i++)); do
    left=$(own_processes)
    [ -z "$left" ] && break
    sleep 0.1
  done
  if [ -n "$left" ]; then
    echo "FAILED: processes that do not end by SIGTERM within 15 s: $left" >&2
    for pid in $left; do kill -KILL "$pid" 2>/dev/null; done
    code=1
  fi
  # A sanitizer's report in a process that was then restarted must not be lost in its log.
  if [ "$code" -eq 0 ] && grep -r -l -E 'Sanitizer:|runtime error:' "$tmp" --include='*.log' --include='*.err' --include='*.out' >&2; then
    echo "FAILED: a sanitizer spoke" >&2
    grep -r -h -A 12 -E 'Sanitizer:|runtime error:' "$tmp" --include='*.log' --include='*.err' --include='*.out' | head -n 60 >&2
    code=1
  fi
  for f in "$tmp"/*/sock; do
    [ -L "$f" ] && rm -rf "$(readlink "$f")"
  done
  for f in "$tmp"/*/id "$tmp"/*/*/id "$tmp"/*/eval/*/id; do
    [ -s "$f" ] && id=$(cat "$f") && rm -f "/dev/shm/ooze-$id-"*
  done
  [ -n "${mounted:-}" ] && umount "$mounted"
  [ -n "${OOZE_TEST_KEEP:-}" ] && echo "kept: $tmp" || rm -rf "$tmp"
  exit "$code"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

# wait_for WHAT COMMAND…: polls until the command succeeds.
wait_for() {
  local what=$1 end=$((SECONDS + patience))
  shift
  until "$@"; do
    [ $SECONDS -ge $end ] && fail "waited $patience s for: $what"
    kill -0 "${run_pid:-$$}" 2>/dev/null || fail "the run ended before: $what"
    sleep 0.05
  done
}

# wait_end PID: its exit code in $code.
wait_end() {
  local end=$((SECONDS + ${2:-$patience}))
  while kill -0 "$1" 2>/dev/null; do
    [ $SECONDS -ge $end ] && fail "process $1 is still there after ${2:-$patience} s"
    sleep 0.05
  done
  wait "$1"
  code=$?
}

# The run of most tests: weights that fit in a cache, steps that take milliseconds, a task whose rewards differ between answers.
"$bin/quickstart-demos" 1 200 >"$tmp/demos.jsonl"
config=$tmp/micro.yaml
cat >"$config" <<YAML
name: micro
seed: 7
model:
  {arch: llama, hidden: 32, n_layers: 2, n_heads: 2, ffn: 64, max_position: 128, tokenizer: bytes,
   specials: [PAD, BOS, EOS, CALL, /CALL, RES, /RES, ANS]}
rollout:
  {engines: 1, threads: 1, dtype: bf16, kv_tokens: 8192, page_tokens: 32, max_running: 64, max_batch_tokens: 256,
   prefill_chunk: 128, flush_tokens: 4}
trainer: {dtype: f32, threads: 1, micro_batch_tokens: 1024, recompute: false, checkpoint_every: 3}
eval: {n: 4}
orchestrator: {ping_interval_ms: 200, silence_ms: 4000, drain_ms: 10000}
tasks:
  - {name: fake, command: [$helpers/task_fake, good]}
stages:
  - {name: sft, kind: sft, steps: 5, data: demos.jsonl, batch_rows: 8, max_tokens: 64, optimizer: {lr: 3e-3}}
  - {name: rl, kind: rl, steps: 8, groups_per_step: 2, group_size: 4, zero_variance: keep, max_lag: 2,
     max_context: 96, sampling: {max_new_tokens: 12}, optimizer: {lr: 1e-3}}
YAML

# run_start NAME [ARGUMENT…]: `ooze run` in the background; $run is its folder, $run_pid its process. OOZE_TEST_ISA masks classes of
# kernels (tests/isa.h).
run_start() {
  run=$tmp/$1 run_log=$tmp/$1
  shift
  nice -n 5 "$ooze" run --quiet "$config" "run_dir=$run" ${OOZE_TEST_ISA:+"trainer.isa=$OOZE_TEST_ISA"} "$@" >"$run_log.out" 2>"$run_log.err" &
  run_pid=$!
}
run_resume() {
  nice -n 5 "$ooze" resume --quiet "$run" >"$run_log.out" 2>"$run_log.err" &
  run_pid=$!
}
run_kill() {
  { kill -KILL "$run_pid" && wait "$run_pid"; } 2>/dev/null
  run_pid=$$
}
run_ends_well() {
  wait_end "$run_pid"
  [ "$code" -eq 0 ] || fail "the run ended with code $code"
}

sql() { sqlite3 -readonly -cmd '.timeout 5000' "$run/ledger.sqlite" "$1" 2>/dev/null; }
committed() { sql 'SELECT COUNT(*) FROM step WHERE outcome IS NOT NULL'; }
committed_at_least() { local n; n=$(committed) && [ "${n:-0}" -ge "$1" ]; }
# pid_of NAME: of a process of the run, as `ooze status` has it; empty while it is not up.
pid_of() {
  "$ooze" status --json "$run" 2>/dev/null |
    jq -r --arg n "$1" '.processes[] | select(.name == $n and .state == "up") | .pid'
}
pid_is_known() { [ -n "$(pid_of "$1")" ]; }

# audit_is_clean: of a run that has ended: clean, nothing in flight, every unit accounted for; steps in one unbroken chain; no published
# weights left in shared memory.
audit_is_clean() {
  local j left
  left=$(find /dev/shm -maxdepth 1 -name "ooze-$(cat "$run/id")-*")
  [ -z "$left" ] || fail "left in shared memory: $left"
  j=$("$ooze" audit --json "$run") || fail "audit: $j"
  jq -e '.ok and .violations == [] and .in_flight == 0 and .issued > 0
         and .issued == .trained + ([.dropped[]] | add // 0)' <<<"$j" >/dev/null || fail "audit does not add up: $j"
  [ "$(sql 'SELECT COUNT(*) - MAX(step) - 1 FROM step')" = 0 ] || fail "steps are missing"
  [ "$(sql 'SELECT COUNT(*) FROM (SELECT 1 FROM step_batch GROUP BY trajectory, attempt, segment HAVING COUNT(DISTINCT step) > 1)')" = 0 ] ||
    fail "something was trained in two steps"
}

never_restarted() {
  grep -h -E 'event=peer_up .*restarts=[1-9]' "$run/logs/orchestrator.log" && fail "a process of an undisturbed run was restarted"
}

# says CODE REGEX COMMAND…: the command ends with CODE and says one line on stderr that matches.
says() {
  local want=$1 regex=$2 got
  shift 2
  timeout "$patience" "$@" >"$tmp/says.out" 2>"$tmp/says.err"
  got=$?
  [ "$got" -eq "$want" ] || fail "exit code $got instead of $want: $*"
  [ "$(wc -l <"$tmp/says.err")" -eq 1 ] || fail "not one line on stderr: $*"
  grep -q -E "$regex" "$tmp/says.err" || fail "does not say /$regex/: $*"
}
