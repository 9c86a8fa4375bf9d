"""`python -m alphadecay analyze WHAT`: the spectra of a model's weights as a table, CSV, JSON and figures."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alphadecay._version import __version__
from alphadecay.analysis import Measuring, records_of
from alphadecay.command.output import CSV, FIGURES, JSON, Measured, check_free, tables, write_all
from alphadecay.command.sources import BadInput, Source, read_source
from alphadecay.matrices import MIN_EIGENVALUES, Matrix, find_matrices
from alphadecay.qkv import split_qkv
from alphadecay.records import spectra_of
from alphadecay.tables import escaped
from alphadecay.tails import FITS

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130
SELECTION = ("exclude", "include", "min_eigenvalues", "split_qkv")
EXTRA = ("timm", "matplotlib", "safetensors", "tqdm")  # the extra "analyze" in pyproject.toml
MOST_NAMED = 5  # modules in an error message
WHAT_HELP = (
    "a timm model name (random weights, or --pretrained); a run folder of the trainers (its newest checkpoint), "
    "one of its checkpoints/step_..., checkpoints/best or best_ema; a .safetensors file; a folder with "
    "model.safetensors or its shards, as saved by transformers or timm"
)
EXAMPLES = """examples:
  python -m alphadecay analyze deit_tiny_patch16_224                          random weights, as a table
  python -m alphadecay analyze runs/first --output_dir spectra                also CSV, JSON and figures
  python -m alphadecay analyze runs/first --ema --against runs/first          compare EMA and raw weights
  python -m alphadecay analyze runs/alphadecay --against runs/uniform         compare two runs
  python -m alphadecay analyze model.safetensors --fit goodness-of-fit --window farms
  python -m alphadecay analyze deit_tiny_patch16_224 --pretrained --against deit_tiny_patch16_224
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input gives one line on standard error.

    Returns:
        Exit status: 0 for success, 2 for bad input, 130 if interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not words:
        sys.stdout.write(parser.format_help())
        return 0
    try:
        options = parser.parse_args([_underscored(word) for word in words])
        _analyze(options)
    except BadInput as error:
        sys.stderr.write(f"error: {escaped(' '.join(str(error).splitlines()))}\n")
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader of our output closed it, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # such as for an impossible path
        sys.stderr.write(f"error: {escaped(str(error.filename))[:100]}: {error.strerror}\n")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    return 0


def _underscored(word: str) -> str:
    """--output-dir becomes --output_dir; values do not change."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def _parser() -> Any:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise BadInput(message.removeprefix("argument "))

    parser = Parser(
        prog="python -m alphadecay", description="Spectra of a model's weights.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, title="commands")
    command = commands.add_parser(
        "analyze", help="measure the spectrum of each weight matrix", epilog=EXAMPLES, allow_abbrev=False,
        description="Measure the spectrum of each weight matrix: alpha of its tail, stable rank, quality of the fit.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_options(command)
    return parser


def _add_options(parser: Any) -> None:
    add = parser.add_argument
    add("what", metavar="WHAT", help=WHAT_HELP)
    add("--against", metavar="OTHER", help="compare WHAT with this: same modules; a model name has random weights")
    add("--output_dir", metavar="DIR", type=Path, help=f"write {CSV}, {JSON} and {FIGURES}/ (PNG and PDF) there")
    add("--overwrite", action="store_true", help="replace an earlier analysis in --output_dir")
    add("--pretrained", action="store_true", help="load timm's pretrained weights for WHAT, from the hub")
    add("--ema", action="store_true", help="use the EMA weights of WHAT, a checkpoint")
    add("--seed", type=int, default=0, help="seed of random weights (default 0)")
    add("--fit", choices=list(FITS), default="median", help="how the tail is found (default median)")
    add(
        "--xmin_pos", type=float, default=2.0,
        help="for --fit median: 2 fits the upper half of the eigenvalues, 4 the upper three quarters (default 2)",
    )  # fmt: skip
    add("--window", choices=["none", "farms"], default="none",
        help="farms: alpha of square windows, which does not depend on a matrix' shape (default none)")  # fmt: skip
    add("--filter_zeros", action="store_true", help="drop eigenvalues of at most 1e-5 before the fit")
    add("--exclude", nargs="+", default=[], metavar="GLOB", help="skip these modules, such as 'blocks.0.*'")
    add("--include", nargs="+", default=[], choices=["stem", "head"], help="measure these too")
    add("--min_eigenvalues", type=int, default=MIN_EIGENVALUES, metavar="N",
        help=f"skip matrices with fewer (default {MIN_EIGENVALUES}); use less for narrow layers and LoRA")  # fmt: skip
    add("--split_qkv", action="store_true", help="analyse q, k and v of a fused projection separately")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")


def _require_extra() -> None:
    """Raise BadInput if a package of the extra is not installed, before anything is measured or written."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise BadInput(f"analyze needs {', '.join(missing)}: pip install '.[analyze]'")


