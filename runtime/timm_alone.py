"""Imports timm without wandb. Import it before timm, which imports wandb if it is installed: half a second.

Only a run with --enable_wandb needs wandb, and imports it itself.
"""

import sys

import runtime.openmp  # noqa: F401  timm imports torch

if not {"wandb", "timm"} & set(sys.modules):
    sys.modules["wandb"] = None  # type: ignore[assignment]  # importing it now raises ModuleNotFoundError
    try:
        import timm.utils  # noqa: F401
    finally:
        del sys.modules["wandb"]
