"""Split the fused weight of an attention projection into q, k and v, and fuse them again."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from alphadecay.build_order import is_distributed, refuse_held, refuse_wrapped

PARTS = ("q", "k", "v")
FUSED_NAMES = frozenset({"qkv", "c_attn"})  # projections whose rows (columns of a Conv1D) are q, then k, then v
# Attributes of attention modules that use these names, but mix q, k and v per head (TinyViT, MaxViT, GPTBigCode).
INTERLEAVED = ("key_dim", "head_first", "multi_query")


class Concatenation(nn.Module):
    """The parametrization of a fused weight: q, k and v, one after the other along a dimension."""

    part_names = PARTS  # `find_matrices` names the parts by it

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The fused weight of parts of equal shape (rows, columns); it requires a gradient if they do, even in no_grad.

        Shape (3 rows, columns) if dim is 0, (rows, 3 columns) if it is 1; dtype of the parts.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch.cat((q, k, v), self.dim)
        with torch.inference_mode(False), torch.no_grad():
            weight = torch.cat((q, k, v), self.dim)
            # Without it torch.matmul would use another kernel, with other rounding.
            return weight.requires_grad_(q.requires_grad)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The three parts of a weight, shape as that of `forward`; in its memory if they are contiguous there."""
        return tuple(part.contiguous() for part in weight.chunk(3, self.dim))


def split_qkv(model: nn.Module) -> nn.Module:
    """Split the weight of each fused attention projection into q, k and v, in place.

    `analyze`, `param_groups` and the decay schedules then see three matrices, such as blocks.0.attn.q, .k and .v, so
    that each has its own spectrum, decay and optimizer state. Outputs remain bitwise identical. Biases remain fused.
    Projections that are split already are not changed.

    When to call it: on the plain model, after its weights were loaded, and before the moving average,
    DistributedDataParallel, fully_shard, torch.compile and the optimizer are built. A moving average is a separate copy
    of the model. If it was made before the split, it still works if it reads `state_dict()`, and raises an error if it
    reads `parameters()`.

    What is split: a Linear or transformers Conv1D named qkv or c_attn whose output is q, then k, then v, of equal
    size, as in timm's ViT, DeiT, BEiT, EVA, Swin and most others, and in GPT-2.

    What is not split:

    - projections of other widths: grouped queries, 2 of the 3 parts
    - projections that mix q, k and v per head: TinyViT, MaxViT, GPTBigCode
    - convolutions, tied weights, modules with other parametrizations

    Checkpoints: `state_dict()` and `load_state_dict()` keep the names and order of the fused model. Writing to the
    tensors that `state_dict()` returns, as timm's ModelEmaV3 does, writes to the model. If this is impossible (Conv1D,
    whose parts are columns), writing raises RuntimeError. Under FSDP2 such writes are lost, so averages must use
    `parameters()`.

    What no longer works: writing into a projection's `weight` in place (assign to it instead) and pickling the module
    (call `merge_qkv` first).

    Args:
        model: Any plain module.

    Returns:
        The same model.

    Raises:
        ValueError: If the model is wrapped, averaged, compiled or sharded, an optimizer or DistributedDataParallel
            holds a weight that would be split, or there is nothing to split (the message has the model's class).

    Example:
        >>> import torch, alphadecay
        >>> block = torch.nn.ModuleDict({"qkv": torch.nn.Linear(64, 192), "proj": torch.nn.Linear(64, 64)})
        >>> model = alphadecay.split_qkv(torch.nn.ModuleDict({"attn": block}))
        >>> [record.name for record in alphadecay.analyze(model)]
        ['attn.q', 'attn.k', 'attn.v', 'attn.proj']
        >>> list(model.state_dict())
        ['attn.qkv.weight', 'attn.qkv.bias', 'attn.proj.weight', 'attn.proj.bias']
    """
    refuse_wrapped(model, "split_qkv")
    fused = list(_fused_projections(model))
    if not fused and not any(is_split(module) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has no fused qkv to split: no Linear or Conv1D named "
            f"{' or '.join(sorted(FUSED_NAMES))} whose output is q, k and v of equal size, one after the other"
        )
    refuse_held({id(module.weight): name for name, module in fused})
    for _, module in fused:
        _split(module)
    return model


def merge_qkv(model: nn.Module) -> nn.Module:
    """Undo `split_qkv`, in place: the fused weights are bitwise identical.

    They are new parameters without gradients: an optimizer that was built before does not hold them. A model without
    split projections is not changed.

    Args:
        model: A plain module.

    Returns:
        The same model.

    Raises:
        ValueError: If the model is wrapped, compiled or sharded.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.ModuleDict({"qkv": torch.nn.Linear(64, 192)})
        >>> before = model["qkv"].weight.clone()
        >>> model = alphadecay.merge_qkv(alphadecay.split_qkv(model))
        >>> torch.equal(model["qkv"].weight, before)
        True
    """
    refuse_wrapped(model, "merge_qkv", "on the plain model, not on or inside")
    for module in list(model.modules()):
        if not _has_parts(module):
            continue
        parts = _parts(module)
        weight = _shared(parts, _dim(module))
        if weight is None:
            weight = torch.cat([part.detach() for part in parts], _dim(module))
        _remove_hooks(module)
        # torch's remove_parametrizations would delete the property from a class that deep copies share.
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        others = dict(module._parameters)
        module._parameters.clear()
        module.register_parameter("weight", nn.Parameter(weight, any(part.requires_grad for part in parts)))
        module._parameters.update(others)  # the weight is first again
    return model


def _split(module: nn.Module) -> None:
    parametrize.register_parametrization(module, "weight", Concatenation(_dim(module)))
    module.register_state_dict_post_hook(_save_fused)
    module.register_load_state_dict_pre_hook(_load_fused)


