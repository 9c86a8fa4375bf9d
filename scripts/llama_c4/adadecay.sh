#!/usr/bin/env bash
# LLaMA on C4, more decay where the gradient is larger: the row "AdaDecay".
#   DATA=/data/c4/en SIZES=60m bash scripts/llama_c4/adadecay.sh
#   DATA=/data/c4/en SIZES=60m OPTIMIZER=adamw bash scripts/llama_c4/adadecay.sh
# Published validation perplexity at base decay 1e-5 / 5e-6 / 1e-6 (adam) and 0.1 / 0.05 / 0.01 (adamw). Compare it with
# our perplexity_published: the published program computes it too low (docs/language.md).
#   adam   60M 32.24 / 32.52 / 33.03, 135M 23.20 / 23.08 / 23.96, 350M 18.21 / 17.42 / 17.91, 1B 17.23 / 18.14 / 15.35
#          six seeds of 135M: 23.18 ± 0.05 / 23.07 ± 0.04 / 24.00 ± 0.03
#   adamw  60M 31.88 / 32.25 / 32.58, 135M 23.18 / 23.62 / 24.21
# Cost and result here: not run here.
# This is AdaDecay as the authors of AlphaDecay ran it, module by module. The original works entry by entry and needs
# decoupled decay: OPTIMIZER=adamw and --adadecay_scope entry.
# The variables (DATA, SIZES, OPTIMIZER, DECAYS, SEEDS, GPUS, BATCH, PRECISION) are described in common.sh.
source "$(dirname "$0")/common.sh"
for seed in ${SEEDS:-0}; do
  for size in $SIZES; do
    for weight_decay in $DECAYS; do
      train "adadecay-wd$weight_decay" "$size" "$seed" --weight_decay "$weight_decay" --decay adadecay \
        --decay_interval 500 "$@"
    done
  done
done
