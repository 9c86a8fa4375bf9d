"""Packages of an extra that are not installed: said in one line before the program imports them."""

from importlib.util import find_spec

from runtime.errors import UserError

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
