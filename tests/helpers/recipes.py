"""Matrices drawn from numpy's RandomState, as the golden values were made."""

import numpy as np
import torch
from torch import Tensor, nn


def draw(kind: str, shape: list[int], seed: int, df: float = 0, rank: int = 0, noise: float = 0) -> Tensor:
    random = np.random.RandomState(seed)
    if kind == "gaussian":
        values = random.standard_normal(shape) * 0.02
    elif kind == "student_t":
        values = random.standard_t(df, size=shape) * 0.02
    else:
        left, right = random.standard_normal((shape[0], rank)), random.standard_normal((rank, shape[1]))
        values = left @ right / np.sqrt(rank) * 0.02 + random.standard_normal(shape) * noise
    return torch.from_numpy(values.astype(np.float32))


def layer(weight: Tensor) -> nn.Module:
    """A Linear or Conv2d with this weight."""
    made = nn.Conv2d(1, 1, 1, bias=False) if weight.ndim == 4 else nn.Linear(1, 1, bias=False)
    made.weight = nn.Parameter(weight)
    return made


def model_of(**weights: Tensor) -> nn.ModuleDict:
    """A model whose modules carry these weights, by name."""
    return nn.ModuleDict({name: layer(weight) for name, weight in weights.items()})


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return draw("gaussian", [rows, columns], seed)


def block_model(depth: int = 2, width: int = 64) -> nn.Module:
    """Blocks of a square and a wide matrix with biases and norms, a stem and a head, under a ViT's names."""
    torch.manual_seed(0)
    blocks = nn.Sequential()
    for _ in range(depth):
        block = nn.Sequential()
        block.add_module("norm", nn.LayerNorm(width))
        block.add_module("proj", nn.Linear(width, width))
        block.add_module("fc1", nn.Linear(width, 4 * width))
        block.add_module("act", nn.GELU())
        block.add_module("fc2", nn.Linear(4 * width, width))
        blocks.append(block)
    model = nn.Sequential()
    model.add_module("patch_embed", nn.Linear(60, width))
    model.add_module("blocks", blocks)
    model.add_module("head", nn.Linear(width, 50))
    return model
