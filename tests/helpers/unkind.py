"""A small net of several shapes, and steps of it."""

import torch
from torch import nn

WIDTHS = (64, 64, 128, 256)


def net(dtype=torch.float32, widths=WIDTHS):
    torch.manual_seed(0)
    shapes = zip(widths, (*widths[1:], 64), strict=True)
    return nn.Sequential(*[nn.Linear(a, b, dtype=dtype) for a, b in shapes])


def adamw(model, decay=0.1, **options):
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-2, "weight_decay": decay} | options)


def take_steps(model, optimizer, first, last):
    for step in range(first, last):
        optimizer.zero_grad()
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
        model(x).square().mean().backward()
        optimizer.step()


def decays(optimizer):
    return {group["decay_name"]: group["weight_decay"] for group in optimizer.param_groups}
