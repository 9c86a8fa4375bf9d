"""A model's modules by the names and shapes of its weights alone: enough to analyse a file without the model's code."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay.matrices import HEAD_NAMES
from alphadecay.roles import role_of

# A module so named that has no bias is an embedding, if its weight has two dimensions.
EMBEDDING = re.compile(r".*emb(?:d|ed|edding).*|wte|wpe|shared|relative_attention_bias")
NO_EMBEDDING = frozenset({"embed_out"})  # GPT-NeoX's head
BUFFERS = frozenset({"attn_mask", "relative_position_index", "relative_coords_table"})
# Beside a fused projection these say that its rows may not be q, then k, then v (TinyViT, LeViT; MaxViT).
INTERLEAVED = ("attention_biases", "rel_pos")
ROLES = (
    "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o", "attn.proj",
    "mlp.gate", "mlp.up", "mlp.down", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
NO_NAMES = frozenset(dir(nn.Module())) | {"head_first", "why_not_measured", "pretrained_cfg"}  # a module's own
RESNET_ENDS = {"first_conv": "conv1", "classifier": "fc"}  # where nothing declares them


class Conv1D(nn.Module):
    """A transposed Linear, as in GPT-2: its weight has the shape (inputs, outputs)."""


class Skeleton(nn.Module):
    """Modules that hold a file's weights under their names; it computes nothing.

    Attributes:
        pretrained_cfg: The names of stem and head under timm's keys; None: their usual names hold.
    """

    pretrained_cfg: dict[str, Any] | None = None


class ConvolutionOfUnknownGroups(nn.Module):
    """A convolution in groups whose number is not known: its spectra cannot be told apart."""

    why_not_measured = "convolution in groups whose number a file of weights does not tell"


class ModuleOfUnknownKind(nn.Module):
    """What has weights of no kind that could be measured."""

    why_not_measured = "no weight of a Linear, Conv1D or Conv2d"


def skeleton(
    tensors: Mapping[str, Tensor], ends: dict[str, Any] | None = None, declared: Mapping[str, nn.Conv2d] | None = None
) -> Skeleton:
    """Modules with these weights, on which `alphadecay.analyze` says the same as on the model they are of.

    A weight of two dimensions is an embedding's, by its name, or a Linear's, or a Conv1D's where only its columns are
    as many as its bias; of four, a Conv2d's. Blocks come by number, and their modules by role. Buffers that are known
    are left out, and so is a head that equals an embedding: it is tied.

    Args:
        tensors: By name, as in a state dict. Those of fewer than two dimensions tell only the kind of their module.
        ends: "first_conv" and "classifier" as in timm's pretrained_cfg, where they are known.
        declared: Convolutions by name, where the model is known, for their groups. One that it does not have, with a
            weight of that shape, is of unknown groups and takes no part, if its input is narrower than the output of
            the convolution before it by a whole factor.
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
    for name in sorted(weights, key=_place):
        owner, _, leaf = name.rpartition(".")
        weight = weights[name]
        if owner.split(".")[-1] in HEAD_NAMES and any(_equal(weight, each) for each in embeddings):
            continue
        module = _module_at(root, owner, name, tensors, groups.get(owner, 1))
        module.register_parameter(leaf, nn.Parameter(weight))
    for module in root.modules():
        if any(hasattr(module, name) for name in INTERLEAVED):
            module.head_first = True  # type: ignore[assignment]
    return root


def _is_buffer(name: str, tensor: Tensor) -> bool:
    leaf = name.rpartition(".")[2]
    causal_mask = leaf == "bias" and tensor.ndim == 4 and tuple(tensor.shape[:2]) == (1, 1)
    return leaf in BUFFERS or causal_mask or not (tensor.is_floating_point() or tensor.is_complex())


def _is_embedding(name: str, tensors: Mapping[str, Tensor]) -> bool:
    owner, _, leaf = name.rpartition(".")
    module = owner.rpartition(".")[2]
    named_so = EMBEDDING.fullmatch(module) is not None and module not in NO_EMBEDDING
    return named_so and leaf == "weight" and tensors[name].ndim == 2 and f"{owner}.bias" not in tensors


def _equal(weight: Tensor, other: Tensor) -> bool:
    return weight.shape == other.shape and weight.dtype == other.dtype and torch.equal(weight, other)


def _place(name: str) -> tuple[Any, ...]:
    """What comes before blocks, then blocks by number, then the head; in a block by role."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    end = numbers[-1] + 1 if numbers else 0
    part_of_model = 2 if HEAD_NAMES & set(parts) else 1 if numbers else 0
    block = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts[:end])
    role = role_of(name.rpartition(".")[0])
    return part_of_model, block, ROLES.index(role) if role in ROLES else len(ROLES), parts[end:]


def _guessed_groups(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Groups of convolutions by shapes: all of one input channel a group, 0 where they are unknown."""
    groups: dict[str, int] = {}
    before: dict[str, int] = {}  # output channels of the convolution before, by block
    for name in sorted((name for name, weight in weights.items() if weight.ndim == 4), key=_place):
        owner = name.rpartition(".")[0]
        block = owner.removesuffix(".conv").rpartition(".")[0]
        out, inputs, *kernel = weights[name].shape
        wider = before.get(block, inputs)
        if inputs == 1:
            groups[owner] = out
        elif max(kernel) > 1 and wider > inputs and wider % inputs == 0 and out % (wider // inputs) == 0:
            groups[owner] = 0
        before[block] = out
    return groups


def _module_at(root: nn.Module, owner: str, name: str, tensors: Mapping[str, Tensor], groups: int) -> nn.Module:
    """The module that owns a parameter; it and those around it are made where they are missing."""
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
    """A module of the kind that has such a weight."""
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
