#!/usr/bin/env bash
# ViT-Ti/16 on ImageNet-1k, 120 epochs of Adam without weight decay: the row "0" of the published table.
#   DATA=/data/imagenet bash scripts/vit_tiny_imagenet/none.sh
# Published: 65.12 % top-1 (a single number; raw or EMA weights is not said).  Cost and result here: not run here.
# DATA holds train/<class>/ and val/<class>/; GPUS (2) and SEEDS ("0", or "0 1 2") count too; options are passed on.
# The published batch is 192 per process on 2 GPUs, 384 images. It stays 384 with GPUS=1 and --update_freq 2,
# GPUS=4 and --batch_size 96, or GPUS=8 and --batch_size 48.
# The same command again resumes from the newest checkpoint.
source "$(dirname "$0")/common.sh"
for seed in ${SEEDS:-0}; do
  train none-wd0 "$seed" --weight_decay 0 --decay uniform "$@"
done
