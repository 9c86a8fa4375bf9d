#!/usr/bin/env bash
# LLaMA on C4, no weight decay: the row "WD=0".
#   DATA=/data/c4/en SIZES=60m bash scripts/llama_c4/none.sh
#   DATA=/data/c4/en SIZES=60m OPTIMIZER=adamw bash scripts/llama_c4/none.sh
# Published validation perplexity. Compare it with our perplexity_published: the published program computes it too low
# (docs/language.md).
#   adam   60M 33.23, 135M 24.60 (six seeds: 24.55 ± 0.07), 350M 18.62, 1B 16.11
#   adamw  60M 32.73, 135M 24.39
# Cost and result here: not run here.
# The variables (DATA, SIZES, OPTIMIZER, DECAYS, SEEDS, GPUS, BATCH, PRECISION) are described in common.sh.
source "$(dirname "$0")/common.sh"
for seed in ${SEEDS:-0}; do
  for size in $SIZES; do
    train none "$size" "$seed" --weight_decay 0 --decay uniform "$@"
  done
done
