#!/usr/bin/env bash
# Long tests that scripts/test.sh skips: repeated kill -9, whole comparisons, the whole quickstart, faults planted in the
# code that some test must notice, the oldest declared releases. Run it before a release, and after changes of the code
# that it tests; docs/reliability.md has its last result. About an hour on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh dev
.venv/bin/python -m pytest -q -m proof "$@"
.venv/bin/python tests/planted_faults.py
bash scripts/oldest.sh
