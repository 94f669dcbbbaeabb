#!/usr/bin/env bash
# One experiment shared among the jobs of an array: sbatch --array=0-7 --gpus=1 scripts/slurm_array.sh KEY=VALUE …
#SBATCH --job-name=vitsee
#SBATCH --cpus-per-task=16
#SBATCH --requeue
set -u
shards=${SLURM_ARRAY_TASK_COUNT:?submit this with sbatch --array=0-N}
code=0
srun "${VITSEE:-vitsee}" run "$@" run.progress=false \
  run.shard="$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))" run.shards="$shards" || code=$?
# 3 says that other jobs of the array are not done yet: this one is.
[ "$code" -eq 3 ] && code=0
exit "$code"
