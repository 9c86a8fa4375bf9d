#!/usr/bin/env bash
# Train a small ViT on scikit-learn's handwritten digits with AlphaDecay, from installing to a table of results.
# Cost: about 100 s on 2 CPU cores, after installing.  Result: docs/results.md.
# Options are passed to main.py: bash scripts/quickstart.sh --decay uniform --output_dir runs/uniform
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh digits
exec .venv/bin/python main.py --data_set digits --input_size 32 \
  --model vit_tiny_patch16_224 --model_kwargs patch_size=8 embed_dim=128 depth=6 num_heads=4 --drop_path 0.05 \
  --batch_size 32 --epochs 40 --warmup_epochs 4 --optimizer adamw --lr 1e-3 \
  --weight_decay 0.05 --decay alphadecay --decay_interval 50 \
  --aa none --color_jitter 0 --reprob 0 --mixup 0.2 --cutmix 0 \
  --model_ema --model_ema_decay 0.995 --model_ema_warmup --model_ema_eval --num_workers 0 \
  --output_dir runs/quickstart --overwrite "$@"
