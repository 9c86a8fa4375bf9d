"""Find the weight matrices of a model: their names, their roles, and why some of them are skipped."""

import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from alphadecay.roles import role_of

MIN_EIGENVALUES = 50  # published threshold: shorter spectra have no usable tail
INCLUDABLE = ("stem", "head", "frozen")
FROZEN, LAZY = "frozen", "not initialised yet (lazy)"  # reasons that may no longer apply later in training

# Usual names of input and output layers, for models that do not declare these layers.
STEM_NAMES = frozenset({"patch_embed", "patch_embedding", "conv_stem", "stem"})
HEAD_NAMES = frozenset({"head", "head_dist", "lm_head", "embed_out", "classifier", "score"})
# Parts of names that wrappers add; the plain model does not have them.
WRAPPER_PARTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@dataclass(frozen=True)
class Matrix:
    """One weight of two or more dimensions, and whether its decay is adapted."""

    name: str  # name of its module in the plain model, such as blocks.0.attn.qkv
    role: str  # what the module does in its block, such as attn.qkv
    weight: Tensor  # the parameter, shape (rows, columns, *kernel); of a sharded one, the whole value once gathered
    reason: str  # why it is skipped; empty if it is adapted
    kind: str  # "linear", "conv2d" or "other"
    groups: int = 1  # groups of a convolution: each kernel position has one matrix per group
    place: tuple[nn.Module, str] | None = None  # the module that holds the weight, and the weight's name in it

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight; empty while it is not initialised."""
        return () if is_lazy(self.weight) else tuple(self.weight.shape)

    @property
    def form(self) -> tuple[int, int, int]:
        """(number, rows, columns) of the matrices in the weight; zeros if the kind is "other"."""
        if self.kind == "other" or not self.shape:
            return 0, 0, 0
        rows, columns, *kernel = self.shape
        positions = kernel[0] * kernel[1] if kernel else 1
        return positions * self.groups, rows // self.groups, columns

    @property
    def eigenvalue_count(self) -> int:
        """Length of the spectrum: the smaller side, times kernel positions and groups of a convolution."""
        count, rows, columns = self.form
        return count * min(rows, columns)

    @property
    def may_be_adapted(self) -> bool:
        """Whether it is adapted, or will be once it is trained or initialised."""
        return self.reason in ("", FROZEN, LAZY)


def unwrap(model: nn.Module) -> nn.Module:
    """The plain model inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def plain_name(name: str) -> str:
    """A name without the parts that torch.compile, FSDP1 or activation checkpointing add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


def find_matrices(
    model: nn.Module, exclude: Sequence[str] = (), min_eigenvalues: int = MIN_EIGENVALUES, include: Sequence[str] = ()
) -> list[Matrix]:
    """Every weight of two or more dimensions, in the order of the model; each skipped one has a reason.

    The weight of a Linear, a transformers Conv1D or a Conv2d is adapted unless it is the model's stem or head, tied,
    frozen, not yet initialised, depthwise, has fewer than `min_eigenvalues` eigenvalues, or matches a glob of
    `exclude`. "stem", "head" or "frozen" in `include` adapts these too. A fused qkv is one matrix, unless `split_qkv`
    made it three. All other weights of two or more dimensions (embeddings, 3-D expert weights, in_proj_weight, ...)
    are skipped.

    Raises:
        ValueError: If `exclude` or `include` is not a list of names, `include` holds an unknown name, a glob in
            `exclude` matches no module of the model, or `min_eigenvalues` is not a whole number of at least 1.
    """
    _check_selection(exclude, include, min_eigenvalues)
    model = unwrap(require_model(model))
    stems, heads = _declared_ends(model)
    owners = _owners(model)
    matrices = []
    for name, parameter_name, module, weight in _weights(model):
        kind = "other" if is_lazy(weight) else _kind(module, parameter_name)
        groups = module.groups if isinstance(module, nn.Conv2d) and kind == "conv2d" else 1
        matrix = Matrix(name, role_of(name), weight, "", kind, groups, (module, parameter_name))
        reason = (
            _reason_by_type(matrix, module, parameter_name)
            or _reason_by_place(name, stems, heads, include)
            or next((f"excluded by {glob!r}" for glob in exclude if fnmatchcase(name, glob)), "")
            or _reason_by_weight(matrix, owners[id(weight)], min_eigenvalues, include)
        )
        matrices.append(replace(matrix, reason=reason))
    for glob in exclude:
        if not any(fnmatchcase(matrix.name, glob) for matrix in matrices):
            raise ValueError(f"exclude={glob!r} matches no weight matrix of the model")
    return matrices


def _check_selection(exclude: Sequence[str], include: Sequence[str], min_eigenvalues: int) -> None:
    """Raise ValueError for arguments of `find_matrices` of a wrong type or value."""
    for argument, names in (("exclude", exclude), ("include", include)):
        if isinstance(names, str):
            raise ValueError(f"{argument}={names!r}: give a list of names, such as [{names!r}]")
        if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{argument}={names!r}: give a list of names")
    for name in include:
        if name not in INCLUDABLE:
            raise ValueError(f"include={name!r} is unknown; choose from {', '.join(INCLUDABLE)}")
    whole_number("min_eigenvalues", min_eigenvalues, "eigenvalues")


def require_model(model: nn.Module) -> nn.Module:
    """The model; TypeError if it is not a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}; files of weights are analysed by "
            "`python -m alphadecay analyze FILE`"
        )
    return model


