#!/usr/bin/env bash
# What comes from outside and is wrong: each a line that says where and what, exit code not 0, nothing half-written, and nothing that a
# corrected second try stumbles over.
. "$(dirname "$0")/lib.sh"

no_run() { [ ! -e "$1/config.yaml" ] && [ ! -e "$1/ledger.sqlite" ] || fail "$1 is half a run"; }
# refused NAME REGEX [ARGUMENT…]: `ooze run` ends with a line that matches.
refused() {
  local name=$1 regex=$2
  shift 2
  timeout "$patience" "$ooze" run --quiet "$config" "run_dir=$tmp/$name" "$@" >"$tmp/$name.out" 2>"$tmp/$name.err"
  code=$?
  [ $code -ne 0 ] && [ $code -lt 124 ] || fail "$name: exit code $code"
  [ "$(wc -l <"$tmp/$name.err")" -eq 1 ] || fail "$name: not one line: $(cat "$tmp/$name.err")"
  grep -q -E "$regex" "$tmp/$name.err" || fail "$name: does not say /$regex/: $(cat "$tmp/$name.err")"
  [ -z "$(find "$tmp/$name/" -name '*.tmp*' -o -name '.tmp*' 2>/dev/null)" ] || fail "$name: half-written files"
  printf '   %-12s %s\n' "$name" "$(cut -c1-190 "$tmp/$name.err")"
}

say "configuration"
printf 'rollout: {enginez: 2}\n' >"$tmp/unknown.yaml"
says 2 'unknown.yaml:1:11: .*enginez.*engines' "$ooze" run "$config" "$tmp/unknown.yaml" "run_dir=$tmp/unknown"
says 2 'trainer.dtype' "$ooze" run "$config" trainer.dtype=f31 "run_dir=$tmp/unknown"
says 2 'missing.yaml' "$ooze" run "$tmp/missing.yaml"
printf 'model: {hidden: 32\nstages: []\n' >"$tmp/broken.yaml"
says 2 'broken.yaml:2' "$ooze" run "$tmp/broken.yaml"
no_run "$tmp/unknown"
for try in 'model.n_heads=5 heads' 'model.head_dim=7 head_dim' 'rollout.page_tokens=48 page_tokens' 'rollout.page_tokens=16 page_tokens' \
  'stages.rl.max_context=4096 max_context' 'stages.rl.group_size=1 group_size|grpo' 'model.vocab=100 vocab' \
  'stages.rl.sampling.top_p=0.9 top_p' 'trainer.micro_batch_tokens=16 micro_batch'; do
  says 2 "${try#* }" "$ooze" run --quiet "$config" "run_dir=$tmp/shape" "${try% *}"
  printf '   %.170s\n' "$(cat "$tmp/says.err")"
  no_run "$tmp/shape"
done

say "demonstrations"
cp "$tmp/demos.jsonl" "$tmp/bad.jsonl"
sed -i '7s/.*/{"messages":[{"role":"user","content":"no end}/' "$tmp/bad.jsonl"
refused sft-row 'bad.jsonl:7' stages.sft.data="$tmp/bad.jsonl"
sed -i '7s/.*/{"messages":[{"role":"owl","content":"hu"}]}/' "$tmp/bad.jsonl"
refused sft-role 'bad.jsonl:7' stages.sft.data="$tmp/bad.jsonl"
refused sft-missing 'nowhere.jsonl' stages.sft.data="$tmp/nowhere.jsonl"
# of any stage, before the evaluation at the start and the steps of the stages before it
sed 's/^stages:/&\n  - {name: first, kind: sft, steps: 2, data: demos.jsonl, batch_rows: 8, max_tokens: 64}/' "$config" >"$tmp/later.yaml"
config=$tmp/later.yaml
refused sft-later 'bad.jsonl:7' stages.sft.data="$tmp/bad.jsonl"
run=$tmp/sft-later
[ "$(committed)" = 0 ] && [ "$(sql 'SELECT COUNT(*) FROM eval')" = 0 ] || fail "the run had begun"
config=$tmp/micro.yaml

say "model folders"
sed '/^tasks:/,$d' "$tmp/micro.yaml" >"$tmp/sft.yaml"
printf 'stages: [{name: sft, kind: sft, steps: 1, data: demos.jsonl, batch_rows: 8, max_tokens: 64}]\n' >>"$tmp/sft.yaml"
config=$tmp/sft.yaml
run_start seed eval.n=0
run_ends_well
"$ooze" export --dtype f32 "$run" "$tmp/good" >/dev/null || fail "export"
sed '/^ *{arch/,/^ *specials/d; s|^model:$|model: {path: model}|' "$tmp/sft.yaml" >"$tmp/folder.yaml"
config=$tmp/folder.yaml
model() { rm -rf "$tmp/model" && cp -r "$tmp/good" "$tmp/model"; }
model
run_start from-folder eval.n=0
run_ends_well
weights=$tmp/model/model.safetensors
for ((i = 0; i < 32; i++)); do printf '\377\377\177\177'; done | # the largest float, in the head's last row
  dd of="$weights" bs=1 seek=$(($(stat -c %s "$weights") - 128)) conv=notrunc status=none
