#!/bin/bash
# Two phases on Slurm: a job without GPUs fetches the model on a node, then the job that needs the
# GPUs starts there.
#
#   submit.sh MODEL NODE JOB.sh [sbatch options of the second job …]
set -euo pipefail

if [ "$#" -lt 3 ]; then
    echo "usage: submit.sh MODEL NODE JOB.sh [sbatch options …]" >&2
    exit 2
fi
model=$1 node=$2 job=$3
shift 3

fetch=$(sbatch --parsable --job-name "fetch ${model##*/}" --nodelist "$node" \
    --cpus-per-task 2 --mem 4G --gpus 0 --wrap "p2pcache pull $(printf %q "$model")")
# Where the first job fails, the second one is cancelled, and no GPU was held.
sbatch --parsable --dependency "afterok:$fetch" --kill-on-invalid-dep yes --nodelist "$node" \
    --comment "p2pcache:$model" --export "ALL,MODEL=$model" "$@" "$job"
