#!/usr/bin/env bash
# ViT-Ti/16 on ImageNet-1k, 120 epochs of Adam without weight decay: the row "0" of the published table.
#   DATA=/data/imagenet bash scripts/vit_tiny_imagenet/none.sh
# Published: 65.12 % top-1 (a single number; raw or EMA weights is not said).  Cost and result here: not run here.
# DATA holds train/<class>/ and val/<class>/; GPUS (2) and SEEDS ("0", or "0 1 2") count too; options are passed on.
# The published batch is 192 a process on 2 GPUs, 384 images. It stays 384 with GPUS=1 and --update_freq 2,
# GPUS=4 and --batch_size 96, or GPUS=8 and --batch_size 48.
# The same command again goes on from the newest checkpoint.
set -euo pipefail
: "${DATA:?set DATA to the ImageNet folder with train/<class>/ and val/<class>/ in it}"
DATA="$(realpath -m "$DATA")"
cd "$(dirname "$0")/../.."
PATH="$PATH:$PWD/.venv/bin" # torchrun of the active environment, else that of .venv
for seed in ${SEEDS:-0}; do
  torchrun --standalone --nproc_per_node="${GPUS:-2}" main.py --data_set IMNET --data_path "$DATA" \
    --model deit_tiny_patch16_224 --drop_path 0.1 --model_ema --model_ema_eval \
    --batch_size 192 --epochs 120 --warmup_epochs 20 --optimizer adam --lr 4e-3 \
    --weight_decay 0 --decay uniform --decay_norm_bias \
    --seed "$seed" --resume auto --output_dir "runs/vit_tiny_imagenet/none-wd0-seed$seed" "$@"
done
