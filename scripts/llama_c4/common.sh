# Sourced by the recipes beside it. They read these variables, and pass options on to main_llama.py:
#   DATA       a folder of C4's en/*.json.gz, or a URL; by default they come from the Hugging Face hub as they are read
#   SIZES      of "60m 130m 350m 1b" (all; with adamw "60m 130m"): the paper calls the second one 135M
#   OPTIMIZER  adam (default: decay is coupled, the main table) or adamw (decoupled, the appendix' table)
#   DECAYS     base decays ("1e-5 5e-6 1e-6"; with adamw "0.1 0.05 0.01")
#   SEEDS ("0"), GPUS (2), BATCH (sequences per process and micro-step; the step's 512 must be a multiple of BATCH x GPUS)
# Steps, rates, batch and clipping are the paper's; its program clips nothing (--clip_grad 0). As in its program,
# documents are cut and padded, one a sequence (--pack fills sequences: a third more text in the same steps), and norms
# are decayed (--decay_norm_bias). Not as there: weights and optimizer state are float32 under bf16 mixed precision,
# because pure bf16 rounds most of the decay away; PRECISION=--pure_bf16 does as published.
# Checkpoints are written every 1000 steps; the same command again resumes from the newest one.
set -euo pipefail
if [[ -n "${DATA:-}" && "$DATA" != *://* ]]; then DATA="$(realpath -m "$DATA")"; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH="$PATH:$PWD/.venv/bin" # torchrun of the active environment, else that of .venv
OPTIMIZER="${OPTIMIZER:-adam}"
case "$OPTIMIZER" in
  adam) SIZES="${SIZES:-60m 130m 350m 1b}" DECAYS="${DECAYS:-1e-5 5e-6 1e-6}" ;;
  adamw) SIZES="${SIZES:-60m 130m}" DECAYS="${DECAYS:-0.1 0.05 0.01}" ;;
  *) echo "error: OPTIMIZER=$OPTIMIZER: adam or adamw" >&2 && exit 2 ;;
esac

# train NAME SIZE SEED OPTIONS...
train() {
  local name="$1" size="$2" seed="$3" steps lr batch
  shift 3
  case "$size" in
    60m) steps=10000 lr=1e-3 batch=256 ;;
    130m) steps=20000 lr=1e-3 batch=128 ;;
    350m) steps=60000 lr=1e-3 batch=64 ;;
    1b) steps=90000 lr=6e-4 batch=32 ;;
    *) echo "error: SIZES: $size is none of 60m 130m 350m 1b" >&2 && exit 2 ;;
  esac
  torchrun --standalone --nproc_per_node="${GPUS:-2}" main_llama.py ${DATA:+--data_path "$DATA"} \
    --model_config "llama/configs/llama_$size.json" --tokenizer t5-base --max_length 256 --no-pack \
    --batch_size "${BATCH:-$batch}" --total_batch_size 512 \
    --num_training_steps "$steps" --warmup_steps "$((steps / 10))" \
    --optimizer "$OPTIMIZER" --lr "$lr" --clip_grad 1.0 --decay_norm_bias ${PRECISION:---amp bf16} \
    --eval_every 1000 --save_every 1000 --seed "$seed" --resume auto \
    --output_dir "runs/llama_c4/$size-$OPTIMIZER-$name-seed$seed" "$@"
}