def whole_number(argument: str, value: Any, unit: str) -> int:
    """The value as an int; ValueError, which names the argument, if it is not a whole number of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{argument} must be a whole number of {unit}, at least 1; got {value!r}")
    return operator.index(value)


def _weights(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, nn.Parameter]]:
    """Each weight once, without biases and norms: (name, parameter name, module, weight)."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for parameter_name, weight in module.named_parameters(recurse=False):
            if id(weight) in seen or (parameter_name != "weight" if is_lazy(weight) else weight.ndim < 2):
                continue
            seen.add(id(weight))
            name = _name(module_name, parameter_name, module)
            if name is not None:
                yield plain_name(name), parameter_name, module, weight


def _name(module_name: str, parameter_name: str, module: nn.Module) -> str | None:
    """Name of the module if this is its weight, else of the parameter; None if it is only a scale (weight_norm's g)."""
    if parts := part_names(module):
        return part_name(module_name, parameter_name, parts)
    if isinstance(module, ParametrizationList):
        sizes = {name: original.numel() for name, original in module.named_parameters(recurse=False)}
        owner, _, computed = module_name.rpartition(".parametrizations.")
        largest = sizes[parameter_name] == max(sizes.values())
        return (owner if computed == "weight" else f"{owner}.{computed}".lstrip(".")) if largest else None
    if parameter_name == "weight_g" and "weight_v" in module._parameters:
        return None
    is_weight = parameter_name in ("weight", "weight_orig", "weight_v")
    return module_name if is_weight and _has_matrix(module) else f"{module_name}.{parameter_name}".lstrip(".")


