#!/usr/bin/env bash
# What takes long by nature and is left out of scripts/test.sh: many hits of kill -9, whole comparisons, the whole
# quickstart, faults planted in the code that some test must notice, the oldest declared releases. Run it before a
# release, and when what it proves was changed; docs/reliability.md has its last outcome. About an hour on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh dev
.venv/bin/python -m pytest -q -m proof "$@"
.venv/bin/python tests/planted_faults.py
bash scripts/oldest.sh
