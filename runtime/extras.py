"""Reports packages of an extra that are not installed in one line, before the program imports them."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from runtime.errors import UserError, exit_status

# By import name. A package that only one option needs is checked when that option is used.
PACKAGES = {
    "train": ("timm", "torchvision", "tensorboard", "PIL", "matplotlib", "safetensors", "tqdm"),
    "compare": ("yaml", "submitit", "rich", "scipy", "statsmodels", "jinja2"),
}


def require_extra(program: str, extra: str) -> None:
    """Raise UserError if a package that the program needs is not installed."""
    missing = [name for name in PACKAGES[extra] if find_spec(name) is None]
    if missing:
        raise UserError(f"{program} needs {', '.join(missing)}: pip install '.[{extra}]'")


def answered(program: str, read_options: Callable[[Sequence[str]], object], words: Sequence[str]) -> int:
    """Handle --help, wrong options and a missing extra `train` before torch is loaded.

    Returns:
        The exit status; 0 if the program can continue.
    """

    def check() -> None:
        read_options(words)
        require_extra(program, "train")

    return exit_status(check)
