#!/usr/bin/env bash
# LLaMA on C4, one decay for all that follows gradient and weights: the row "AWD".
#   DATA=/data/c4/en SIZES=60m bash scripts/llama_c4/awd.sh
#   DATA=/data/c4/en SIZES=60m OPTIMIZER=adamw bash scripts/llama_c4/awd.sh
# Published validation perplexity at base decay 1e-5 / 5e-6 / 1e-6 (adam) and 0.1 / 0.05 / 0.01 (adamw). Compare it with
# our perplexity_published: the published program computes it too low (docs/language.md).
#   adam   60M 33.78 / 33.74 / 33.74, 135M 24.25 / 24.45 / 24.53, 350M 18.32 / 18.55 / 18.79, 1B 16.03 / 16.22 / 16.38
#          six seeds of 135M: 24.13 ± 0.15 / 24.46 ± 0.07 / 24.53 ± 0.03
#   adamw  60M 32.58 / 32.67 / 32.67, 135M 24.30 / 24.35 / 24.41
# Cost and result here: not run here.
# The published program multiplies AWD's decay by 100 without a word; here that is --awd_scale.
# The variables (DATA, SIZES, OPTIMIZER, DECAYS, SEEDS, GPUS, BATCH, PRECISION) are described in common.sh.
source "$(dirname "$0")/common.sh"
for seed in ${SEEDS:-0}; do
  for size in $SIZES; do
    for weight_decay in $DECAYS; do
      train "awd-wd$weight_decay" "$size" "$seed" --weight_decay "$weight_decay" --decay awd --awd_scale 100 "$@"
    done
  done
done
