#!/usr/bin/env bash
# LLaMA on C4, the same weight decay for all: the row "Uniform".
#   DATA=/data/c4/en SIZES=60m bash scripts/llama_c4/uniform.sh
#   DATA=/data/c4/en SIZES=60m OPTIMIZER=adamw bash scripts/llama_c4/uniform.sh
# Published validation perplexity at base decay 1e-5 / 5e-6 / 1e-6 (adam) and 0.1 / 0.05 / 0.01 (adamw). Compare it with
# our perplexity_published: the published program computes it too low (docs/language.md).
#   adam   60M 32.39 / 32.56 / 33.03, 135M 22.99 / 23.14 / 24.14, 350M 17.12 / 16.74 / 17.50, 1B 15.36 / 14.66 / 15.03
#          six seeds of 135M: 22.97 ± 0.07 / 23.12 ± 0.03 / 24.12 ± 0.04
#   adamw  60M 31.95 / 32.31 / 32.66, 135M 23.32 / 23.81 / 24.28
# Cost and result here: not run here.
# The paper says a run takes 1.4 h (60M) or 5.6 h (135M) on A100 GPUs.
# It never ran larger decays, though AlphaDecay's are larger on average (about 2.2 to 3.6 times the base at the start):
# DECAYS="2e-5 3e-5" and, with adamw, DECAYS="0.2 0.3" are the missing baselines.
# The variables (DATA, SIZES, OPTIMIZER, DECAYS, SEEDS, GPUS, BATCH, PRECISION) are described in common.sh.
source "$(dirname "$0")/common.sh"
for seed in ${SEEDS:-0}; do
  for size in $SIZES; do
    for weight_decay in $DECAYS; do
      train "uniform-wd$weight_decay" "$size" "$seed" --weight_decay "$weight_decay" --decay uniform "$@"
    done
  done
done
