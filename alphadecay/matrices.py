"""Find the weight matrices of a model: their names, their roles, and why some of them take no part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from alphadecay.qkv import is_split, part_name
from alphadecay.roles import role_of

MIN_EIGENVALUES = 50  # published threshold: shorter spectra give no usable tail

# Names by which models that declare nothing about themselves call their input and output layers.
STEM_NAMES = frozenset({"patch_embed", "patch_embedding", "conv_stem", "stem"})
HEAD_NAMES = frozenset({"head", "heads", "head_dist", "lm_head", "embed_out", "classifier", "score"})
# Parts that wrappers put into names; the plain model does not have them.
WRAPPER_PARTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@dataclass(frozen=True)
class Matrix:
    """One weight of two or more dimensions, and whether its spectrum steers its decay."""

    name: str  # of its module in the plain model, such as blocks.0.attn.qkv
    role: str  # what it does in its block, such as attn.qkv
    weight: Tensor  # the parameter, or its whole value where that is sharded over ranks
    reason: str  # why it takes no part; empty when it does
    kind: str  # "linear", "conv2d" or "other"

    @property
    def eigenvalue_count(self) -> int:
        """Length of the spectrum: the smaller side, times the kernel positions of a convolution."""
        if self.kind == "other":
            return 0
        rows, columns, *kernel = self.weight.shape
        positions = kernel[0] * kernel[1] if kernel else 1
        return min(rows, columns) * positions


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
    model: nn.Module,
    exclude: Sequence[str] = (),
    min_eigenvalues: int = MIN_EIGENVALUES,
    include: Sequence[str] = (),
) -> list[Matrix]:
    """Every weight of two or more dimensions in the order of the model, each with the reason if it stays out.

    A Linear, a transformers Conv1D or a Conv2d takes part unless it is the model's stem or head, tied, frozen,
    has fewer than `min_eigenvalues` eigenvalues, or matches a glob of `exclude`. "stem" or "head" in `include`
    lets that one take part as well. A fused qkv is one matrix, unless `split_qkv` made it three. All other weights of
    two or more dimensions (embeddings, 3-D expert weights, in_proj_weight, ...) are listed with the reason.

    Raises:
        ValueError: If a glob in `exclude` matches no module of the model.
    """
    model = unwrap(model)
    stems, heads = _declared_ends(model)
    owners = _owners(model)
    matrices = []
    for module_name, parameter_name, module, weight in _weights(model):
        kind = _kind(module, parameter_name)
        name = module_name if kind != "other" else f"{module_name}.{parameter_name}".lstrip(".")
        matrix = Matrix(name, role_of(name), weight, "", kind)
        reason = (
            _reason_by_type(module, parameter_name, weight, kind)
            or _reason_by_place(name, stems, heads, include)
            or _reason_by_weight(matrix, owners[id(weight)], min_eigenvalues)
            or next((f"excluded by {glob!r}" for glob in exclude if fnmatchcase(name, glob)), "")
        )
        matrices.append(Matrix(name, matrix.role, weight, reason, kind))
    for glob in exclude:
        if not any(fnmatchcase(matrix.name, glob) for matrix in matrices):
            raise ValueError(f"exclude={glob!r} matches no weight matrix of the model")
    return matrices


def _weights(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, nn.Parameter]]:
    """(module name, parameter name, module, weight) of each weight once, biases and norms left out."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for parameter_name, weight in module.named_parameters(recurse=False):
            if weight.ndim >= 2 and id(weight) not in seen:
                seen.add(id(weight))
                name = part_name(module_name, parameter_name) if is_split(module) else module_name
                yield plain_name(name), parameter_name, module, weight


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The names under which each parameter stands in the model; more than one where it is tied."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(plain_name(name))
    return owners


def _kind(module: nn.Module, parameter_name: str) -> str:
    if is_split(module):
        return "linear"
    if parameter_name != "weight":
        return "other"
    kinds = {kind.__name__ for kind in type(module).__mro__}  # FSDP2 makes a class of its own of each
    if isinstance(module, nn.Linear) or "Conv1D" in kinds:  # transformers' transposed Linear
        return "linear"
    return "conv2d" if isinstance(module, nn.Conv2d) else "other"


def _reason_by_type(module: nn.Module, parameter_name: str, weight: nn.Parameter, kind: str) -> str:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if parameter_name == "in_proj_weight":
        return "in_proj_weight holds q, k and v in one parameter"
    if weight.ndim == 3 and weight.shape[0] > 1 and parameter_name != "weight":
        return "3-D weight (experts?)"
    return "no weight of a Linear, Conv1D or Conv2d" if kind == "other" else ""


def _reason_by_place(
    name: str, stems: frozenset[str] | None, heads: frozenset[str] | None, include: Sequence[str]
) -> str:
    """Stem and head as the model declares them (None: it declares nothing), else by their usual names."""
    parts = set(name.split("."))
    if "stem" not in include and ((name in stems) if stems is not None else (parts & STEM_NAMES)):
        return "stem"
    if "head" not in include and ((name in heads) if heads is not None else (parts & HEAD_NAMES)):
        return "head"
    return ""


def _reason_by_weight(matrix: Matrix, names: list[str], min_eigenvalues: int) -> str:
    if not matrix.weight.requires_grad:
        return "frozen"
    if len(names) > 1:
        return f"tied: {' = '.join(names)}"
    if matrix.eigenvalue_count < min_eigenvalues:
        return f"{matrix.eigenvalue_count} eigenvalues, fewer than {min_eigenvalues}"
    return ""


def _declared_ends(model: nn.Module) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    """Names of stem and head modules as timm (pretrained_cfg) and transformers (get_output_embeddings) give them."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and "first_conv" in config and "classifier" in config:
        names = (config["first_conv"], config["classifier"])
        ends = [() if not n else ((n,) if isinstance(n, str) else tuple(n)) for n in names]
        return frozenset(ends[0]), frozenset(ends[1])
    if hasattr(model, "get_output_embeddings"):
        head = model.get_output_embeddings()  # type: ignore[operator]
        if head is not None:
            return None, frozenset(plain_name(name) for name, module in model.named_modules() if module is head)
    return None, None
