#!/usr/bin/env bash
# What CI runs: the quick check, then the slow tests. Makes .venv first where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/check.sh
OMP_WAIT_POLICY=passive .venv/bin/python -m pytest -q -m "slow and not proof" -n auto --maxprocesses 4 \
  --dist worksteal "$@"
