#!/bin/bash
# LLaMA-65B on 2,048 GPUs: 256 machines of 8. The small run with other numbers (nbs/18_fault_tolerance.ipynb).
#
#   sbatch docs/slurm.sh                      # as it stands
#   PLAN=plan.json sbatch --nodes 16 docs/slurm.sh        # what `llama-course plan --out plan.json` found
#   sbatch --nodes 4 docs/slurm.sh --model 7B --steps 240000 --lr 3e-4 --tensor-parallel 1 ...
#
# What follows the script's name replaces the settings below it that have the same name: the last one counts.
# PYTHON is the Python that has llama_course; else it is that of .venv in the folder where sbatch is called, or of the PATH.
# The folders DATA and RUN must be seen by all machines. DATA is what `llama-course data` wrote, or holds SOURCE.tokens and, with
# the sources' proportions, mixture.json. A job that is requeued, or submitted again, goes on from its last whole checkpoint.
# RUN becomes a run folder like any other: `llama-course generate --run`, `eval`, `serve`, `finetune` read it.
#
# Finetuning (llama_course/launch/finetuning.py) is the same job with another last part, from `-m` on:
#   -m llama_course.launch.finetuning --weights "$WEIGHTS" --data answers.jsonl --out "$RUN" --precision bfloat16 \
#   --tensor-parallel 8 --checkpointing selective "$@"

#SBATCH --job-name=llama-65B
#SBATCH --nodes=256
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=7-00:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -euo pipefail
: "${DATA:=/data}" "${RUN:=/runs/65B}" "${PLAN:=}" "${PYTHON:=$SLURM_SUBMIT_DIR/.venv/bin/python}"
if [ ! -x "$PYTHON" ]; then PYTHON=python; fi

# A process for each GPU that this job has on a machine; without GPUs one. Each has its share of the cores: srun does not
# take over the number that sbatch was given.
ranks=${SLURM_GPUS_ON_NODE:-1}
cores=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$((cores / ranks > 8 ? 8 : cores / ranks > 1 ? cores / ranks : 1))
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1  # a rank that waits for a dead one ends, instead of waiting for ever
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))  # of this job alone

settings=(--model 65B --steps 334000 --batch-size 2048 --seq-len 2048 --micro-batch 8
          --precision bfloat16 --compile --tensor-parallel 8 --checkpointing selective)
if [ -n "$PLAN" ]; then settings=(--plan "$PLAN"); fi

# One torchrun a machine. They meet at the head; if a rank dies, all ranks start again from the last checkpoint.
exec srun --cpus-per-task="$cores" --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run \
    --nnodes "$SLURM_NNODES" --nproc-per-node "$ranks" --max-restarts 100 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:$port" \
    -m llama_course.launch --data "$DATA" --run-folder "$RUN" "${settings[@]}" \
    --lr 1.5e-4 --warmup 2000 --save-every 500 --non-finite skip --tensorboard \
    "$@"