def part_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the matrices that one parametrization computes a weight from; empty if its parts are not matrices.

    The parametrization lists them in its attribute `part_names`; that of `split_qkv` has q, k and v.
    """
    if not (isinstance(module, ParametrizationList) and len(module) == 1):
        return ()
    names: tuple[str, ...] = getattr(module[0], "part_names", ())
    return names


def part_name(list_name: str, parameter_name: str, parts: Sequence[str]) -> str:
    """The name of such a part: blocks.0.attn.q for original0 in blocks.0.attn.qkv.parametrizations.weight."""
    owner = list_name.removesuffix(".parametrizations.weight").rpartition(".")[0]
    return f"{owner}.{parts[int(parameter_name[-1])]}".lstrip(".")


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter in the model, by its id; more than one if it is tied."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(plain_name(name))
    return owners


def _has_matrix(module: nn.Module) -> bool:
    """Whether it is a Linear, a transformers Conv1D (a transposed Linear) or a Conv2d."""
    classes = {base.__name__ for base in type(module).__mro__}  # FSDP2 derives a class from each module's class
    return isinstance(module, nn.Linear | nn.Conv2d) or "Conv1D" in classes


def _kind(module: nn.Module, parameter_name: str) -> str:
    """The `kind` of a `Matrix`."""
    if part_names(module):
        return "linear"
    if parameter_name != "weight" or not _has_matrix(module):
        return "other"
    return "conv2d" if isinstance(module, nn.Conv2d) else "linear"


def _reason_by_type(matrix: Matrix, module: nn.Module, parameter_name: str) -> str:
    """Why this type of module or weight is skipped, or ""."""
    if is_lazy(matrix.weight):
        return LAZY if _has_matrix(module) else f"of {_article(module)}"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if parameter_name == "in_proj_weight":
        return "in_proj_weight holds q, k and v in one parameter"
    if (computed := _how_computed(module, parameter_name)) is not None:
        return computed
    if matrix.kind == "other":
        return _reason_of_other(matrix, module, parameter_name)
    if not (matrix.weight.is_floating_point() or matrix.weight.is_complex()):
        return f"{str(matrix.weight.dtype).removeprefix('torch.')}: not a floating-point weight"
    if matrix.groups > 1 and min(matrix.form[1:]) == 1:
        return f"depthwise convolution: {matrix.groups} groups of one channel have no spectrum"
    return ""


def _reason_of_other(matrix: Matrix, module: nn.Module, parameter_name: str) -> str:
    """Why a matrix of kind "other" is skipped."""
    if len(matrix.shape) == 3 and matrix.shape[0] > 1 and parameter_name != "weight":
        return "3-D weight (experts?)"
    if parameter_name != "weight":
        return "no weight of a Linear, Conv1D or Conv2d"
    if reason := getattr(
        module, "why_not_measured", ""
    ):  # of a skeleton, which replaces a module that only a file describes
        return str(reason)
    return f"of {_article(module)}; only those of Linear, transformers' Conv1D and Conv2d are measured"


def _how_computed(module: nn.Module, parameter_name: str) -> str | None:
    """How the module computes its weight, if the weight is not a parameter itself; else None."""
    if isinstance(module, ParametrizationList) and not part_names(module):
        return f"computed by a parametrization ({', '.join(type(step).__name__.lstrip('_') for step in module)})"
    base, _, suffix = parameter_name.rpartition("_")
    if suffix == "orig" and f"{base}_mask" in module._buffers:
        return f"pruned: the {base} is {base}_orig x {base}_mask"
    if suffix == "orig" and f"{base}_u" in module._buffers:
        return f"computed by spectral_norm from {base}_orig"
    if suffix == "v" and f"{base}_g" in module._parameters:
        return f"computed by weight_norm from {base}_g and {base}_v"
    return None


def _article(module: nn.Module) -> str:
    """The name of its class with an article, such as "an LSTM"."""
    name = type(module).__name__.removeprefix("FSDP")
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def _reason_by_place(
    name: str, stems: frozenset[str] | None, heads: frozenset[str] | None, include: Sequence[str]
) -> str:
    """Return "stem", "head" or "": by the model's declaration (None: it has none), else by usual names."""
    for reason, declared, usual in (("stem", stems, STEM_NAMES), ("head", heads, HEAD_NAMES)):
        if reason in include:
            continue
        if declared is None:
            parts = name.split(".")  # "heads" is torchvision's head at the top of a model, else attention heads
            belongs = bool(set(parts) & usual) or (reason == "head" and parts[0] == "heads")
        else:  # the module itself, or a module that an adapter (PEFT) put into it
            belongs = any(name == end or name.startswith(f"{end}.") for end in declared)
        if belongs:
            return reason
    return ""


def _reason_by_weight(matrix: Matrix, names: list[str], min_eigenvalues: int, include: Sequence[str]) -> str:
    """Why a weight with these names is skipped (tied, small or frozen), or ""."""
    if len(names) > 1:
        return f"tied: {' = '.join(names)}"
    if matrix.eigenvalue_count < min_eigenvalues:
        return f"{matrix.eigenvalue_count} eigenvalues, fewer than {min_eigenvalues}"
    return "" if matrix.weight.requires_grad or "frozen" in include else FROZEN


def _declared_ends(model: nn.Module) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    """Names of stem and head modules as timm (pretrained_cfg) and transformers (get_output_embeddings) declare them."""
    for prefix, module in model.named_modules():  # adapters (PEFT) wrap a timm model in several modules
        config = vars(module).get("pretrained_cfg") or vars(module).get("default_cfg")
        if isinstance(config, dict) and "first_conv" in config and "classifier" in config:
            names = (config["first_conv"], config["classifier"])
            ends = [() if not n else ((n,) if isinstance(n, str) else tuple(n)) for n in names]
            stem, head = (frozenset(plain_name(f"{prefix}.{n}".lstrip(".")) for n in end) for end in ends)
            return stem, head
    if hasattr(model, "get_output_embeddings"):
        head_module = model.get_output_embeddings()  # type: ignore[operator]
        if head_module is not None:
            return None, frozenset(plain_name(name) for name, module in model.named_modules() if module is head_module)
    return None, None
