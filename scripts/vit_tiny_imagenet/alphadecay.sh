#!/usr/bin/env bash
# ViT-Ti/16 on ImageNet-1k, 120 epochs of Adam, module-wise weight decay: the column "AlphaDecay".
#   DATA=/data/imagenet bash scripts/vit_tiny_imagenet/alphadecay.sh
# Published: 67.40 % top-1 at weight decay 5e-6 between 0.6666 and 3 times the base, 67.73 % at 1e-6 between 0.6666
# and 5 times (single numbers; raw or EMA weights is not said).  Cost and result here: not run here.
# DATA holds train/<class>/ and val/<class>/; GPUS (2) and SEEDS ("0", or "0 1 2") count too; options are passed on.
# The published batch is 192 per process on 2 GPUs, 384 images. It stays 384 with GPUS=1 and --update_freq 2,
# GPUS=4 and --batch_size 96, or GPUS=8 and --batch_size 48.
# Norms, biases, position and class tokens are decayed too, as published: --decay_norm_bias.
# Decays are refreshed every 500 steps, as the paper and the published command say. The published program acts once an
# epoch whatever the command says: --decay_interval 3336, the steps of an epoch of 1,281,167 images.
# The same command again resumes from the newest checkpoint.
source "$(dirname "$0")/common.sh"
for seed in ${SEEDS:-0}; do
  for setting in "5e-6 3" "1e-6 5"; do
    read -r weight_decay high <<<"$setting"
    train "alphadecay-wd$weight_decay" "$seed" --weight_decay "$weight_decay" --decay alphadecay \
      --decay_interval 500 --decay_low 0.6666 --decay_high "$high" "$@"
  done
done
