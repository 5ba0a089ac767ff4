#!/bin/bash
# For slurm.conf: Prolog=/etc/slurm/prolog.d/p2pcache.sh
#
# A job that was submitted with --comment p2pcache:org/name finds its model on the node: what is
# missing is fetched before its first process starts. A prolog runs when the node's GPUs are the
# job's already, so submit.sh is the better way; this one is for whoever forgot.
#
# Slurm drains a node whose prolog fails, and a model that cannot be had is no fault of the node:
# this script always ends with 0, and the job finds out by itself.
set -uo pipefail
PATH=${P2PCACHE_BIN:-/opt/p2pcache/bin}:/usr/bin:/bin
export PATH P2PCACHE_STORE=${P2PCACHE_STORE:-/var/lib/p2pcache}
# Below slurm.conf's PrologEpilogTimeout.
wait_s=${P2PCACHE_PROLOG_WAIT_S:-600}

case ${SLURM_JOB_COMMENT:-} in
    p2pcache:?*) model=${SLURM_JOB_COMMENT#p2pcache:} ;;
    *) exit 0 ;;
esac

if path=$(p2pcache wait "$model" --timeout 0 2>/dev/null); then
    echo "p2pcache: $model is here: $path"
    exit 0
fi
p2pcache pull --detach "$model" >/dev/null || exit 0
if path=$(p2pcache wait "$model" --timeout "$wait_s"); then
    echo "p2pcache: $model is here: $path"
else
    echo "p2pcache: $model is not here (exit code $?); the job starts without it"
fi
exit 0
