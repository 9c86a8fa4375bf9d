"""Runs a printed command of the published language program (docs/why_weight_decay.md)."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from language import LANGUAGE  # noqa: E402
from published import main  # noqa: E402

main(LANGUAGE)