refused hollow '3 steps in a row were rejected.*the first cause: the loss is not finite' eval.n=0 check.every=0 orchestrator.max_rejected=2 stages.sft.steps=50
run=$tmp/hollow
audit_is_clean
[ "$(sql 'SELECT GROUP_CONCAT(outcome) FROM step')" = 2,2,2 ] || fail "other steps than three rejected ones"
model
truncate -s -100 "$weights"
refused truncated 'model.safetensors'
model
truncate -s 5 "$weights"
refused tiny 'model.safetensors'
model
sed -i '0,/"F32"/s//"I32"/' "$weights"
refused dtype 'model.safetensors.*I32|I32.*model.safetensors'
model
sed -i '0,/\[264,32\]/s//[132,64]/' "$weights"
cmp -s "$weights" "$tmp/good/model.safetensors" && fail "the test did not change a shape"
refused shape 'model.safetensors.*(132|shape)|(132|shape).*model.safetensors'
model
sed -i 's/layers.1.mlp.up_proj/layers.7.mlp.up_proj/' "$weights"
refused renamed 'model.safetensors.*layers.7.mlp.up_proj'
model
jq '.num_hidden_layers = 3' "$tmp/good/config.json" >"$tmp/model/config.json"
refused layers 'layers.2'
model
echo '{"architectures": ["LlamaForCausalLM"]' >"$tmp/model/config.json"
refused config 'config.json'
model
echo '{"version":"1.0","model":{"type":"Unigram","vocab":[]}}' >"$tmp/model/tokenizer.json"
refused tokenizer 'tokenizer.json.*Unigram|Unigram.*tokenizer.json'
no_run "$tmp/tokenizer"
model
jq '.specials += ["ONE-MORE"]' "$tmp/good/tokenizer.json" >"$tmp/model/tokenizer.json"
refused vocabulary 'ids up to 264, the model only 264 rows'
no_run "$tmp/vocabulary"
for try in '--top-p nan' '--top-p inf' '--min-p -1' '--temperature 1x' '--max-new 1.5' '--max-new -3' '--top-k 0x10' \
  '--seed 99999999999999999999'; do
  says 2 "${try#--}: give a" "$ooze" generate ${try} "$tmp/good" hi
done
timeout "$patience" "$ooze" generate --raw --temperature .5 --top-p .9e0 --max-new 4 "$tmp/good" hi >/dev/null ||
  fail "numbers that JSON writes otherwise"
rm -rf "$tmp/model"
refused no-folder "$tmp/model"
no_run "$tmp/no-folder"

say "a run directory that cannot be"
printf 'x' >"$tmp/file"
refused under-file 'file' run_dir="$tmp/file/run"
config=$tmp/micro.yaml

say "a port in use"
"$helpers/task_fake" good --port 0 --port-file "$tmp/occupied.port" >/dev/null &
run_pid=$$ wait_for "the occupant's port" test -s "$tmp/occupied.port"
port=$(cat "$tmp/occupied.port")
mkdir -p "$tmp/port/logs"
truncate -s 2G "$tmp/port/logs/orchestrator.log" # the cause is found at the end of a log of any size
refused port "$port" orchestrator.http_port="$port"
rm -r "$tmp/port"

say "a task service that cannot start yet"
cat >"$tmp/slow_start" <<SH
#!/bin/sh
# Ends at once for as long as a port may be in use, a disk be mounted, a file be written; the pauses get longer meanwhile.
[ -e "$tmp/slow_start.end" ] || date -d '+1 second' +%s%N >"$tmp/slow_start.end"
[ "\$(date +%s%N)" -ge "\$(cat "$tmp/slow_start.end")" ] || exit 3
exec "$helpers/task_fake" good "\$@"
SH
chmod +x "$tmp/slow_start"
run_start later eval.n=0 stages.rl.steps=2 "tasks.fake.command=[$tmp/slow_start]"
run_ends_well
audit_is_clean

