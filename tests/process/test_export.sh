#!/usr/bin/env bash
# What comes out of a run: an exported folder that starts another run and completes prompts as the run itself does, a checkpoint evaluated
# anew, and what the doctor says.
. "$(dirname "$0")/lib.sh"

run_start run stages.sft.steps=20 trainer.keep_last=3
run_ends_well
audit_is_clean
never_restarted

say "export"
for dtype in f32 bf16 fp8; do
  "$ooze" export --dtype "$dtype" "$run" "$tmp/$dtype" >"$tmp/export.out" 2>&1 || fail "export --dtype $dtype: $(cat "$tmp/export.out")"
  for f in config.json model.safetensors tokenizer.json; do
    [ -s "$tmp/$dtype/$f" ] || fail "the $dtype folder has no $f: $(ls "$tmp/$dtype")"
  done
  jq -e '.architectures == ["LlamaForCausalLM"] and .hidden_size == 32 and .num_hidden_layers == 2 and .vocab_size == 264' \
    "$tmp/$dtype/config.json" >/dev/null || fail "config.json: $(cat "$tmp/$dtype/config.json")"
done
says 1 "$tmp/f32.*exist" "$ooze" export "$run" "$tmp/f32"
says 1 'no checkpoint' "$ooze" export --checkpoint 9999 "$run" "$tmp/none"
[ -e "$tmp/none" ] && fail "a failed export left a folder"
step=$(sql 'SELECT MIN(step) FROM checkpoint WHERE pruned = 0')
"$ooze" export --checkpoint "$step" --dtype f32 "$run" "$tmp/early" >/dev/null || fail "export --checkpoint $step"
cmp -s "$tmp/early/model.safetensors" "$tmp/f32/model.safetensors" && fail "checkpoint $step and the last are the same"

say "generate"
generate() { "$ooze" generate --tokens --dtype f32 --max-new 8 "$@" 2>"$tmp/generate.err" || fail "generate $*: $(cat "$tmp/generate.err")"; }
generate "$run" 'Q12=' >"$tmp/of-run"
generate "$tmp/f32" 'Q12=' >"$tmp/of-folder"
[ "$(wc -l <"$tmp/of-run")" -ge 2 ] || fail "generate printed $(cat "$tmp/of-run")"
cmp "$tmp/of-run" "$tmp/of-folder" || fail "the run and its export complete a prompt differently"
generate --temperature 1 --seed 5 "$run" 'Q12=' >"$tmp/seed5"
generate --temperature 1 --seed 5 "$tmp/f32" 'Q12=' >"$tmp/again"
generate --temperature 1 --seed 6 "$run" 'Q12=' >"$tmp/seed6"
cmp "$tmp/seed5" "$tmp/again" || fail "the same seed does not give the same answer"
cmp -s "$tmp/seed5" "$tmp/seed6" && fail "another seed gives the same answer"
generate --raw "$run" 'plain' >/dev/null
says 1 . "$ooze" generate "$tmp/nowhere" 'x'
says 2 . "$ooze" generate --max-new many "$run" 'x'

say "generate over a pipe that stays open"
coproc engine { "$(dirname "$ooze")/ooze-rollout" --model "$tmp/f32" --dtype f32 --generate 2>"$tmp/engine.err"; }
engine_out=${engine[0]} engine_in=${engine[1]} engine_pid=$engine_PID
for i in 1 2; do
  echo '{"ids":[257,81],"max_new":4,"temperature":0}' >&"$engine_in"
  read -r -t 60 -u "$engine_out" answer || fail "no answer to line $i while the pipe is open: $(cat "$tmp/engine.err")"
  jq -e '.output_ids | length > 0' <<<"$answer" >/dev/null || fail "line $i is answered by $answer"
done
exec {engine_in}>&-
wait "$engine_pid" || fail "the engine ended with $?"

say "eval --checkpoint"
"$ooze" eval --checkpoint last --n 6 --samples 2 --json "$run" >"$tmp/eval.json" 2>"$tmp/eval.err" || fail "eval --checkpoint last: $(cat "$tmp/eval.err")"
jq -e 'length == 1 and .[0].tasks.fake.n == 12 and .[0].tasks.fake.samples == 2 and .[0].tasks.fake.mean > 0' "$tmp/eval.json" >/dev/null ||
  fail "eval --checkpoint: $(cat "$tmp/eval.json")"
"$ooze" eval --checkpoint "$step" --n 3 "$run" | grep -q fake || fail "eval --checkpoint $step"
says 1 'no checkpoint' "$ooze" eval --checkpoint 9999 "$run"
audit_is_clean

say "another run from the exported folder"
config=$tmp/folder.yaml
sed '/^ *{arch/,/^ *specials/d; s|^model:$|model: {path: bf16}|' "$tmp/micro.yaml" >"$config"
run_start second stages.sft.steps=2 stages.rl.steps=3
run_ends_well
audit_is_clean

say "doctor"
"$ooze" doctor >"$tmp/doctor" || fail "doctor: $(cat "$tmp/doctor")"
for word in processor cores memory ooze-orchestrator ooze-trainer ooze-rollout; do
  grep -q "$word" "$tmp/doctor" || fail "the doctor does not speak of $word"
done
mkdir "$tmp/alone" && cp "$ooze" "$tmp/alone/"
"$tmp/alone/ooze" doctor >"$tmp/doctor"
[ $? -eq 1 ] || fail "the doctor finds nothing missing where the other programs are not"
grep -q 'MISSING.*ooze-trainer' "$tmp/doctor" || fail "the doctor does not say what is missing: $(cat "$tmp/doctor")"
"$ooze" help | grep -q audit || fail "help"
for command in run resume status stop task show audit eval export generate doctor; do
  "$ooze" "$command" --help | grep -q '^usage: ooze' || fail "$command --help"
  "$ooze" "$command" --no-such-option >/dev/null 2>&1
  [ $? -eq 2 ] || fail "$command --no-such-option is not wrong usage"
done
