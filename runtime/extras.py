"""Packages of an extra that are not installed: said in one line before the program imports them."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from runtime.errors import UserError, exit_status

# By the names they are imported by; what only an option needs is named where that option acts.
PACKAGES = {
    "train": ("timm", "torchvision", "tensorboard", "PIL", "matplotlib", "safetensors", "tqdm"),
    "compare": ("yaml", "submitit", "rich", "scipy", "statsmodels", "jinja2"),
}


def require_extra(program: str, extra: str) -> None:
    """Raise UserError if a package is not installed that the program needs."""
    lacking = [name for name in PACKAGES[extra] if find_spec(name) is None]
    if lacking:
        raise UserError(f"{program} needs {', '.join(lacking)}: pip install '.[{extra}]'")


def answered(program: str, read_options: Callable[[Sequence[str]], object], words: Sequence[str]) -> int:
    """Answer --help, mistakes and a missing extra `train` before torch is loaded; the exit status, 0 to go on."""

    def check() -> None:
        read_options(words)
        require_extra(program, "train")

    return exit_status(check)