def is_split(module: nn.Module) -> bool:
    """Whether a module is the list that holds q, k and v of a split projection, as original0 to original2."""
    return isinstance(module, ParametrizationList) and len(module) == 1 and isinstance(module[0], Concatenation)


def _has_parts(module: nn.Module) -> bool:
    """Whether a module is a split projection."""
    parametrizations = getattr(module, "parametrizations", None)
    return isinstance(parametrizations, nn.ModuleDict) and any(map(is_split, parametrizations.values()))


def _fused_projections(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each projection that can be split."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for owner_name, owner in model.named_modules():
        if any(getattr(owner, name, False) for name in INTERLEAVED):
            continue
        for name, module in owner.named_children():
            if name in FUSED_NAMES and _is_fused(module, owner) and owners[id(module.weight)] == 1:
                yield f"{owner_name}.{name}".lstrip("."), module


def _is_fused(module: nn.Module, owner: nn.Module) -> bool:
    """Whether a third of the output is as wide as the input, or as the input of the owner's output projection."""
    linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    if not linear or parametrize.is_parametrized(module):
        return False
    weight = module.weight
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or not weight.is_floating_point():
        return False
    dim = _dim(module)
    outputs, inputs = weight.shape[dim], weight.shape[1 - dim]
    proj = getattr(owner, "proj", None)
    return outputs in (3 * inputs, 3 * proj.in_features if isinstance(proj, nn.Linear) else 0)


def _dim(module: nn.Module) -> int:
    """The dimension of the weight along which q, k and v are concatenated: that of the outputs."""
    return 0 if isinstance(module, nn.Linear) else 1


def _parts(module: nn.Module) -> list[nn.Parameter]:
    originals = module.parametrizations.weight  # type: ignore[union-attr]
    return [getattr(originals, f"original{i}") for i in range(3)]


def _save_fused(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """Replace the parts in a state dict by the fused weight, at its place in a fused model: before the bias."""
    saved = [state_dict.pop(f"{prefix}parametrizations.weight.original{i}") for i in range(3)]
    names = [f"{prefix}{name}" for name in (*module._parameters, *module._buffers)]
    later = {name: state_dict.pop(name) for name in names if name in state_dict}
    keeps_vars = isinstance(saved[0], nn.Parameter)
    state_dict[f"{prefix}weight"] = module.weight if keeps_vars else _as_one(_parts(module), _dim(module))
    state_dict.update(later)


def _load_fused(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    metadata: dict[str, Any],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Split a fused weight of a state dict into parts to load; if it is missing or does not fit, they do not change."""
    parts, dim = _parts(module), _dim(module)
    shape = torch.Size(3 * side if i == dim else side for i, side in enumerate(parts[0].shape))
    name = f"{prefix}weight"
    weight = state_dict.pop(name, None)
    loaded: Sequence[Tensor] = parts
    if weight is None:
        missing.append(name)
    elif weight.shape != shape:
        errors.append(f"size mismatch for {name}: the checkpoint has {tuple(weight.shape)}, the model {tuple(shape)}.")
    else:
        loaded = [_like(own, part) for own, part in zip(parts, weight.detach().chunk(3, dim), strict=True)]
    state_dict.update({f"{prefix}parametrizations.weight.original{i}": part for i, part in enumerate(loaded)})


def _like(own: nn.Parameter, part: Tensor) -> Tensor:
    """A part to load: contiguous, and distributed over ranks if the model's own part, of the same shape, is."""
    if not is_distributed(own) or is_distributed(part):
        return part.contiguous()
    from torch.distributed.tensor import distribute_tensor

    like: Any = own
    return distribute_tensor(part.to(own.device), like.device_mesh, like.placements)


def _remove_hooks(module: nn.Module) -> None:
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in (_save_fused, _load_fused):
                del hooks[key]


def _as_one(parts: Sequence[nn.Parameter], dim: int) -> Tensor:
    """The fused weight: in the parts' own memory if possible, else a copy that cannot be written to."""
    if is_distributed(parts[0]):  # sharded as its parts are; inference mode, as below, does not work for DTensors
        q: Any = parts[0]
        whole: Any = torch.cat([part.detach() for part in parts], dim)
        return whole.redistribute(q.device_mesh, q.placements)
    shared = _shared(parts, dim)
    if shared is not None:
        return shared
    with torch.inference_mode():  # writing in place, as moving averages do, raises an error instead of being lost
        return torch.cat([part.detach() for part in parts], dim)


def _shared(parts: Sequence[nn.Parameter], dim: int) -> Tensor | None:
    """The fused weight, shape (3 rows, columns), in the parts' memory; parts that a deep copy or move separated are
    first copied into one memory.

    None if q, k and v are columns, or if their memory is shared with others (a flat buffer, other processes).
    """
    if dim != 0 or not all(type(part) is nn.Parameter and part.is_contiguous() for part in parts):
        return None
    q = parts[0]
    memory, offset = q.untyped_storage().data_ptr(), q.storage_offset()
    together = all(
        part.untyped_storage().data_ptr() == memory and part.storage_offset() == offset + i * q.numel()
        for i, part in enumerate(parts)
    )
    if not together:
        if not all(_owns_memory(part) for part in parts):
            return None
        with torch.inference_mode(False):
            joined = torch.cat([part.detach() for part in parts])
            for part, place in zip(parts, joined.chunk(3), strict=True):
                part.data = place
    return q.detach().as_strided((3 * len(q), *q.shape[1:]), q.stride())


def _owns_memory(part: Tensor) -> bool:
    """Whether a tensor, of any shape, shares its memory with nothing else."""
    alone = part.untyped_storage().nbytes() == part.numel() * part.element_size()
    return alone and not (part.device.type == "cpu" and part.is_shared())