def _analyze(options: Any) -> None:
    _require_extra()
    measuring = _measuring(options)
    device = _device(options.device)
    if options.output_dir is not None:
        try:
            check_free(options.output_dir, options.overwrite)
        except OSError as error:  # such as a name that is too long
            raise BadInput(f"--output_dir {options.output_dir}: cannot be written: {error.strerror}") from error
    if options.against is not None and options.against == options.what and not (options.ema or options.pretrained):
        raise BadInput(f"--against {options.against}: is WHAT itself")
    source = read_source(options.what, pretrained=options.pretrained, seed=options.seed, ema=options.ema)
    other_source = None if options.against is None else read_source(options.against, seed=options.seed)
    labels = _labels(source, other_source, options)
    matrices, other = _matrices(source, options, device), None
    if other_source is not None:
        others = _matrices(other_source, options, device)
        _check_same_modules(matrices, others, other_source.argument)
    measured = _measured(source, labels[0], matrices, measuring)
    if other_source is not None:
        other = _measured(other_source, labels[1], others, measuring)
    if options.output_dir is not None:
        settings = vars(measuring) | {key: getattr(options, key) for key in SELECTION}
        try:
            write_all(options.output_dir, measured, other, settings | {"device": device})
        except OSError as error:
            raise BadInput(f"--output_dir {options.output_dir}: cannot be written: {error.strerror}") from error
    sys.stdout.write(tables(measured, other) + "\n")
    if options.output_dir is not None:
        sys.stdout.write(f"\nwritten: {options.output_dir}/ ({CSV}, {JSON}, {FIGURES}/)\n")


def _measuring(options: Any) -> Measuring:
    window = None if options.window == "none" else options.window
    if not 1 < options.xmin_pos < float("inf"):
        raise BadInput(f"--xmin_pos {options.xmin_pos}: must be above 1")
    if options.min_eigenvalues < 1:
        raise BadInput(f"--min_eigenvalues {options.min_eigenvalues}: must be at least 1")
    if not 0 <= options.seed < 2**63:
        raise BadInput(f"--seed {options.seed}: must be at least 0 and below 2**63")
    return Measuring(options.fit, options.xmin_pos, window, options.filter_zeros)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=name).is_meta:
            raise BadInput(f"--device {name}: its tensors have no values to measure")
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise BadInput(f"--device {name}: {str(error).splitlines()[0]}") from error
    return name


def _labels(source: Source, other: Source | None, options: Any) -> tuple[str, str]:
    """Short names for the figures: the last part of a path, or the whole path if both have the same last part."""
    suffix = " (EMA)" if options.ema else " (pretrained)" if options.pretrained else ""
    label, other_label = (Path(s.argument).name or s.argument if s else "" for s in (source, other))
    if other is not None and label == other_label:
        label, other_label = source.argument, other.argument
    return label + suffix, other_label


def _check_same_modules(matrices: list[Matrix], other: list[Matrix], argument: str) -> None:
    """Raise BadInput, with the differences, unless both have the same matrices to measure."""
    shapes, other_shapes = ({m.name: m.shape for m in ms if not m.reason} for ms in (matrices, other))
    differences = [
        f"{name} is {_shape_text(shapes.get(name))} in WHAT, {_shape_text(other_shapes.get(name))} in OTHER"
        for name in dict.fromkeys([*shapes, *other_shapes])
        if shapes.get(name) != other_shapes.get(name)
    ]
    if differences:
        rest = f"; {len(differences) - MOST_NAMED} more" if len(differences) > MOST_NAMED else ""
        raise BadInput(f"--against {argument}: has other modules: {'; '.join(differences[:MOST_NAMED])}{rest}")


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "absent"


def _matrices(source: Source, options: Any, device: str) -> list[Matrix]:
    """The model's matrices, on the device, split into q, k and v if requested; at least one can be measured."""
    if options.split_qkv:
        try:
            split_qkv(source.model)
        except ValueError as error:
            raise BadInput(f"--split_qkv: {source.argument}: {error}") from error
    try:
        matrices = find_matrices(source.model.to(device), options.exclude, options.min_eigenvalues, options.include)
    except ValueError as error:
        raise BadInput(f"{source.argument}: --{error}") from error
    if all(matrix.reason for matrix in matrices):
        reasons = "; ".join(f"{m.name}: {m.reason}" for m in matrices[:MOST_NAMED])
        raise BadInput(f"{source.argument}: no weight matrix can be measured ({reasons})")
    return matrices


def _measured(source: Source, label: str, matrices: list[Matrix], measuring: Measuring) -> Measured:
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0  # in a log, one line per ten seconds
    total = sum(not matrix.reason for matrix in matrices)
    with tqdm(
        total=total, desc=f"measuring {label}", unit="matrix", delay=1, leave=False, mininterval=interval,
        maxinterval=interval, dynamic_ncols=sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        try:
            records = records_of(matrices, measuring, on_record=lambda *_: bar.update())
        except ValueError as error:  # weights that are not finite
            raise BadInput(f"{source.argument}: {error}") from error
    return Measured(source, label, records, spectra_of(records))
