#!/usr/bin/env bash
# Everything that must hold: the quick check, then the slow tests. Makes .venv first where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh dev
bash scripts/check.sh
.venv/bin/python -m pytest -q -m slow "$@"
