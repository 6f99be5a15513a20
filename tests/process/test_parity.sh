#!/usr/bin/env bash
# The drift gate on real programs: runs whose every trajectory is scored again and found to be the same bits, in both kv_on_refit modes and
# both dtypes; an engine with one weight off by one unit in the last place, found at its start, and found later when it is sound at first.
. "$(dirname "$0")/lib.sh"

checks() { sql "SELECT COUNT(*) FROM parity_check WHERE kind = $1"; }

say "the same bits: dtypes and KV caches"
for dtype in bf16 fp8; do
  for kv in keep recompute; do
    run_start "$dtype-$kv" rollout.dtype=$dtype rollout.kv_on_refit=$kv check.every=1 check.share=1 stages.rl.groups_per_step=4 \
      rollout.max_batch_tokens=64 rollout.prefill_chunk=32 rollout.kv_tokens=1024 "tasks.fake.command=[$helpers/task_fake, turns]"
    run_ends_well
    audit_is_clean
    never_restarted
    [ "$(checks 2)" -ge 1 ] || fail "$dtype $kv: the engine was not compared with the trainer"
    [ "$(checks 0)" -eq 8 ] || fail "$dtype $kv: $(checks 0) checks of 8 steps"
    row=$(sql 'SELECT SUM(ok = 0), MAX(max_abs_diff), SUM(segments) = 128, SUM(skipped), SUM(tokens) = (SELECT SUM(n_sampled) FROM unit WHERE state = 5 AND source = 0) FROM parity_check WHERE kind = 0')
    [ "$row" = '0|0.0|1|0|1' ] || fail "$dtype $kv: not every trained token the same bits: $row: $("$ooze" show "$run" parity)"
    crossing=$(sql 'SELECT SUM(crossing) FROM parity_check')
    echo "$dtype $kv: $crossing trajectories across a refit, of $(sql 'SELECT SUM(segments) FROM parity_check')"
    crossed=$((${crossed:-0} + crossing))
  done
done
[ "$crossed" -gt 0 ] || fail "no trajectory crossed a refit"

say "what is said of it"
j=$("$ooze" audit --json "$run")
jq -e '.parity | .checks == 8 and .failed == 0 and .coverage == 1 and .max_abs_diff == 0 and .skipped == 0' <<<"$j" >/dev/null || fail "audit: $j"
"$ooze" audit "$run" | grep -q '^parity: .* 100.0% of trained tokens; largest difference 0;' || fail "audit says nothing of parity"
j=$("$ooze" status --json "$run")
jq -e '.parity | .coverage == 1 and .max_abs_diff == 0 and has("refit_crossings") and has("trajectories")' <<<"$j" >/dev/null || fail "status: $j"
"$ooze" show "$run" parity | grep -q '^probe .* engine-0 .* yes$' || fail "show parity: $("$ooze" show "$run" parity)"
[ "$("$ooze" show --jsonl "$run" parity | jq -s 'length')" -ge 9 ] || fail "show --jsonl parity"
jq -s -e '[.[] | select(has("parity/coverage"))] | length == 8 and all(."parity/max_abs_diff" == 0) and (last | ."parity/coverage" == 1 and has("parity/trajectories") and has("parity/refit_crossings") and has("parity/skipped"))' \
  "$run/metrics.jsonl" >/dev/null || fail "metrics.jsonl: $(grep parity "$run/metrics.jsonl")"

say "an orchestrator that comes back scores the last step again"
run_start resumed check.every=100 stages.rl.steps=12 "tasks.fake.command=[$helpers/task_fake, turns:20]"
wait_for "RL steps" committed_at_least 9
kill -KILL "$(pid_of orchestrator)"
run_ends_well
audit_is_clean
[ "$(checks 1)" -eq 1 ] || fail "no check of kind resume: $("$ooze" show "$run" parity)"
[ "$(sql 'SELECT ok AND max_abs_diff = 0 AND segments > 0 FROM parity_check WHERE kind = 1')" = 1 ] || fail "resume: $("$ooze" show "$run" parity)"

# The same programs with another engine.
mkdir "$tmp/bin"
cp "$bin"/* "$tmp/bin" 2>/dev/null
cp "$helpers/engine_odd" "$tmp/bin/ooze-rollout"

say "an engine that is off by one unit in the last place is found at its start"
for dtype in bf16 fp8; do
  export OOZE_TEST_ODD="model.layers.1.mlp.down_proj.weight 0"
  ooze=$tmp/bin/ooze
  run_start "odd-$dtype" rollout.dtype=$dtype stages.rl.steps=100
  wait_end "$run_pid"
  ooze=$bin/ooze
  [ "$code" -eq 1 ] || fail "the run with an odd engine ended with code $code"
  grep -q 'the trainer and engine-0 first part in layer 1, block mlp, op gemm' "$run_log.err" || fail "no layer is named: $(cat "$run_log.err")"
  grep -q 'odd.*tensor=model.layers.1.mlp.down_proj.weight' "$run/logs/engine-0.log" || fail "nothing was planted"
  j=$("$ooze" audit --json "$run")
  [ $? -eq 1 ] || fail "audit of an odd run does not fail"
  jq -e '.ok == false and ([.violations[].rule] == ["parity"])' <<<"$j" >/dev/null || fail "audit of an odd run: $j"
done

say "one that is sound at first is found by a check, and its layer is named"
export OOZE_TEST_ODD="model.layers.0.mlp.down_proj.weight 7"
ooze=$tmp/bin/ooze
run_start later check.every=1 check.share=1 stages.rl.steps=100
wait_end "$run_pid"
ooze=$bin/ooze
[ "$code" -eq 1 ] || fail "the run with an engine gone odd ended with code $code"
grep -q -E 'parity: trajectory [0-9]+ attempt 0 segment 0 token [0-9]+, sampled by weights [0-9]+: recorded log-probability -[0-9.]+, scored again -[0-9.]+ .*the trainer and engine-0 first part in layer 0, block mlp, op gemm' \
  "$run_log.err" || fail "token, logprobs and layer are not named: $(cat "$run_log.err")"
[ "$(sql 'SELECT COUNT(*) FROM parity_check WHERE kind = 2 AND ok')" -ge 1 ] || fail "the engine was odd from the start"
[ "$(sql "SELECT COUNT(*) FROM parity_check WHERE kind = 0 AND ok = 0 AND trajectory > 0 AND recorded < 0 AND rescored <> recorded")" = 1 ] ||
  fail "the failed check is not recorded: $("$ooze" show "$run" parity)"
"$ooze" status --json "$run" | jq -e '.parity.state == "failed"' >/dev/null || fail "status after the failure"
