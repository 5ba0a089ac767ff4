#!/bin/bash
#SBATCH --gpus 1
# The second job of submit.sh; MODEL comes from there. The lease lasts as long as the server.
exec p2pcache exec "$MODEL" -- ${SERVER:-vllm serve} {}
