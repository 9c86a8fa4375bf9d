#!/usr/bin/env bash
# The tests of CI: the quick check and the slow tests. Makes .venv if it is missing. Ten minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh dev
bash scripts/lint.sh
.venv/bin/python -m pytest -q -m "not proof" -n auto --maxprocesses 4 --dist worksteal "$@"
