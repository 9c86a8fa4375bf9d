#!/usr/bin/env bash
# The quick check that the commit hook, developers and CI share: format, lint, types, quick tests.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh dev
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/python -m pytest -q -m "not slow" "$@"
