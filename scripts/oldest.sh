#!/usr/bin/env bash
# Run the quick tests with the oldest release of each dependency that pyproject.toml declares, in a separate clone.
#   bash scripts/oldest.sh [FOLDER]     FOLDER keeps the clone and its .venv; without FOLDER they are deleted
# PYTHON selects the interpreter. Those releases need wheels for it: python3.11, for example.
set -euo pipefail
cd "$(dirname "$0")/.."
copy="${1:-$(mktemp -d)}"
[ $# -gt 0 ] || trap 'rm -rf "$copy"' EXIT
if [ -d "$copy/.git" ]; then git -C "$copy" pull -q; else git clone -q . "$copy"; fi
cd "$copy"
"${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install -q uv
.venv/bin/uv pip install -q --python .venv --resolution lowest-direct -e ".[dev]"
.venv/bin/uv pip list --python .venv | grep -E '^(torch|torchvision|timm|numpy|transformers) '
.venv/bin/python -m pytest -q -m "not slow and not proof" -n auto --maxprocesses 4 --dist worksteal \
  -W default # newer releases of indirect dependencies warn about the oldest ones
