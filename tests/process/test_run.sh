#!/usr/bin/env bash
# A run from its YAML to its end, and what the command line says of it: status while running and after, evaluations, metrics, the audit,
# and trajectories whose tokens, versions and masks agree with the ledger's sums.
. "$(dirname "$0")/lib.sh"

keys='["run","state","stage","step","weights_version","uptime_s","reward","groups","tokens","lag","throughput","processes","last_error"]'
# status_is_whole JSON RUNNING: every key of the interface, of its type.
status_is_whole() {
  jq -e --argjson keys "$keys" '. as $s | $keys | all(. as $k | $s | has($k))' <<<"$1" >/dev/null || fail "status lacks a key: $1"
  jq -e '(.step | type) == "number" and (.weights_version | type) == "number" and (.state | type) == "string"
    and (.groups | (["issued","generating","scored","ready","leased","trained"] - keys) == [] and (.dropped | type) == "object")
    and (.tokens | (["generated","trained","dropped"] - keys) == [])
    and (.processes | type) == "array"' <<<"$1" >/dev/null || fail "status has a key of another type: $1"
  [ "$2" = no ] || jq -e '(.uptime_s | type) == "number" and (.lag | has("mean") and has("max"))
    and (.throughput | has("generate_tok_s") and has("train_tok_s"))
    and (.reward.fake | has("mean") and has("last"))
    and ([.processes[] | has("name") and has("pid") and has("state") and has("restarts") and has("heartbeat_age_s")] | all)
    and ([.processes[].name] | contains(["orchestrator","trainer-0","engine-0"]))' <<<"$1" >/dev/null || fail "status of a running run: $1"
}

say "a run, watched"
run_start run "tasks.fake.command=[$helpers/task_fake, turns:100]"
wait_for "the trainer in status" pid_is_known trainer-0
wait_for "an RL step" committed_at_least 7
status_is_whole "$("$ooze" status --json "$run")" yes
"$ooze" status "$run" | grep -q engine-0 || fail "the table of status names no engine"
run_ends_well
audit_is_clean
never_restarted

say "after the end"
j=$("$ooze" status --json "$run") || fail "status after the end"
status_is_whole "$j" no
jq -e '.state == "done" and .step == 13 and .groups.trained > 0' <<<"$j" >/dev/null || fail "status after the end: $j"
"$ooze" status "$run" >/dev/null || fail "table of status after the end"
j=$("$ooze" eval --json "$run")
jq -e '[.[].label] == ["start","stage:sft","stage:rl"] and ([.[].version] == [0,5,13]) and all(.[]; .tasks.fake.n == 4)' <<<"$j" >/dev/null ||
  fail "evaluations: $j"
j=$("$ooze" eval --summary --seed 7 --wall 1.5 "$run")
jq -e '.seed == 7 and .wall_s == 1.5 and [.stages[].name] == ["random","sft","rl"] and all(.stages[]; .eval.fake | has("success") and has("n"))' <<<"$j" >/dev/null ||
  fail "summary: $j"

say "metrics"
[ "$(jq -s '[.[] | select(has("applied"))] | length' "$run/metrics.jsonl")" -eq 13 ] || fail "metrics.jsonl: not one line a step"
jq -s -e '[.[] | select(.stage == "rl") |
  (["reward/fake/mean","rollout/response_len","rollout/turns","rollout/truncated","train/loss","train/grad_norm","train/entropy","train/lr",
    "train/ratio_mean","train/masked_high","train/masked_low","train/rollout_logprob_abs_diff","train/mismatch_kl","lag/mean","lag/max",
    "lag/dropped","time/step","time/wait_for_batch","time/generate","time/train","time/weight_sync","perf/tokens_per_s"] - keys) == []]
  | length == 8 and all' "$run/metrics.jsonl" >/dev/null || fail "metrics.jsonl lacks a name: $(tail -n 2 "$run/metrics.jsonl")"
jq -s -e '[.[] | select(.label) | has("eval/fake/mean") and has("eval/fake/pass@1")] | length == 3 and all' "$run/metrics.jsonl" >/dev/null ||
  fail "metrics.jsonl lacks eval/fake/mean or eval/fake/pass@1: $(jq -c 'select(.label)' "$run/metrics.jsonl")"
jq -s -e '[.[] | select(.stage == "rl")] | all(."train/rollout_logprob_abs_diff" < 0.05)' "$run/metrics.jsonl" >/dev/null ||
  fail "trainer and engine disagree on log-probabilities"

say "trajectories, token by token"
"$ooze" show "$run" | grep -q trained || fail "show lists nothing trained"
n=0
for id in $(sql "SELECT trajectory FROM unit WHERE state = 5 AND source = 0 ORDER BY n_turns DESC, trajectory LIMIT 4"); do
  row=$(sqlite3 -readonly -json "$run/ledger.sqlite" "SELECT n_tokens, n_sampled, version_min, version_max, advantage, step, MAX(attempt) AS attempt FROM unit WHERE trajectory = $id")
  "$ooze" show --jsonl "$run" trajectory "$id" >"$tmp/tokens.jsonl" || fail "show trajectory $id"
  jq -s -e --argjson row "$row" '$row[0] as $u | [.[] | select(.mask == 1)] as $m
    | length == $u.n_tokens and ($m | length) == $u.n_sampled
    and ([$m[].version] | min == $u.version_min and max == $u.version_max)
    and all($m[]; .logprob <= 0 and .kind == "sampled") and all(.[] | select(.mask == 0); has("logprob") | not)
    and all(.[]; .advantage == $u.advantage and (.text | type) == "string")
    and (group_by(.segment) | all([.[].pos] == [range(length)]))
    and ([$m[].version] | all(. <= $u.step and . >= $u.step - 2))' "$tmp/tokens.jsonl" >/dev/null ||
    fail "trajectory $id does not agree with its row $row: $(cat "$tmp/tokens.jsonl")"
  "$ooze" show "$run" trajectory "$id" | grep -q 'reply to turn 0' || fail "show trajectory $id: no reply of the task"
  n=$((n + 1))
done
[ "$n" -eq 4 ] || fail "fewer trained trajectories than were to be looked at"
[ "$(sql 'SELECT MAX(n_turns) FROM unit')" -gt 1 ] || fail "no episode of several turns"
[ "$(sql 'SELECT SUM(n_sampled) FROM unit WHERE state = 5 AND source = 0')" = \
  "$("$ooze" status --json "$run" | jq '.tokens.trained')" ] || fail "tokens trained: status and ledger differ"
says 1 'no trajectory 999999' "$ooze" show "$run" trajectory 999999

say "the quickstart's tasks"
cat >"$tmp/tasks.yaml" <<YAML
tasks:
  - {name: sort, command: [task-sort], ratio: 2}
  - {name: tool, command: [task-tool]}
YAML
run_start tasks "$tmp/tasks.yaml" stages.rl.steps=6 stages.rl.groups_per_step=3
run_ends_well
audit_is_clean
never_restarted
[ "$(sql 'SELECT group_concat(n) FROM (SELECT COUNT(DISTINCT grp) AS n FROM unit WHERE source = 0 AND state = 5 GROUP BY task ORDER BY task)')" = 12,6 ] ||
  fail "the tasks are not 2:1: $(sql 'SELECT task, COUNT(DISTINCT grp) FROM unit WHERE source = 0 AND state = 5 GROUP BY task')"
