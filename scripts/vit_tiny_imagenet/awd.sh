#!/usr/bin/env bash
# ViT-Ti/16 on ImageNet-1k, 120 epochs of Adam, one decay for all that follows gradient and weights: the column "AWD".
#   DATA=/data/imagenet bash scripts/vit_tiny_imagenet/awd.sh
# Published: 65.21 % top-1 at weight decay 5e-6, 64.98 % at 1e-6 (single numbers; raw or EMA weights is not said).
# Cost and result here: not run here.
# DATA holds train/<class>/ and val/<class>/; GPUS (2) and SEEDS ("0", or "0 1 2") count too; options are passed on.
# The published batch is 192 per process on 2 GPUs, 384 images. It stays 384 with GPUS=1 and --update_freq 2,
# GPUS=4 and --batch_size 96, or GPUS=8 and --batch_size 48.
# Norms, biases, position and class tokens are decayed too, as published: --decay_norm_bias.
# The published program multiplies AWD's decay by 50 without a word; here that is --awd_scale.
# The same command again resumes from the newest checkpoint.
source "$(dirname "$0")/common.sh"
for seed in ${SEEDS:-0}; do
  for weight_decay in 5e-6 1e-6; do
    train "awd-wd$weight_decay" "$seed" --weight_decay "$weight_decay" --decay awd --awd_scale 50 "$@"
  done
done
