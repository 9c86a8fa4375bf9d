"""Optimizers by name: timm's, torch's own, and torch's Muon together with AdamW."""

import ast
import difflib
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from torch.optim import AdamW, Optimizer

from alphadecay.groups import Group, is_module
from alphadecay.optimizer_copies import NO_STEP, why_coupled
from alphadecay.step_hooks import innermost
from runtime.errors import UserError, did_you_mean
from runtime.run_options import MUON, TORCH, OptimizerOptions

FUSED = ("adam", "adamw", "sgd", "momentum")  # names of torch optimizers that have a fused kernel
# torch's fused SGD leaves its momentum uninitialised if GradScaler skips the first step, and does not support shards.
FUSED_WHERE_PLAIN = ("sgd", "momentum")
KERNELS = ("fused", "foreach", "capturable", "differentiable")
# Arguments that other options set.
ELSEWHERE = {
    "lr": "--lr", "weight_decay": "--weight_decay", "betas": "--opt_betas", "eps": "--opt_eps", "params": "the model",
}  # fmt: skip
NOT_FOR_TRAINING = ("Optimizer", "LBFGS", "SparseAdam")  # need a closure, or sparse gradients


def create_optimizer(options: OptimizerOptions, groups: list[Group], weight_decay: float, plain: bool) -> Optimizer:
    """Build the optimizer that the options name.

    Args:
        options: Of the optimizer.
        groups: Parameter groups, from `alphadecay.param_groups`.
        weight_decay: The base decay.
        plain: Whether weights are not sharded and the loss is not scaled.

    Raises:
        UserError: If there is no such optimizer, or it rejects an option.
    """
    name = options.optimizer.lower()
    build = _torch_optimizer if name.startswith(TORCH) else _timm_optimizer
    given = [f"--optimizer {options.optimizer}"]
    given += [f"--opt_betas {' '.join(f'{beta:g}' for beta in options.opt_betas)}"] if options.opt_betas else []
    given += [f"--opt_eps {options.opt_eps:g}"] if options.opt_eps is not None else []
    given += [f"--opt_kwargs {' '.join(options.opt_kwargs)}"] if options.opt_kwargs else []
    copies = [dict(group) for group in groups]  # optimizers write their defaults into groups
    try:
        optimizer = build(options, groups, weight_decay, plain)
        # Some values are only checked in a step, which has to work if it does without them.
        if options.opt_kwargs and (failure := _failure(optimizer)):
            if not _failure(build(replace(options, opt_kwargs=()), copies, weight_decay, plain)):
                raise ValueError(failure)
    except (TypeError, ValueError, AssertionError, RuntimeError, ModuleNotFoundError, LookupError) as error:
        raise UserError(f"{' '.join(given)}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"--optimizer {options.optimizer}: is not a torch optimizer")
    return optimizer


def _failure(optimizer: Any) -> str:
    """The error of a step on a small copy; empty if it succeeds."""
    reason = why_coupled(innermost(optimizer))
    return reason.partition(": ")[2] if reason.startswith(NO_STEP) else ""


def _timm_optimizer(options: OptimizerOptions, groups: list[Group], weight_decay: float, plain: bool) -> Any:
    name = options.optimizer.lower()
    if name not in list_optimizers():
        known = [str(known_name) for known_name in list_optimizers()]
        close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "-"
        raise UserError(f"--optimizer {options.optimizer}: timm has no such optimizer; close: {close}")
    if name == "sgd" and options.momentum == 0:
        name = "momentum"  # timm's sgd has Nesterov's momentum, which cannot be 0
    arguments = _kernel(name, options, plain)
    if options.opt_betas or options.opt_eps is not None or options.opt_kwargs:
        arguments |= _arguments(options, get_optimizer_class(name.split("_")[-1], bind_defaults=False), ("momentum",))
    return create_optimizer_v2(
        groups, opt=name, lr=options.lr, weight_decay=weight_decay, momentum=options.momentum, **arguments
    )


def _torch_optimizer(options: OptimizerOptions, groups: list[Group], weight_decay: float, plain: bool) -> Optimizer:
    classes = {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and name not in NOT_FOR_TRAINING
    }
    name = options.optimizer[len(TORCH) :]
    if name.lower() not in classes:
        known = ", ".join(kind.__name__ for kind in classes.values())
        raise UserError(f"--optimizer {options.optimizer}: torch has no such optimizer for training; it has {known}")
    kind = classes[name.lower()]
    if "weight_decay" not in inspect.signature(kind).parameters:
        raise UserError(f"--optimizer {options.optimizer}: has no weight decay")
    if options.optimizer.lower() == MUON:
        return _muon(options, kind, groups, weight_decay)
    arguments = _kernel(name.lower(), options, plain) | _arguments(options, kind)
    return kind(groups, lr=options.lr, weight_decay=weight_decay, **arguments)  # type: ignore[call-arg]


def _kernel(name: str, options: OptimizerOptions, plain: bool) -> dict[str, Any]:
    """Choose the fused kernel where it is exact and --opt_kwargs does not choose another."""
    chosen = any(word.partition("=")[0] in KERNELS for word in options.opt_kwargs)
    return {"fused": True} if name in FUSED and not chosen and (plain or name not in FUSED_WHERE_PLAIN) else {}


def _arguments(options: OptimizerOptions, kind: Callable[..., Any], others: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of --opt_betas, --opt_eps and --opt_kwargs; `others` are arguments that further options set."""
    return _named(options, kind) | _keywords(options, kind, others)


def _named(options: OptimizerOptions, kind: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of --opt_betas and --opt_eps, checked against the signature of the class."""
    parameters, values = inspect.signature(kind).parameters, dict[str, Any]()
    for name, option, value in (("betas", "--opt_betas", options.opt_betas), ("eps", "--opt_eps", options.opt_eps)):
        if value in (None, ()):
            continue
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        default = parameters[name].default if name in parameters else None
        if isinstance(default, tuple) != isinstance(value, tuple) or default is None:  # Adafactor's eps are two
            has = ", ".join(_known(kind, ()))
            raise UserError(f"{option} {shown}: {options.optimizer} has no {name}; its arguments are {has}")
        if isinstance(value, tuple) and len(default) != len(value):
            raise UserError(f"{option} {shown}: {options.optimizer} takes {len(default)} numbers")
        values[name] = value
    return values


def _keywords(options: OptimizerOptions, kind: Callable[..., Any], others: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of --opt_kwargs, checked against the signature of the class."""
    elsewhere = ELSEWHERE | {name: f"--{name}" for name in others}
    parameters, known, values = inspect.signature(kind).parameters, _known(kind, others), dict[str, Any]()
    for word in options.opt_kwargs:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UserError(f"--opt_kwargs {word}: expected KEY=VALUE")
        if name in elsewhere:
            raise UserError(f"--opt_kwargs {word}: give it as {elsewhere[name]}")
        if name not in known:
            near = f" ({close})" if (close := did_you_mean(name, known)) else ""
            problem = f"{options.optimizer} has no such argument{near}; it has {', '.join(known)}"
            raise UserError(f"--opt_kwargs {word}: {problem}")
        values[name] = _value(word, text, parameters[name].default)
    return values


def _known(kind: Callable[..., Any], others: Sequence[str]) -> list[str]:
    """The arguments of a class that --opt_kwargs may set."""
    return [name for name in inspect.signature(kind).parameters if name not in {*ELSEWHERE, *others, "args", "kwargs"}]


def _value(word: str, text: str, default: Any) -> Any:
    """A Python literal, or text; UserError if it is of another type than the argument's default."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f"--opt_kwargs {word}: must be True or False")
    if isinstance(default, int | float) and not isinstance(default, bool) and not number:
        raise UserError(f"--opt_kwargs {word}: must be a number")
    if isinstance(default, tuple) and not isinstance(value, tuple):
        raise UserError(f"--opt_kwargs {word}: must be a tuple, such as {default}")
    return value


def _muon(options: OptimizerOptions, kind: Any, groups: list[Group], weight_decay: float) -> "MuonWithAdamW":
    """Muon for the groups of one matrix, AdamW for the others at --adamw_lr; both schedules have the same shape."""
    scale = (options.adamw_lr or options.lr) / options.lr
    for group in groups:
        if is_module(group) and all(p.ndim == 2 for p in group["params"]):
            group["optimizer"] = "muon"
        else:
            group |= {"optimizer": "adamw", "lr_scale": group.get("lr_scale", 1.0) * scale}
    if all(group["optimizer"] == "adamw" for group in groups):
        raise UserError(f"--optimizer {options.optimizer}: the model has no matrix for Muon")
    muon, adamw = _keywords(options, kind), _named(options, AdamW)
    return MuonWithAdamW(groups, options.lr, weight_decay, muon=muon, adamw=adamw)


class MuonWithAdamW(Optimizer):
    """torch's Muon for some groups and torch's AdamW for the others, as one optimizer with one state.

    Args:
        groups: Parameter groups whose "optimizer" is "muon" (matrices only) or "adamw".
        lr: Learning rate of groups that have none.
        weight_decay: Decay of groups that have none.
        muon: Further arguments of `torch.optim.Muon`.
        adamw: Further arguments of `torch.optim.AdamW`.
    """

    def __init__(
        self, groups: list[Group], lr: float, weight_decay: float, *, muon: Mapping[str, Any], adamw: Mapping[str, Any]
    ) -> None:
        self._parts: dict[str, Optimizer] = {}
        for name, kind, arguments in (("muon", torch.optim.Muon, muon), ("adamw", AdamW, adamw)):
            own = [group for group in groups if group["optimizer"] == name]
            if own:  # each part checks its groups and fills in its defaults
                self._parts[name] = _emptied(kind(own, lr=lr, weight_decay=weight_decay, **arguments))
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of both, on the groups and the state of this optimizer."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for name, part in self._parts.items():
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            part.state = self.state
            part.step()
            _emptied(part)
        return loss


def _emptied(part: Optimizer) -> Optimizer:
    """A part without groups and state, which are the whole optimizer's, so that copies hold them once."""
    part.param_groups, part.state = [], defaultdict(dict)
    return part
