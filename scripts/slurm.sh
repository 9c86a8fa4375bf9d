#!/usr/bin/env bash
# One run on several nodes under Slurm. Before its time limit it saves and is queued again. See docs/cluster.md.
#   sbatch --nodes=2 --gpus-per-node=4 scripts/slurm.sh --data_path /data/imagenet --output_dir runs/first ...
# Options before the script go to Slurm and override the lines below; those after it go to main.py, or to main_llama.py
# with PROGRAM=main_llama.py in the environment.
# Submit it from the repository. All nodes must see the repository, the data and --output_dir.
# Not tested under Slurm: its logic was tested with replacements for Slurm's commands.
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
PATH="$PATH:$PWD/.venv/bin" # use torchrun of the active environment, else of .venv
head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs on the same node have different ports

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else restarted processes look for ended ones (pytorch#135712)

# Seconds that torchrun waits for its processes to end before it kills them (newer torch; older releases wait 30 s). A
# large checkpoint takes longer to write. Slurm kills everything 120 s after USR1.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}"
# If nodes have several networks, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the one between them, such as ib0.

# The run folder: main.py writes a file REQUEUE in it after a signal has requested its end and it has saved.
folder=runs/run
words=("$@")
for i in "${!words[@]}"; do
  case "${words[i]}" in
    --output_dir=* | --output-dir=*) folder="${words[i]#*=}" ;;
    --output_dir | --output-dir) folder="${words[i + 1]:-}" ;;
  esac
done
rm -f "$folder/REQUEUE"

# 120 s before the time limit Slurm sends USR1 to this script only. The script sends TERM, which torchrun handles,
# with scancel, because srun itself would turn TERM into KILL.
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
