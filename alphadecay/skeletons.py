"""Build a model's modules from the names and shapes of its weights, to analyse a file without the model's code."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay.matrices import HEAD_NAMES
from alphadecay.roles import role_of

# A module with such a name and a two-dimensional weight is an embedding if it has no bias.
EMBEDDING = re.compile(r".*emb(?:d|ed|edding).*|wte|wpe|shared|relative_attention_bias")
NO_EMBEDDING = frozenset({"embed_out"})  # GPT-NeoX's head
BUFFERS = frozenset({"attn_mask", "relative_position_index", "relative_coords_table"})
# Weights of attention modules whose fused rows may not be q, then k, then v (TinyViT and LeViT; MaxViT).
INTERLEAVED = ("attention_biases", "rel_pos")
ROLES = (
    "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o", "attn.proj",
    "mlp.gate", "mlp.up", "mlp.down", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
NO_NAMES = frozenset(dir(nn.Module())) | {"head_first", "why_not_measured", "pretrained_cfg"}  # modules use them
RESNET_ENDS = {"first_conv": "conv1", "classifier": "fc"}  # stem and head, if nothing declares them


class Conv1D(nn.Module):
    """A transposed Linear, as in GPT-2: its weight has shape (inputs, outputs)."""


class Skeleton(nn.Module):
    """Modules that hold a file's weights under their names, without computing anything.

    Attributes:
        pretrained_cfg: The names of stem and head under timm's keys; None: the usual names.
    """

    pretrained_cfg: dict[str, Any] | None = None


class ConvolutionOfUnknownGroups(nn.Module):
    """A grouped convolution whose number of groups is unknown, and so the shape of its matrices."""

    why_not_measured = "grouped convolution whose number of groups is not in the file"


class ModuleOfUnknownKind(nn.Module):
    """A module whose weights cannot be measured."""

    why_not_measured = "no weight of a Linear, Conv1D or Conv2d"


def skeleton(
    tensors: Mapping[str, Tensor], ends: dict[str, Any] | None = None, declared: Mapping[str, nn.Conv2d] | None = None
) -> Skeleton:
    """Build modules with these weights, for which `alphadecay.analyze` returns the same as for the original model.

    A weight with four dimensions makes a Conv2d. One with two dimensions makes an embedding if its name says so, a
    Conv1D if its bias has as many entries as it has columns, but not rows, and else a Linear. Blocks are in order of
    their numbers, their modules in order of roles. Known buffers are left out, and so is a head that equals an
    embedding, because it is tied.

    Args:
        tensors: By name, as in a state dict, each of any shape. Those with fewer than two dimensions only help to
            find the types of modules.
        ends: "first_conv" and "classifier" as in timm's pretrained_cfg, if they are known.
        declared: Convolutions of the model by name, if it is known, for their numbers of groups. If a convolution is
            not among them with the same shape, its number is guessed, or unknown, so that the convolution is skipped;
            see `_guessed_groups`.
    """
    weights = {name: tensor for name, tensor in tensors.items() if tensor.ndim >= 2 and not _is_buffer(name, tensor)}
    root = Skeleton()
    if ends is None and {"conv1.weight", "fc.weight"} <= set(weights):
        ends = RESNET_ENDS
    root.pretrained_cfg = ends
    groups = _guessed_groups(weights)
    for name, convolution in (declared or {}).items():
        if (weight := weights.get(f"{name}.weight")) is not None and weight.shape == convolution.weight.shape:
            groups[name] = convolution.groups
    embeddings = [w for name, w in weights.items() if _is_embedding(name, tensors)]
    for name in sorted(weights, key=_sort_key):
        owner, _, leaf = name.rpartition(".")
        weight = weights[name]
        if owner.split(".")[-1] in HEAD_NAMES and any(_equal(weight, embedding) for embedding in embeddings):
            continue
        module = _module_at(root, owner, name, tensors, groups.get(owner, 1))
        module.register_parameter(leaf, nn.Parameter(weight))
    for module in root.modules():
        if any(hasattr(module, name) for name in INTERLEAVED):
            module.head_first = True  # type: ignore[assignment]
    return root


def _is_buffer(name: str, tensor: Tensor) -> bool:
    """Whether a tensor, of any shape, is a known buffer, or not floating-point."""
    leaf = name.rpartition(".")[2]
    causal_mask = leaf == "bias" and tensor.ndim == 4 and tuple(tensor.shape[:2]) == (1, 1)
    return leaf in BUFFERS or causal_mask or not (tensor.is_floating_point() or tensor.is_complex())


def _is_embedding(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the weight of this name is an embedding's; tensors have any shape."""
    owner, _, leaf = name.rpartition(".")
    module = owner.rpartition(".")[2]
    has_such_name = EMBEDDING.fullmatch(module) is not None and module not in NO_EMBEDDING
    return has_such_name and leaf == "weight" and tensors[name].ndim == 2 and f"{owner}.bias" not in tensors


