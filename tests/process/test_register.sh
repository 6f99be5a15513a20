#!/usr/bin/env bash
# Task services that join a run that is going on: by `ooze task register` and by POST /v1/tasks with the run's token. Their episodes are
# issued and trained; a removed task issues no more. Wrong tokens, addresses nobody may call and taken names are refused.
. "$(dirname "$0")/lib.sh"

of_task() { sql "SELECT COUNT(*) FROM unit u JOIN task t ON t.id = u.task WHERE t.name = '$1' AND u.state $2"; }
trained_of_task() { [ "$(of_task "$1" '= 5')" -ge 8 ]; }
post() { # post TOKEN JSON: HTTP status, body in $tmp/post.out
  curl -s -o "$tmp/post.out" -w '%{http_code}' -m 20 -H "Authorization: Bearer $1" -H 'Content-Type: application/json' -d "$2" \
    "http://127.0.0.1:$(cat "$run/orchestrator.port")/v1/tasks"
}

run_start run stages.rl.steps=100000 "tasks.fake.command=[$helpers/task_fake, 'turns:20']"
"$bin/task-template" --port 0 --port-file "$tmp/template.port" >"$tmp/template.out" 2>&1 &
wait_for "the new service's port" test -s "$tmp/template.port"
url=http://127.0.0.1:$(cat "$tmp/template.port")
wait_for "an RL step" committed_at_least 6

say "ooze task register"
"$ooze" task register --ratio 2 --max-concurrency 16 "$run" extra "$url" >"$tmp/register.out" || fail "task register"
jq -e '.tasks[] | select(.name == "extra") | .ratio == 2 and .max_concurrency == 16 and .origin == "cli"' "$tmp/register.out" >/dev/null ||
  fail "the reply does not know the task: $(cat "$tmp/register.out")"
wait_for "trained episodes of the registered task" trained_of_task extra
wait_for "figures of the registered task" grep -q '"train/tokens_trained/extra":[1-9]' "$run/metrics.jsonl"
"$ooze" task list "$run" | grep -E -q '^extra +2\.00 .* up ' || fail "task list: $("$ooze" task list "$run")"

say "POST /v1/tasks"
token=$(cat "$run/token")
[ "$(post "$token" "{\"name\":\"posted\",\"url\":\"$url\",\"ratio\":1,\"max_concurrency\":8,\"ttl_s\":600}")" = 200 ] ||
  fail "POST /v1/tasks: $(cat "$tmp/post.out")"
wait_for "trained episodes of the posted task" trained_of_task posted
"$ooze" status --json "$run" | jq -e '.reward.extra.mean and .reward.posted and ([.processes[].name] | contains(["task:extra","task:posted"]))' \
  >/dev/null || fail "status does not know the new tasks"

say "refusals"
for try in "401 wrong-token {\"name\":\"a\",\"url\":\"$url\"}" "403 $token {\"name\":\"a\",\"url\":\"http://169.254.169.254/\"}" \
  "403 $token {\"name\":\"a\",\"url\":\"http://[fe80::1]:80/\"}" "409 $token {\"name\":\"fake\",\"url\":\"$url\"}" \
  "400 $token {\"name\":\"a\"}" "400 $token {\"name\":" "400 $token {\"name\":\"a/b\",\"url\":\"$url\"}" \
  "400 $token {\"name\":\"a\",\"url\":\"ftp://127.0.0.1/\"}" "400 $token {\"name\":\"a\",\"url\":\"$url\",\"ratio\":-1}"; do
  read -r want key body <<<"$try"
  got=$(post "$key" "$body")
  [ "$got" = "$want" ] || fail "POST $body: $got instead of $want: $(cat "$tmp/post.out")"
  jq -e '.error.message | length > 5' "$tmp/post.out" >/dev/null || fail "POST $body: no reason in $(cat "$tmp/post.out")"
done
got=$(curl -s -o /dev/null -w '%{http_code}' -m 20 -d '{}' "http://127.0.0.1:$(cat "$run/orchestrator.port")/v1/tasks")
[ "$got" = 401 ] || fail "POST without a token: $got"
says 1 'link-local|169\.254' "$ooze" task register "$run" evil http://169.254.169.254/latest
says 1 'configuration' "$ooze" task register "$run" fake "$url"
says 1 'no task nobody' "$ooze" task remove "$run" nobody
"$ooze" task list --json "$run" | jq -e '[.tasks[].name] == ["fake","extra","posted"]' >/dev/null || fail "a refused task is listed"

say "ooze task remove"
"$ooze" task remove "$run" extra >/dev/null || fail "task remove"
"$ooze" task list --json "$run" | jq -e '[.tasks[].name] == ["fake","posted"]' >/dev/null || fail "extra is still listed"
issued=$(of_task extra '>= 0')
now=$(committed)
wait_for "steps without the removed task" committed_at_least $((now + 8))
[ "$(of_task extra '>= 0')" = "$issued" ] || fail "a removed task got new episodes"
[ "$(of_task extra 'NOT IN (4, 5, 6)')" = 0 ] || fail "units of the removed task are in flight"

"$ooze" stop --now "$run" >/dev/null || fail "stop --now"
run_ends_well
never_restarted
j=$("$ooze" audit --json "$run") || fail "audit: $j"
jq -e '.ok and .issued == .trained + ([.dropped[]] | add // 0) + .in_flight' <<<"$j" >/dev/null || fail "audit does not add up: $j"
