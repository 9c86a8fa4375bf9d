#!/usr/bin/env bash
# One run on several nodes under Slurm; it puts itself back into the queue before its time is up. See docs/cluster.md.
#   sbatch --nodes=2 --gpus-per-node=4 scripts/slurm.sh --data_path /data/imagenet --output_dir runs/first ...
# Options before the script go to Slurm and count more than the lines below; those behind it go to main.py, or to
# main_llama.py with PROGRAM=main_llama.py in the environment.
# Submit it from the repository; the repository, the data and --output_dir must be where all nodes see them.
# Not run here: only its logic was tried, with stand-ins for Slurm's commands.
#SBATCH --job-name=alphadecay
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=40
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
PATH="$PATH:$PWD/.venv/bin" # torchrun of the active environment, else that of .venv
head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node do not share a port

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else processes restarted by --max-restarts look for dead ones (pytorch#135712)

# The run's folder: main.py leaves a file REQUEUE there when it was told to end and has saved.
folder=runs/run
words=("$@")
for i in "${!words[@]}"; do
  case "${words[i]}" in
    --output_dir=* | --output-dir=*) folder="${words[i]#*=}" ;;
    --output_dir | --output-dir) folder="${words[i + 1]:-}" ;;
  esac
done
rm -f "$folder/REQUEUE"

# 120 s before the end Slurm sends USR1 to this script alone. It passes it on as TERM, which torchrun knows, through
# scancel: srun itself would turn TERM into KILL.
stop() {
  echo "USR1: stopping the training to requeue job $SLURM_JOB_ID" >&2
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop USR1
trap : TERM # in case scancel reaches this script too

srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv_backend=c10d --rdzv_endpoint="$head_node:$port" --rdzv_id="$SLURM_JOB_ID" \
  "${PROGRAM:-main.py}" --resume auto "$@" &
training=$!
while true; do # a signal ends `wait` early
  wait "$training" && status=0 || status=$?
  kill -0 "$training" 2>/dev/null || break
done
if [ -e "$folder/REQUEUE" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
