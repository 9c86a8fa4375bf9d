"""timm without wandb. To be imported before timm, which imports wandb wherever it is installed: half a second.

Only a run with --enable_wandb needs wandb, and imports it itself.
"""

import sys

import runtime.openmp  # noqa: F401  timm brings torch

if not {"wandb", "timm"} & set(sys.modules):
    sys.modules["wandb"] = None  # type: ignore[assignment]  # to whoever imports it now it is not installed
    try:
        import timm.utils  # noqa: F401
    finally:
        del sys.modules["wandb"]
