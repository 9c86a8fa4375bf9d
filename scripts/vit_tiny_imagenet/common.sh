# Sourced by the recipes beside it: finds data, repository and torchrun; `train NAME SEED OPTIONS...` is what they share.
# Precision is float32, as published; pass --amp bf16 or --tf32 to train faster on GPUs that have them.
set -euo pipefail
: "${DATA:?set DATA to the ImageNet folder with train/<class>/ and val/<class>/ in it}"
DATA="$(realpath -m "$DATA")"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH="$PATH:$PWD/.venv/bin" # torchrun of the active environment, else that of .venv

train() {
  local name="$1" seed="$2"
  shift 2
  torchrun --standalone --nproc_per_node="${GPUS:-2}" main.py --data_set IMNET --data_path "$DATA" \
    --model deit_tiny_patch16_224 --drop_path 0.1 --model_ema --model_ema_eval \
    --batch_size 192 --epochs 120 --warmup_epochs 20 --optimizer adam --lr 4e-3 --decay_norm_bias \
    --seed "$seed" --resume auto --output_dir "runs/vit_tiny_imagenet/$name-seed$seed" "$@"
}
