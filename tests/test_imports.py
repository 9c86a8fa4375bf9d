"""Imports point one way, and the package needs torch and numpy alone."""

import ast
import subprocess
import sys

import pytest
from tiny import ROOT

# Rooms by height; a room may import those below its own, and its own files.
HEIGHTS = {
    "compare": 10,
    "comparison": 9,
    "main": 8,
    "training": 7,
    "trainer": 5,
    "engine": 6,
    "loaders": 5,
    "transforms": 4,
    "fingerprints": 4,
    "vision_options": 1,
    "datasets": 3,
    "llama": 6,
    "main_llama": 8,
    "models": 3,
    "optim_factory": 2,
    "reports": 2,
    "decay_log": 2,
    "image_folders": 2,
    "alphadecay": 0,
    "runtime": 0,
}


def imported(source: str) -> set[str]:
    """First parts of the names of all imported modules, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def wrong_way(room: str, source: str) -> set[str]:
    return {other for other in imported(source) & set(HEIGHTS) if other != room and HEIGHTS[other] >= HEIGHTS[room]}


@pytest.mark.parametrize("room", HEIGHTS)
def test_imports_point_one_way(room):
    folder = ROOT / room
    files = list(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{room}.py"]
    assert files
    assert {path.name: wrong for path in files if (wrong := wrong_way(room, path.read_text()))} == {}


def test_every_python_file_at_the_root_is_a_known_room():
    assert {path.stem for path in ROOT.glob("*.py")} == {room for room in HEIGHTS if (ROOT / f"{room}.py").exists()}


def test_the_guard_can_fail():
    assert wrong_way("alphadecay", "def f():\n    from runtime.tables import say") == {"runtime"}
    assert wrong_way("optim_factory", "import engine") == {"engine"}


# Files of alphadecay that may import more than torch and numpy, in functions: figures, and the command line.
MORE = {
    "__main__.py": {"argparse", "tqdm"},
    "weights.py": {"timm", "safetensors"},
    "drawing.py": {"matplotlib"},
    "figures.py": {"matplotlib"},
    "alpha_figures.py": {"matplotlib"},
    "spectra_figures.py": {"matplotlib"},
    "analysis_output.py": {"matplotlib"},
    "record_figures.py": {"matplotlib"},
    "records.py": {"matplotlib", "pandas"},
}


def test_alphadecay_needs_only_torch_and_numpy():
    heavy = set().union(*MORE.values()) | {"transformers", "torchvision", "wandb", "tensorboard", "PIL"}
    code = "import sys, torch, numpy; before = set(sys.modules); import alphadecay; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "alphadecay" in loaded and loaded & heavy == set()


def too_much(name: str, source: str) -> set[str]:
    """What a file of alphadecay imports that it may not: anywhere, or outside its functions."""
    known = {"alphadecay", "torch", "numpy"} | (set(sys.stdlib_module_names) - {"argparse"})
    top = "\n".join(
        ast.unparse(node) for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)
    )
    return (imported(source) - known - MORE.get(name, set())) | (imported(top) - known)


def test_alphadecay_imports_more_only_in_functions_of_the_files_that_draw_and_of_the_command():
    files = list((ROOT / "alphadecay").glob("*.py"))
    assert set(MORE) <= {path.name for path in files}
    assert {path.name: wrong for path in files if (wrong := too_much(path.name, path.read_text()))} == {}


def test_the_guard_of_alphadecay_can_fail():
    assert too_much("figures.py", "import matplotlib") == {"matplotlib"}
    assert too_much("figures.py", "def f():\n    import matplotlib") == set()
    assert too_much("tails.py", "def f():\n    import matplotlib") == {"matplotlib"}


@pytest.mark.slow
def test_nothing_is_imported_that_an_option_in_use_does_not_need():
    code = "import sys, main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"tensorboard", "sklearn", "matplotlib", "transformers", "wandb"} & set(done.stdout.split()) == set()
