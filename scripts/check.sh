#!/usr/bin/env bash
# The quick check that the commit hook, developers and CI share: format, lint, types, quick tests.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh dev
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
# In parallel, file by file; threads that wait do not spin, for they would take the cores from other processes.
OMP_WAIT_POLICY=passive .venv/bin/python -m pytest -q -m "not slow and not proof" -n auto --maxprocesses 8 \
  --dist loadfile "$@"