def _equal(weight: Tensor, other: Tensor) -> bool:
    return weight.shape == other.shape and weight.dtype == other.dtype and torch.equal(weight, other)


def _sort_key(name: str) -> tuple[Any, ...]:
    """Sorts names: first modules outside of blocks, then blocks by number, then the head; within a block by role."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    end = numbers[-1] + 1 if numbers else 0
    part_of_model = 2 if HEAD_NAMES & set(parts) else 1 if numbers else 0
    block = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts[:end])
    role = role_of(name.rpartition(".")[0])
    return part_of_model, block, ROLES.index(role) if role in ROLES else len(ROLES), parts[end:]


def _guessed_groups(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers of groups of convolutions, guessed from weights of shape (out, in / groups, height, width).

    With one input channel per group a convolution counts as depthwise. The number is unknown, 0, if the kernel is
    larger than 1 x 1 and the preceding convolution of the block has k times as many outputs as this one has inputs,
    for a whole k > 1 that also divides this one's outputs.
    """
    groups: dict[str, int] = {}
    preceding: dict[str, int] = {}  # output channels of the preceding convolution, by block
    for name in sorted((name for name, weight in weights.items() if weight.ndim == 4), key=_sort_key):
        owner = name.rpartition(".")[0]
        block = owner.removesuffix(".conv").rpartition(".")[0]
        out, inputs, *kernel = weights[name].shape
        wider = preceding.get(block, inputs)
        if inputs == 1:
            groups[owner] = out
        elif max(kernel) > 1 and wider > inputs and wider % inputs == 0 and out % (wider // inputs) == 0:
            groups[owner] = 0
        preceding[block] = out
    return groups


def _module_at(root: nn.Module, owner: str, name: str, tensors: Mapping[str, Tensor], groups: int) -> nn.Module:
    """The module that owns the tensor of this name (any shape); it and its parents are made if they are missing."""
    module = root
    parts = owner.split(".") if owner else []
    for part in [*parts, name.rpartition(".")[2]]:
        if not part or part in NO_NAMES:
            raise ValueError(f"a weight is named {name!r}, which no module can hold")
    for i, part in enumerate(parts):
        child = module._modules.get(part)
        if child is None:
            child = _module_for(name, tensors, groups) if i == len(parts) - 1 else nn.Module()
            module.add_module(part, child)
        module = child
    return module


def _module_for(name: str, tensors: Mapping[str, Tensor], groups: int) -> nn.Module:
    """A new module of the type that has such a weight; tensors have any shape."""
    owner, _, leaf = name.rpartition(".")
    weight = tensors[name]
    if leaf != "weight":
        return nn.Module()
    if weight.ndim not in (2, 4):
        return ModuleOfUnknownKind()
    if weight.ndim == 4:
        if not groups or len(weight) % groups:
            return ConvolutionOfUnknownGroups()
        out, inputs, height, width = weight.shape
        return nn.Conv2d(inputs * groups, out, (height, width), groups=groups, bias=False, device="meta")
    if _is_embedding(name, tensors):
        return nn.Embedding(len(weight), weight.shape[1], device="meta")
    bias = tensors.get(f"{owner}.bias")
    rows, columns = weight.shape
    if bias is not None and bias.ndim == 1 and len(bias) == columns != rows:
        return Conv1D()
    return nn.Linear(columns, rows, bias=False, device="meta")
