#!/usr/bin/env bash
# An engine of another host: admitted by its key, over tcp with CURVE, its weights in chunks. Here the other host is a join folder that
# knows nothing of the run's: the engine is told no path. A second one whose key is not on the list never gets in.
. "$(dirname "$0")/lib.sh"

# engine_start NAME FOLDER [OPTION…]: an engine that joins the run; its pid in $engine_pid.
engine_start() {
  nice -n 5 "$bin/ooze-rollout" --connect "$address" --run "$2" --name "$1" "${@:3}" >"$tmp/$1.out" 2>"$tmp/$1.err" &
  engine_pid=$!
}
mode_of() { stat -c %a "$1"; }
# engine_has FILTER: of the remote engine's row in `ooze status`.
engine_has() { "$ooze" status --json "$run" 2>/dev/null | jq -e ".processes[] | select(.name == \"engine-x\") | $1" >/dev/null; }
engine_ends_well() {
  kill -TERM "$1"
  wait_end "$1"
  [ "$code" -eq 0 ] || fail "an engine of another host ended with code $code"
}

say "the run listens"
run_start run 'orchestrator.listen=tcp://127.0.0.1:*' stages.rl.steps=150 "tasks.fake.command=[$helpers/task_fake, good:250]"
wait_for "the address" test -s "$run/orchestrator.listen"
address=$(cat "$run/orchestrator.listen")
[[ $address =~ ^tcp://127\.0\.0\.1:[0-9]+$ ]] || fail "no address: $address"
[ "$(mode_of "$run/keys")" = 700 ] && [ "$(mode_of "$run/keys/server.key")" = 600 ] || fail "the server's key is open to others"

say "keys"
server=$("$ooze" keys "$run") || fail "keys"
[ "${#server}" -eq 40 ] && [ "$server" = "$("$ooze" keys "$run")" ] || fail "not one public key: $server"
join=$tmp/join stranger=$tmp/stranger
"$ooze" keys "$run" engine-x "$join" || fail "keys for engine-x"
[ "$(mode_of "$join")" = 700 ] && [ "$(mode_of "$join/client.key")" = 600 ] || fail "the engine's key is open to others"
grep -q -x -F "server $server" "$join/client.key" || fail "the join folder names another server"
! grep -q -F "$(sed -n 's/^secret //p' "$run/keys/server.key")" -r "$join" || fail "the server's secret left its run"
! cmp -s "$run/token" "$join/token" || fail "the run's token left its run"
says 1 'has a line for engine-x' "$ooze" keys "$run" engine-x "$tmp/other"
says 1 'exists' "$ooze" keys "$run" engine-y "$join"
says 2 'cannot be the name' "$ooze" keys "$run" engine-0 "$tmp/other"
[ ! -e "$tmp/other" ] || fail "a refused name left a folder"
"$ooze" keys "$run" engine-stranger "$stranger" || fail "keys for the stranger"
sed -i '/engine-stranger/d' "$run/keys/allowed" # withdrawn

say "an engine joins and works"
engine_start engine-stranger "$stranger" && stranger_pid=$engine_pid
engine_start engine-x "$join" --threads 2 && joined_pid=$engine_pid
wait_for "engine-x up" engine_has '.state == "up"'
wait_for "weights on engine-x" engine_has '.version >= 0'
wait_for "tokens of engine-x" engine_has '.generated_tokens > 0'
wait_for "newer weights on engine-x" engine_has '.version >= 8'
[ "$(pid_of engine-x)" = "$joined_pid" ] || fail "another process has the name"
grep -q 'event=fetched .*bytes=[1-9]' "$tmp/engine-x.err" || fail "the weights of engine-x did not come over the connection"
grep -q 'event=ready device=".*, 2 threads"' "$tmp/engine-x.err" || fail "not the threads that were asked for on its host"
engine_has .remote || fail "engine-x passes for one of this host"

say "a name that is taken by a process of the other host"
engine_start engine-0 "$join"
wait_end "$engine_pid"
[ "$code" -eq 1 ] && grep -q 'another host' "$tmp/engine-0.err" || fail "a second engine-0 was not refused (code $code)"

say "a name that is not the key's"
engine_start engine-z "$join"
wait_end "$engine_pid"
[ "$code" -eq 1 ] && grep -q 'your key is that of' "$tmp/engine-z.err" || fail "engine-z came in with the key of engine-x (code $code)"

say "an engine's key is good for an engine's words"
for verb in stop status task_list; do
  answer=$("$helpers/engine_asks" "$address" "$join" $verb) || fail "no answer to $verb"
  [[ $answer == REFUSED\ * ]] || fail "$verb by an engine's key: $answer"
done
"$ooze" status --json "$run" | jq -e '.state != "stopping"' >/dev/null || fail "an engine's key stopped the run"

wait_for "the stranger's complaint" grep -q no_answer "$tmp/engine-stranger.err"

say "the end"
run_ends_well
audit_is_clean
kill -0 "$joined_pid" || fail "engine-x ended before the run"
kill -0 "$stranger_pid" || fail "the stranger ended early: $(cat "$tmp/engine-stranger.err")"
! grep -r -q 'engine-stranger' "$run/logs" || fail "the stranger was heard"
engine_ends_well "$joined_pid"
engine_ends_well "$stranger_pid"
[ -z "$(find "$join" -name 'ooze-fetch-*')" ] || fail "fetched weights were left behind"
