#!/usr/bin/env bash
# ViT-Ti/16 on ImageNet-1k, 120 epochs of Adam, the same weight decay for all: the column "Uniform".
#   DATA=/data/imagenet bash scripts/vit_tiny_imagenet/uniform.sh
# Published: 66.97 % top-1 at weight decay 5e-6, 66.41 % at 1e-6 (single numbers; raw or EMA weights is not said).
# Cost and result here: not run here.
# DATA holds train/<class>/ and val/<class>/; GPUS (2) and SEEDS ("0", or "0 1 2") count too; options are passed on.
# The published batch is 192 a process on 2 GPUs, 384 images. It stays 384 with GPUS=1 and --update_freq 2,
# GPUS=4 and --batch_size 96, or GPUS=8 and --batch_size 48.
# Norms, biases, position and class tokens are decayed too, as published: --decay_norm_bias.
# The same command again goes on from the newest checkpoint.
set -euo pipefail
: "${DATA:?set DATA to the ImageNet folder with train/<class>/ and val/<class>/ in it}"
DATA="$(realpath -m "$DATA")"
cd "$(dirname "$0")/../.."
PATH="$PATH:$PWD/.venv/bin" # torchrun of the active environment, else that of .venv
for seed in ${SEEDS:-0}; do
  for weight_decay in 5e-6 1e-6; do
    torchrun --standalone --nproc_per_node="${GPUS:-2}" main.py --data_set IMNET --data_path "$DATA" \
      --model deit_tiny_patch16_224 --drop_path 0.1 --model_ema --model_ema_eval \
      --batch_size 192 --epochs 120 --warmup_epochs 20 --optimizer adam --lr 4e-3 \
      --weight_decay "$weight_decay" --decay uniform --decay_norm_bias \
      --seed "$seed" --resume auto --output_dir "runs/vit_tiny_imagenet/uniform-wd$weight_decay-seed$seed" "$@"
  done
done
