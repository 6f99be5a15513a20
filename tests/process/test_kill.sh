#!/usr/bin/env bash
# kill -9 of each process of a run, its task service too, at several moments, then of the whole run and a resume: the run ends, the audit is clean, no step is
# trained twice. Where arithmetic is all that decides (an SFT run), the killed run ends with the very weights of the one left alone.
. "$(dirname "$0")/lib.sh"

# kill_at STEPS NAME: SIGKILL to the process NAME once STEPS steps are committed; waits until the run works again.
kill_at() {
  local pid now
  wait_for "step $1" committed_at_least "$1"
  wait_for "$2 in status" pid_is_known "$2"
  pid=$(pid_of "$2")
  kill -KILL "$pid" || fail "no process $pid ($2)"
  now=$(committed)
  say "$2 (pid $pid) killed at step $now"
  wait_for "a step after the death of $2" committed_at_least $((now + 1))
}
all_gone() { [ -z "$(own_processes)" ]; }

steps=$((sanitized ? 20 : 100))
say "trainer, engines and orchestrator of a run with two engines"
run_start kill rollout.engines=2 "stages.rl.steps=$steps" "tasks.fake.command=[$helpers/task_fake, 'turns:60']"
kill_at 6 engine-0
say "the task service killed at step $(committed)"
pid=$(pid_of task:fake)
tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q '^[^ ]*task_fake ' || fail "status names $pid as the task service"
kill -KILL "$pid"
task_is_back() { local now; now=$(pid_of task:fake) && [ -n "$now" ] && [ "$now" != "$pid" ] && kill -0 "$now" 2>/dev/null; }
wait_for "the next task service in status" task_is_back
[ "$("$ooze" status --json "$run" | jq '.processes[] | select(.name == "task:fake").restarts')" = 1 ] || fail "restarts of the task service"
kill_at 9 trainer-0
kill_at 11 orchestrator
kill_at 13 engine-1
kill_at 15 trainer-0
kill_at 16 orchestrator
run_ends_well
audit_is_clean
[ "$(grep -c listening "$run/logs/task-fake.log")" -ge 2 ] || fail "the task service was not killed"
[ "$(committed)" -eq $((steps + 5)) ] || fail "$(committed) steps committed"
"$ooze" show --limit 1 "$run" >/dev/null || fail "show after the kills"

say "a trainer that neither ends nor answers"
run_start wedged "orchestrator.lease_ms=$((sanitized ? 20000 : 4000))" "stages.rl.steps=14" "tasks.fake.command=[$helpers/task_fake, 'turns:20']"
wait_for "step 8" committed_at_least 8
pid=$(pid_of trainer-0)
kill -STOP "$pid" || fail "no trainer $pid"
now=$(committed)
wait_for "a step of its successor" committed_at_least $((now + 2))
kill -0 "$pid" 2>/dev/null && fail "the stopped trainer $pid is still there"
grep -q "event=trainer_killed pid=$pid" "$run/logs/orchestrator.log" || fail "the orchestrator did not say that it ended the trainer"
run_ends_well
audit_is_clean

say "ooze run itself, twice"
run_start whole "stages.rl.steps=12" "tasks.fake.command=[$helpers/task_fake, 'turns:60']"
for at in 3 9; do
  wait_for "step $at" committed_at_least "$at"
  run_kill
  wait_for "the children to go with their parent" all_gone
  before=$(committed)
  say "killed at step $before; resuming"
  run_resume
done
run_ends_well
audit_is_clean
[ "$(committed)" -eq 17 ] || fail "$(committed) steps committed"

say "the same weights, killed or not"
config=$tmp/sft.yaml
sed '/^tasks:/,$d' "$tmp/micro.yaml" >"$config"
cat >>"$config" <<YAML
stages:
  - {name: sft, kind: sft, steps: 300, data: demos.jsonl, batch_rows: 8, max_tokens: 64, optimizer: {lr: 3e-3}}
YAML
run_start alone
run_ends_well
hashes() { sql 'SELECT step, hash FROM step ORDER BY step'; }
want=$(hashes)
[ "$(wc -l <<<"$want")" -eq 300 ] || fail "not 300 steps"
run_start struck
kill_at 20 trainer-0
kill_at 60 orchestrator
wait_for "step 100" committed_at_least 100
run_kill
wait_for "the children to go with their parent" all_gone
say "ooze run killed at step $(committed); resuming"
run_resume
run_ends_well
audit_is_clean
[ "$(hashes)" = "$want" ] || fail "the weights of the killed run differ: $(diff <(echo "$want") <(hashes) | head -n 3)"
