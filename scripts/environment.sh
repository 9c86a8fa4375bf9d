#!/usr/bin/env bash
# Make .venv with this project, the trainers' packages and the given extras, or reuse an existing one.
#   bash scripts/environment.sh digits
# PYTHON=python3.12 selects the interpreter; TORCH="torch==2.7.0 torchvision==0.22.0" selects the releases.
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:?extras, such as digits or dev}"

fail() { echo "error: $*" >&2; exit 2; }

supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if supported "$candidate"; then echo "$candidate"; return; fi
  done
  fail "no ${PYTHON:-python3} of version 3.10 or newer found; install one or set PYTHON=/path/to/python3"
}

# Without an NVIDIA GPU, install the CPU builds of torch: a tenth of the download, from a separate index.
install_torch() {
  local wanted="${TORCH:-torch>=2.7 torchvision>=0.22}" index=https://download.pytorch.org/whl/cpu
  local packages; read -ra packages <<<"$wanted"
  if ! command -v nvidia-smi >/dev/null &&
    .venv/bin/python -c "import urllib.request as u; u.urlopen('$index/torch/', timeout=10)" 2>/dev/null; then
    .venv/bin/python -m pip install -q --index-url "$index" "${packages[@]}" && return
  fi
  .venv/bin/python -m pip install -q "${packages[@]}"
}

# Each line of the stamp has the extras that were installed, the checksum of pyproject.toml, and the folder.
stamp="${TORCH:-} $(cksum <pyproject.toml) $PWD"
for present in "$extras" dev; do # dev includes all other extras
  if [ -x .venv/bin/python ] && grep -qxF "$stamp $present" .venv/alphadecay-stamp 2>/dev/null; then exit 0; fi
done

echo "making the environment in .venv (extras: $extras); the first time this takes a few minutes" >&2
if ! { [ -x .venv/bin/python ] && supported .venv/bin/python; }; then
  python="$(find_python)"
  rm -rf .venv
  "$python" -m venv .venv || fail "$python cannot make virtual environments; on Debian: apt install python3-venv"
fi
install_torch
.venv/bin/python -m pip install -q -e ".[train,$extras]"
echo "$stamp $extras" >>.venv/alphadecay-stamp
