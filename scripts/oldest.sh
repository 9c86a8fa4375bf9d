#!/usr/bin/env bash
# The quick tests with the oldest release of each dependency that pyproject.toml declares, in a clone of its own.
#   bash scripts/oldest.sh [FOLDER]     the folder keeps the clone and its .venv; without it they go
# PYTHON chooses the interpreter: it must be one for which those releases have wheels, such as python3.11.
set -euo pipefail
cd "$(dirname "$0")/.."
copy="${1:-$(mktemp -d)}"
[ $# -gt 0 ] || trap 'rm -rf "$copy"' EXIT
[ -d "$copy/.git" ] && git -C "$copy" pull -q || git clone -q . "$copy"
cd "$copy"
grep -oE '"[A-Za-z0-9_.-]+>=[0-9.]+' pyproject.toml | grep -v setuptools | sed 's/^"//; s/>=/==/' >oldest.txt
PIP_CONSTRAINT="$PWD/oldest.txt" TORCH="torch torchvision" bash scripts/environment.sh dev
.venv/bin/python -m pip list 2>/dev/null | grep -iE '^(torch|torchvision|timm|numpy|transformers) '
.venv/bin/python -m pytest -q -m "not slow and not proof" -n auto --maxprocesses 4 --dist worksteal
