#!/usr/bin/env bash
# Check format, lint and types, without tests. Needs .venv, which scripts/check.sh makes.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
