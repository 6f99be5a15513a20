#!/usr/bin/env bash
# Threads: a run that is killed and resumed with another number of trainer threads ends with the very weights of one that was left alone,
# step by step; a program of supervised steps, and synchronous ones out of rollouts. Threads that nobody has are refused, too many are
# warned of, and pinned ones are where they belong.
. "$(dirname "$0")/lib.sh"

all_gone() { [ -z "$(own_processes)" ]; }
hashes() { sql 'SELECT step, hash FROM step WHERE outcome IS NOT NULL ORDER BY step'; }
# same_hashes WANT WHAT: the hashes of the run are WANT, all of them; SAME's own failure is checked below.
same_hashes() { [ "$(hashes)" = "$1" ]; }
# The trainer's threads as the run's folder has them: what `ooze resume` reads.
threads_of_trainer() { sed -i "/^trainer:/,/^[^ ]/ s/^\(  threads:\) .*/\1 $1/" "$run/config.yaml"; }
threads_said() { grep -c "event=ready device=\"cpu:[a-z0-9]*, $1 thread" "$run/logs/trainer.log"; }

config=$tmp/sft.yaml
sed '/^tasks:/,$d; s/micro_batch_tokens: 1024/micro_batch_tokens: 2048/; s/dtype: f32, threads: 1/dtype: bf16, threads: 1/' "$tmp/micro.yaml" >"$config"
cat >>"$config" <<YAML
stages:
  - {name: sft, kind: sft, steps: 120, data: demos.jsonl, batch_rows: 32, max_tokens: 64, optimizer: {lr: 3e-3}}
YAML
say "an SFT run left alone, with one thread"
run_start alone
run_ends_well
want=$(hashes)
[ "$(wc -l <<<"$want")" -eq 120 ] || fail "not 120 steps"

say "the same one, killed twice: 1, 3, then 2 threads"
run_start struck
for threads in 3 2; do
  wait_for "more steps" committed_at_least $((threads == 3 ? 25 : 60))
  run_kill
  wait_for "the children to go with their parent" all_gone
  say "killed at step $(committed); resuming with $threads threads"
  threads_of_trainer "$threads"
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

say "steps out of rollouts, synchronous: 2 threads, killed, resumed with 1"
config=$tmp/micro.yaml
rl=(stages.rl.max_lag=0 stages.rl.steps=10 stages.sft.steps=2 trainer.checkpoint_every=1000)
run_start rl_alone "${rl[@]}" trainer.threads=1
run_ends_well
want=$(hashes)
[ "$(wc -l <<<"$want")" -eq 12 ] || fail "not 12 steps"
run_start rl_struck "${rl[@]}" trainer.threads=2
wait_for "step 5" committed_at_least 5
run_kill
wait_for "the children to go with their parent" all_gone
threads_of_trainer 1
run_resume
run_ends_well
audit_is_clean
# What the steps consist of depends on which answers came first; what a step makes of them does not: the ledger replays it.
# The first steps of both, until a group came in another order, agree.
first=$(sed -n '1,3p' <<<"$want")
[ "$(hashes | sed -n '1,3p')" = "$first" ] || fail "the first steps differ: $(diff <(echo "$first") <(hashes | sed -n '1,3p'))"

say "CPUs that the process may not use, lists that are none"
says 2 "rollout.pin: this process may not run on CPU 1023" "$ooze" run --quiet "$config" "run_dir=$tmp/refused" rollout.pin=1023
says 2 "trainer.pin: '0-' is no list of CPUs" "$ooze" run --quiet "$config" "run_dir=$tmp/refused" trainer.pin=0-
[ ! -e "$tmp/refused" ] || fail "a refused run has a folder"

say "pinned, and more threads than cores"
first=$(sed -n 's/^Cpus_allowed_list:[^0-9]*\([0-9]*\).*/\1/p' /proc/self/status)
run_start pinned "${rl[@]}" stages.rl.steps=200 "trainer.pin='$first'" trainer.threads=$(($(nproc) + 1))
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
