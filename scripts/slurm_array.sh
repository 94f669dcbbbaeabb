#!/usr/bin/env bash
# Splits one experiment over the jobs of an array:
#   sbatch --array=0-7 --gpus-per-node=1 --time=4:00:00 scripts/slurm_array.sh analysis=cka model=vit_h14 …
# Two minutes before its time limit a job saves and requeues itself; SLURM requeues a preempted job.
# The last job to finish writes the tables. To complete the work of lost jobs, submit the same with --array=0.
#SBATCH --job-name=vitsee
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -u
: "${SLURM_ARRAY_TASK_COUNT:?submit this with sbatch --array=0-N}"
if [ "$SLURM_ARRAY_TASK_MIN" -ne 0 ] || [ "$SLURM_ARRAY_TASK_MAX" -ne $((SLURM_ARRAY_TASK_COUNT - 1)) ]; then
  echo "the array must be 0-N, so that its jobs know their shares; --array=0 completes the work of lost jobs" >&2
  exit 2
fi

out_of_time=no stopping=no measuring=
stop() {
  stopping=yes
  [ -z "$measuring" ] || kill -TERM "$measuring"
}
trap 'out_of_time=yes; stop' USR1
trap stop TERM
"${VITSEE:-vitsee}" run "$@" run.progress=false \
  run.shard="$SLURM_ARRAY_TASK_ID" run.shards="$SLURM_ARRAY_TASK_COUNT" &
measuring=$!
[ "$stopping" = no ] || kill -TERM "$measuring" # the signal came while it was starting
while kill -0 "$measuring" 2>/dev/null; do # a signal ends `wait` before the process has saved
  wait "$measuring"
done
wait "$measuring"
code=$?

# 130: it saved; 143: it had not started yet (a slow file server or a busy machine).
if [ "$out_of_time" = yes ] && { [ "$code" -eq 130 ] || [ "$code" -eq 143 ]; }; then
  # Not $SLURM_JOB_ID: that of the last job is the whole array's, so that finished and cancelled jobs would run again.
  exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
# 3: this job is done, but others of the array are not.
[ "$code" -eq 3 ] && code=0
exit "$code"
