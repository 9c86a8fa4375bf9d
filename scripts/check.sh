#!/usr/bin/env bash
# The quick check for developers and the commit hook: format, lint, types, quick tests. Three minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh dev
bash scripts/lint.sh
.venv/bin/python -m pytest -q -m "not slow and not proof" -n auto --maxprocesses 8 --dist worksteal "$@"
