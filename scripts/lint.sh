#!/usr/bin/env bash
# Format, lint and types, without any test. Needs .venv: scripts/check.sh makes it.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
