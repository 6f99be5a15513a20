#!/usr/bin/env bash
# Ctrl-C once drains, checkpoints and ends with 0; twice ends now; `ooze stop` does either from outside. All of them can be resumed to
# the end, and leave nothing half-written.
. "$(dirname "$0")/lib.sh"

state_is() { [ "$("$ooze" status --json "$run" | jq -r .state)" = "$1" ] || fail "state is $("$ooze" status --json "$run"), not $1"; }
nothing_half_written() {
  local left
  left=$(find "$run" -name '*.tmp*' -o -name '.tmp*' | head -n 3)
  [ -z "$left" ] || fail "left behind: $left"
}
resumes_to_the_end() {
  local before
  before=$(committed)
  [ "$before" -lt 29 ] || fail "the run was over before it was stopped"
  say "stopped at step $before; resuming"
  run_resume
  run_ends_well
  state_is 'done'
  [ "$(committed)" -eq 29 ] || fail "$(committed) steps committed"
  audit_is_clean
  nothing_half_written
}
start() { run_start "$1" stages.rl.steps=24 "tasks.fake.command=[$helpers/task_fake, 'turns:100']"; }
checkpoint_is_newest() {
  [ "$(sql 'SELECT MAX(step) FROM checkpoint')" = "$(committed)" ] || fail "no checkpoint of the last step"
  [ -s "$run/checkpoints/step-$(committed)/model.safetensors" ] || fail "the last checkpoint is not there"
}

say "Ctrl-C once"
start once
wait_for "step 8" committed_at_least 8
kill -INT "$run_pid"
run_ends_well
state_is stopped
checkpoint_is_newest
nothing_half_written
resumes_to_the_end

say "an engine told to stop, which the run starts again"
start engine
wait_for "step 6" committed_at_least 6
pid=$(pid_of engine-0)
kill -TERM "$pid" || fail "no engine $pid"
wait_for "its leave" grep -q "event=peer_down peer=engine-0 pid=$pid cause=\"left\"" "$run/logs/orchestrator.log"
wait_for "a step after that" committed_at_least $(($(committed) + 2))
run_ends_well
grep -q 'event=stopped' "$run/logs/engine-0.log" || fail "the engine did not end well"
[ "$(committed)" -eq 29 ] || fail "$(committed) steps committed"
audit_is_clean

say "Ctrl-C twice"
start twice
wait_for "step 8" committed_at_least 8
kill -INT "$run_pid"
sleep 0.05
kill -INT "$run_pid"
wait_end "$run_pid" 20
[ "$code" -eq 0 ] || { [ "$code" -eq 1 ] && grep -q 'resume' "$run_log.err"; } || fail "ended with $code"
"$ooze" audit "$run" >/dev/null || fail "audit after Ctrl-C twice"
resumes_to_the_end

say "Ctrl-C during the SFT stage, then a resume into RL"
start sft
wait_for "the first step" committed_at_least 1
kill -INT "$run_pid"
run_ends_well
resumes_to_the_end

say "ooze stop, ooze stop --now"
start stop
wait_for "step 7" committed_at_least 7
"$ooze" stop "$run" >/dev/null || fail "stop"
run_ends_well
state_is stopped
checkpoint_is_newest
run_resume
wait_for "step 12" committed_at_least 12
"$ooze" stop --now "$run" >/dev/null || fail "stop --now"
run_ends_well
state_is stopped
says 1 'did not answer|not going|no run' "$ooze" stop "$run"
resumes_to_the_end
