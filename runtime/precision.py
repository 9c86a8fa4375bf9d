"""How exact and how repeatable the device computes: torch's global switches, set once before anything is built."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from runtime.errors import UserError
from runtime.run_options import RunOptions


def prepare_environment(options: RunOptions) -> None:
    """Set what must be in the environment before CUDA starts."""
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def set_precision(options: RunOptions, device: torch.device) -> None:
    """Let the device compute as --tf32 and --deterministic say.

    TF32 keeps the range of float32 and rounds the factors of products to 10 bits; only NVIDIA GPUs have it. Spectra,
    from which decays are assigned, come from products in float64 either way.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = options.tf32
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


@contextmanager
def nondeterminism_as_user_error(options: RunOptions) -> Iterator[None]:
    """Turn torch's error about a missing deterministic algorithm into a UserError, with --deterministic."""
    try:
        yield
    except RuntimeError as error:
        if options.deterministic and "deterministic" in str(error):
            raise UserError(f"--deterministic: {str(error).partition(', but')[0]}") from error
        raise
