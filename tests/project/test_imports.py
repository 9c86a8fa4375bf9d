"""No circle of files, the nevers between rooms, and a package that needs torch and numpy alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tiny import ROOT

ROOMS = ("alphadecay", "runtime", "vision", "llama", "comparison", "benchmarks")
ROOT_FILES = {"main", "main_llama", "compare", "engine", "optim_factory", "datasets"}
TRAINERS = {"engine", "optim_factory", "datasets", "main", "main_llama"}
NEVER = {  # room -> what its files never import
    "alphadecay": {"runtime", "vision", "llama", "comparison", "benchmarks", "compare", *TRAINERS},
    "runtime": {"vision", "llama", "comparison", "benchmarks", "compare", *TRAINERS},
    "vision": {"llama", "comparison", "benchmarks", "compare", "main", "main_llama"},
    "llama": {"vision", "comparison", "benchmarks", "compare", "main", "main_llama", "engine", "datasets"},
    "comparison": {"benchmarks", "compare"},
    "optim_factory": {"vision", "llama", "comparison", "engine", "datasets", "main", "main_llama"},
    "engine": {"vision", "llama", "comparison", "main", "main_llama"},
    "datasets": {"llama", "comparison", "engine", "main", "main_llama"},
}


def sources() -> dict[str, str]:
    """The source of every module, by dotted name; a package by its own."""
    files = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    return {name_of(path.relative_to(ROOT)): path.read_text() for path in files}


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported(source: str) -> set[str]:
    """Names of all imported modules, those inside functions too; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`, which only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from at_run_time(node)


def graph(files: dict[str, str]) -> dict[str, set[str]]:
    """What each module imports of the others; `from a import b` counts as a.b where that is a module, else as a.

    In alphadecay imports for a type checker count, too.
    """
    edges: dict[str, set[str]] = {name: set() for name in files}
    for name, source in files.items():
        tree = ast.parse(source)
        for node in ast.walk(tree) if name.split(".")[0] == "alphadecay" else at_run_time(tree):
            if isinstance(node, ast.Import):
                edges[name] |= {alias.name for alias in node.names if alias.name in files}
            elif isinstance(node, ast.ImportFrom):
                children = [f"{node.module}.{alias.name}" for alias in node.names]
                edges[name] |= {child if child in files else str(node.module) for child in children} & set(files)
    return edges


def circle(files: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, if any do."""
    try:
        TopologicalSorter(graph(files)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def forbidden(room: str, source: str) -> set[str]:
    return {each.split(".")[0] for each in imported(source)} & NEVER.get(room, set())


def test_no_files_import_each_other_in_a_circle():
    assert circle(sources()) == []


CORE = (  # of alphadecay: from a model's matrices to the decay in the optimizer's groups
    "roles", "matrices", "spectra", "tails", "metrics", "record", "tables", "records", "sharing", "analysis", "assign",
    "background", "names", "groups", "splitting", "membership", "saved_state", "step_hooks", "wording", "writer",
)  # fmt: skip
EXTRAS = (  # what stands above it
    "qkv", "build_order", "entries", "optimizer_copies", "decay_log", "audit", "schedule", "adaptive", "baselines",
    "replay", "skeletons", "command",
)  # fmt: skip


def too_high(name: str, source: str) -> set[str]:
    """The extras that a file of the core imports."""
    extras = {f"alphadecay.{extra}" for extra in EXTRAS}
    return imported(source) & extras if name.removeprefix("alphadecay.") in CORE else set()


def test_the_core_of_alphadecay_imports_none_of_its_extras():
    files = {name: source for name, source in sources().items() if name.startswith("alphadecay.")}
    assert {f"alphadecay.{name}" for name in (*CORE, *EXTRAS)} <= set(files)
    assert {name: wrong for name, source in files.items() if (wrong := too_high(name, source))} == {}


def test_rooms_import_only_what_stands_below_them():
    wrong = {name: forbidden(name.split(".")[0], source) for name, source in sources().items()}
    assert {name: rooms for name, rooms in wrong.items() if rooms} == {}


def test_the_root_holds_the_programs_and_what_both_halves_share():
    assert {path.stem for path in ROOT.glob("*.py")} == ROOT_FILES


def test_the_guards_can_fail():
    assert set(circle({"a": "import b", "b": "def f():\n    from a import x", "c": ""})) == {"a", "b"}
    assert circle({"p": "", "p.a": "from p import b", "p.b": "import p"}) == []
    assert circle({"p": "from p.a import x", "p.a": "from p import y"}) != []
    for_types = {"{0}.a": "if TYPE_CHECKING:\n    import {0}.b", "{0}.b": "import {0}.a"}
    circles = [
        circle({name.format(room): source.format(room) for name, source in for_types.items()})
        for room in ("alphadecay", "runtime")
    ]
    assert circles[0] != [] and circles[1] == []
    assert too_high("alphadecay.matrices", "from alphadecay.qkv import is_split") == {"alphadecay.qkv"}
    assert forbidden("alphadecay", "def f():\n    from runtime.tables import say") == {"runtime"}
    assert forbidden("vision", "import llama.engine") == {"llama"}


# Files of alphadecay that may import more than torch and numpy, in functions: figures, and the command line.
MORE = {
    "command/analyze.py": {"argparse", "tqdm"},
    "command/sources.py": {"timm", "safetensors"},
    "command/output.py": {"matplotlib"},
    "figures/drawing.py": {"matplotlib"},
    "figures/decay.py": {"matplotlib"},
    "figures/alpha.py": {"matplotlib"},
    "figures/spectra.py": {"matplotlib"},
    "figures/records.py": {"matplotlib"},
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

    def packages(text: str) -> set[str]:
        return {each.split(".")[0] for each in imported(text)}

    return (packages(source) - known - MORE.get(name, set())) | (packages(top) - known)


def test_alphadecay_imports_more_only_in_functions_of_the_files_that_draw_and_of_the_command():
    folder = ROOT / "alphadecay"
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}
    assert set(MORE) <= set(files)
    assert {name: wrong for name, source in files.items() if (wrong := too_much(name, source))} == {}


def test_the_guard_of_alphadecay_can_fail():
    assert too_much("figures/decay.py", "import matplotlib") == {"matplotlib"}
    assert too_much("figures/decay.py", "def f():\n    import matplotlib") == set()
    assert too_much("tails.py", "def f():\n    import matplotlib") == {"matplotlib"}


@pytest.mark.slow
def test_nothing_is_imported_that_an_option_in_use_does_not_need():
    code = "import sys, main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"tensorboard", "sklearn", "matplotlib", "transformers", "wandb"} & set(done.stdout.split()) == set()
