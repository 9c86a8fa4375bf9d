"""Build parameter groups, the optimizer and the decay strategy, for both trainers."""

from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.optim import Optimizer

import alphadecay
from alphadecay.groups import Group
from alphadecay.schedule import DecaySchedule
from runtime.by_name import named_decays
from runtime.decay_options import DecayOptions
from runtime.errors import UserError
from runtime.optimizers import create_optimizer
from runtime.run_options import OptimizerOptions
from runtime.sharded import is_sharded_model
from runtime.timescale import require_decoupled


def build_optimizer(
    options: OptimizerOptions, decay: DecayOptions, model: nn.Module, layer_decay: float = 1.0, *, scaled: bool = False
) -> Optimizer:
    """Build the optimizer over groups with their own decay; the groups are the same for every strategy.

    Args:
        options: Of the optimizer.
        decay: Of the decay.
        model: On its device, and sharded if it is to be.
        layer_decay: As in `scale_layers`.
        scaled: Whether a GradScaler scales the loss (fp16).

    Raises:
        UserError: If there is no such optimizer, it rejects an option, it couples decay where it must not, or a name of
            --decay_only or --decay_multiplier matches no parameter.
    """
    groups = alphadecay.param_groups(
        model,
        decay.weight_decay,
        norm_bias=decay.decay_norm_bias,
        batchnorm=decay.batchnorm and decay.assigns,
        **named_decays(decay, model),
        **decay.selection(model),
    )
    if layer_decay < 1:
        groups = scale_layers(groups, model, layer_decay)
    plain = not scaled and not is_sharded_model(model)
    optimizer = create_optimizer(options, groups, decay.weight_decay, plain)
    require_decoupled(optimizer, decay, options.optimizer)
    return optimizer


def scale_layers(groups: list[Group], model: nn.Module, layer_decay: float) -> list[Group]:
    """Split groups by layer; each gets `lr_scale` = layer_decay ** (number of layers after it). Keeps their decay.

    Mirrors timm.optim.param_groups_layer_decay, without its change of weight decay.

    Raises:
        UserError: If the model does not assign its parameters to layers.
    """
    if not hasattr(model, "group_matcher"):
        raise UserError(f"--layer_decay {layer_decay:g}: {type(model).__name__} does not name its layers")
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    names = {id(p): name for name, p in model.named_parameters()}
    last = max(layers.values())
    scaled = []
    for group in groups:
        by_layer: dict[int, list[nn.Parameter]] = {}
        for p in group["params"]:
            by_layer.setdefault(layers.get(names[id(p)], last), []).append(p)
        for layer, parameters in sorted(by_layer.items()):
            name = group["decay_name"] if len(by_layer) == 1 else f"{group['decay_name'][:-1]}, layer {layer})"
            scaled.append(group | {"params": parameters, "decay_name": name, "lr_scale": layer_decay ** (last - layer)})
    return scaled


def build_decay(options: DecayOptions, model: nn.Module, optimizer: Any, seed: int) -> DecaySchedule:
    """Build the decay schedule that the options name, and attach it to the optimizer.

    It accepts the state of another strategy: `runtime/run_contract.py` has checked whether the run may change it.

    Raises:
        UserError: If no weight matrix of the model is adapted, or the optimizer has no weight decay.
    """
    build = getattr(alphadecay, options.strategy.builds)
    common = {**options.selection(model), "cautious": options.decay_cautious}
    try:
        decay = build(model, optimizer, **options.arguments(seed), **common)
    except ValueError as error:
        raise UserError(f"--decay {options.decay}: {error}") from error
    decay.takes_over = True
    return decay
