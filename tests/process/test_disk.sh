#!/usr/bin/env bash
# A disk that fills up: the run ends with a line that says so and with an exit code, leaves nothing half-written, and goes on to its end
# once there is room again. Needs a small file system of its own (a tmpfs, so root); skipped without.
. "$(dirname "$0")/lib.sh"

disk=$tmp/disk
mkdir "$disk"
mount -t tmpfs -o size=3m none "$disk" 2>/dev/null || { echo "skipped: no tmpfs can be mounted here"; exit 77; }
mounted=$disk

say "a run on a disk too small for its checkpoints"
# A checkpoint of this model takes about 450 KiB, published weights and the ledger the rest.
run_start disk "run_dir=$disk/run" stages.rl.steps=40 trainer.keep_last=20 trainer.keep_weights=100
run=$disk/run
wait_end "$run_pid"
cat "$run_log.err"
[ "$code" -ne 0 ] || fail "the run ended well on a full disk"
[ "$(wc -l <"$run_log.err")" -eq 1 ] || fail "not one line: $(cat "$run_log.err")"
grep -q -i -E 'No space left|disk is full|full' "$run_log.err" || fail "does not say that the disk is full: $(cat "$run_log.err")"
before=$(committed)
for c in "$run"/checkpoints/step-*; do
  [ -s "$c/model.safetensors" ] && [ -s "$c/state.json" ] || fail "half a checkpoint: $(ls -l "$c")"
done
"$ooze" audit "$run" || fail "audit after a full disk"

say "more room, at step $before"
mount -o remount,size=64m "$disk" || fail "remount"
run_resume
run_ends_well
audit_is_clean
[ "$(committed)" -eq 45 ] || fail "$(committed) steps committed"
[ -z "$(find "$run" -name '*.tmp*' -o -name '.tmp*')" ] || fail "left behind: $(find "$run" -name '*.tmp*' -o -name '.tmp*')"
