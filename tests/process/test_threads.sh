#!/usr/bin/env bash
# Threads: a run that is killed twice and resumed with another number of threads ends with the very weights of one that was left alone,
# step by step; supervised steps, and steps out of rollouts, where the engine's threads change too. Threads that nobody has are refused,
# too many are warned of, and pinned ones are where they belong.
. "$(dirname "$0")/lib.sh"

all_gone() { [ -z "$(own_processes)" ]; }
# What a run made of its steps: the hash of the weights after each, as they were published (bf16), and of the checkpoints' files: f32 weights
# and the optimizer's moments, every bit of them.
hashes() {
  sql 'SELECT step, hash FROM step WHERE outcome IS NOT NULL ORDER BY step'
  jq -r '"checkpoint \(.step) \(.model_hash) \(.optimizer_hash)"' "$run"/checkpoints/step-*/state.json | sort -k 2n
}
# same_hashes WANT: the hashes of the run are WANT, all of them; SAME's own failure is checked below.
same_hashes() { [ "$(hashes)" = "$1" ]; }
# threads_of ROOM N: as the run's folder has them, which `ooze resume` reads.
threads_of() { sed -i "/^$1:/,/^[^ ]/ s/^\(  threads:\) .*/\1 $2/" "$run/config.yaml"; }
threads_said() { grep -c "event=ready device=\"cpu:[a-z0-9]*, $1 thread" "$run/logs/trainer.log"; }
# left_alone NAME STEPS ARGUMENT…: a run that nobody disturbs; what it made of each step in $want.
left_alone() {
  run_start "$1" "${@:3}"
  run_ends_well
  want=$(hashes)
  # every step moves the weights, or hashes would say nothing
  [ "$(sed -n 's/^[0-9]*|//p' <<<"$want" | sort -u | wc -l)" -eq "$2" ] || fail "not $2 steps that move the weights"
  [ "$(sed -n 's/^checkpoint [0-9]* //p' <<<"$want" | sort -u | wc -l)" -ge $(($2 / 3)) ] || fail "not $(($2 / 3)) checkpoints"
}
# struck_twice NAME FIRST SECOND ARGUMENT…: killed after FIRST and after SECOND steps; trainer on 1, 3, 2 threads, engine on 2, 1, 2.
# Each life of the trainer must have computed steps, and the hashes be $want.
struck_twice() {
  local threads
  run_start "$1" trainer.threads=1 rollout.threads=2 "${@:4}"
  for threads in 3 2; do
    wait_for "more steps" committed_at_least $((threads == 3 ? $2 : $3))
    run_kill
    wait_for "the children to go with their parent" all_gone
    say "killed at step $(committed); resuming with $threads threads"
    threads_of trainer "$threads"
    threads_of rollout $((4 - threads))
    run_resume
  done
  run_ends_well
  audit_is_clean
  for threads in 1 3 2; do
    [ "$(threads_said "$threads")" -ge 1 ] || fail "no trainer had $threads threads"
  done
  same_hashes "$want" || fail "the weights differ: $(diff <(echo "$want") <(hashes) | head -n 3)"
  # the comparison sees one digit of one step
  same_hashes "$(sed '$ s/.$/x/' <<<"$want")" && fail "hashes that differ were taken for the same"
}

# every checkpoint stays
sed -i 's/checkpoint_every: 3/checkpoint_every: 3, keep_last: 100/' "$tmp/micro.yaml"
config=$tmp/sft.yaml
sed '/^tasks:/,$d; s/micro_batch_tokens: 1024/micro_batch_tokens: 2048/; s/dtype: f32, threads: 1/dtype: bf16, threads: 1/' "$tmp/micro.yaml" >"$config"
cat >>"$config" <<YAML
stages:
  - {name: sft, kind: sft, steps: 120, data: demos.jsonl, batch_rows: 32, max_tokens: 64, optimizer: {lr: 3e-3}}
YAML
say "an SFT run left alone, with one thread; the same one killed twice"
left_alone alone 120 trainer.threads=1
struck_twice struck 25 60

# With max_lag 0 a step takes the groups that were issued for it, every one of them, in their order, out of the version before it: what a
# step consists of, and so its hash, is a function of the configuration. The micro-batches are small, so that a step has several.
say "steps out of rollouts, left alone with two threads; the same ones killed twice"
config=$tmp/rl.yaml
sed 's/micro_batch_tokens: 1024/micro_batch_tokens: 512/; s/dtype: f32, threads: 1/dtype: bf16, threads: 2/; s/task_fake, good\]/task_fake, "good:40"]/' "$tmp/micro.yaml" >"$config"
rl=(stages.sft.steps=3 stages.rl.steps=24 stages.rl.max_lag=0 stages.rl.groups_per_step=6 stages.rl.group_size=8)
left_alone rl_alone 27 "${rl[@]}"
struck_twice rl_struck 9 17 "${rl[@]}"

say "CPUs that the process may not use, lists that are none"
says 2 "rollout.pin: this process may not run on CPU 1023" "$ooze" run --quiet "$config" "run_dir=$tmp/refused" rollout.pin=1023
says 2 "trainer.pin: '0-' is no list of CPUs" "$ooze" run --quiet "$config" "run_dir=$tmp/refused" trainer.pin=0-
[ ! -e "$tmp/refused" ] || fail "a refused run has a folder"

say "pinned, and more threads than cores"
first=$(sed -n 's/^Cpus_allowed_list:[^0-9]*\([0-9]*\).*/\1/p' /proc/self/status)
config=$tmp/micro.yaml
run_start pinned stages.rl.max_lag=0 stages.rl.steps=200 "trainer.pin='$first'" trainer.threads=$(($(nproc) + 1))
wait_for "step 1" committed_at_least 1
wait_for "the trainer in status" pid_is_known trainer-0
pinned=0
for task in /proc/"$(pid_of trainer-0)"/task/*/status; do
  grep -q "^Cpus_allowed_list:[^0-9]*$first\$" "$task" && pinned=$((pinned + 1))
done
[ "$(nproc)" -eq 1 ] || [ "$pinned" -eq $(($(nproc) + 1)) ] || fail "$pinned threads are pinned to CPU $first, not $(($(nproc) + 1))"
grep -q "event=oversubscribed" "$run/logs/trainer.log" || fail "the trainer did not warn of its threads"
grep -q "threads on" "$run_log.err" || fail "ooze run did not warn of the threads"
run_kill
wait_for "the children to go with their parent" all_gone