say "task services that answer nonsense"
refused html 'task fake.*(JSON|html)' "tasks.fake.command=[$helpers/task_fake, html]" eval.n=0
run_start flaky eval.n=0 "tasks.fake.command=[$helpers/task_fake, flaky]"
run_ends_well
audit_is_clean
[ "$(sql 'SELECT COUNT(*) FROM unit WHERE source = 0 AND attempt = 0 AND (state <> 6 OR reward IS NOT NULL)')" = 0 ] ||
  fail "an attempt that got nonsense was scored or trained"
[ "$(sql 'SELECT COUNT(*) FROM unit WHERE source = 0 AND state = 5 AND attempt > 0')" = 64 ] || fail "not 64 second attempts trained"
"$ooze" audit --json "$run" | jq -e '.dropped.environment > 0 and .dropped.grader > 0
  and (.dropped | keys - ["environment","grader","surplus","stale","group_incomplete"] == [])' >/dev/null ||
  fail "reasons: $("$ooze" audit --json "$run")"
sql 'SELECT DISTINCT "   " || detail FROM unit WHERE source = 0 AND reason = 2'
run_start outage eval.n=0 tasks.fake.step_timeout_ms=8000 "tasks.fake.command=[$helpers/task_fake, outage]"
run_ends_well
audit_is_clean
[ "$(sql 'SELECT COUNT(*) FROM unit WHERE source = 0 AND state = 5 AND n_turns = 0')" = 0 ] ||
  fail "an outage of the service was trained as a bad answer"
# A step after which the service is gone, each time it is made, is given up; others that were at the service then are not.
run_start mortal eval.n=0 orchestrator.max_restarts=40 "tasks.fake.command=[$helpers/task_fake, mortal]"
run_ends_well
audit_is_clean
killers="source = 0 AND grp IN (SELECT id FROM grp WHERE prompt_index % 8 = 3)"
[ "$(sql "SELECT COUNT(*) FROM unit WHERE $killers AND attempt = 0")" -gt 0 ] || fail "no prompt ended the service"
[ "$(sql "SELECT COUNT(*) FROM unit WHERE $killers AND attempt = 0 AND state <> 6")" = 0 ] || fail "what ends the service was trained"
[ "$(sql "SELECT COUNT(*) FROM unit WHERE $killers AND attempt > 0 AND state = 5")" -gt 0 ] || fail "their second attempts were not trained"
# A step that breaks a service which is well otherwise is the policy's doing: the lowest reward, not a way out.
run_start crash eval.n=0 stages.rl.steps=2 "tasks.fake.command=[$helpers/task_fake, http500]"
run_ends_well
audit_is_clean
[ "$(sql 'SELECT COUNT(*) FROM unit WHERE source = 0 AND state = 5 AND reward = 0 AND truncated')" = 16 ] || fail "a crash paid"
refused hopeless 'task fake at http://127.0.0.1:[0-9]+: [0-9]+ replies in a row .* not valid JSON' eval.n=0 \
  tasks.fake.step_timeout_ms=2000 "tasks.fake.command=[$helpers/task_fake, bad-json]"
run=$tmp/hopeless
[ "$(sql 'SELECT COUNT(*) FROM unit WHERE source = 0 AND (state BETWEEN 2 AND 5 OR reward IS NOT NULL)')" = 0 ] ||
  fail "nonsense was scored"
[ "$(sql 'SELECT COUNT(*) FROM unit')" -lt 1000 ] || fail "a hopeless task was asked again and again without a pause"

say "the run directory of another"
run_start first stages.rl.steps=100000 orchestrator.http_host=0.0.0.0 "tasks.fake.command=[$helpers/task_fake, 'good:50']"
wait_for "a step" committed_at_least 1
# Its HTTP side is open to other hosts, which must have the token for more than its health.
asked() { curl -s -o /dev/null -m "$patience" -w '%{http_code}' "${@:2}" "http://127.0.0.1:$(cat "$run/orchestrator.port")$1"; }
for path in /v1/status /v1/tasks; do
  [ "$(asked "$path")" = 401 ] || fail "$path tells anybody"
  [ "$(asked "$path" -H "Authorization: Bearer $(cat "$run/token")")" = 200 ] || fail "$path does not tell who has the token"
done
[ "$(asked /health)" = 200 ] && [ "$(asked /metrics)" = 200 ] || fail "probes get no answer"
says 1 "already holds a run.*resume" "$ooze" run --quiet "$config" "run_dir=$run"
says 1 "already being run by process $run_pid" "$ooze" resume --quiet "$run"
wait_for "a step after that" committed_at_least 7
run_kill
says 1 'not a run directory' "$ooze" resume "$tmp"
says 1 'not a run directory' "$ooze" status "$tmp"
says 1 . "$ooze" audit "$tmp/nowhere"
