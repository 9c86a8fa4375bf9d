"""The wheel asks for torch and numpy alone; trainers without their extra say what to install."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from tiny import ROOT

from runtime.curves import Wandb
from runtime.errors import UserError

README = (ROOT / "README.md").read_text()
# Refuses a program what is installed here but would not be there, and our other rooms.
GUARD = """import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
REFUSED, FOLDER = {refused!r}, {folder!r}
class Guard:
    def find_spec(self, name, path=None, target=None):
        if path is None and name.split(".")[0] in REFUSED:
            return None
        return PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Guard()]
sys.path.insert(0, FOLDER)
"""


def closure(*names: str) -> set[str]:
    """Distributions that these need, and those that they need in turn; themselves included."""
    found, left = set(), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        wanted = [Requirement(each) for each in needed]
        left += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def modules_of(distributions: set[str]) -> set[str]:
    by_module = importlib.metadata.packages_distributions()
    return {
        module
        for module, owners in by_module.items()
        if {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & distributions
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that `pip install .` makes."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if name.startswith("alphadecay/") or name in ("pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*command, str(source)], check=True, cwd=folder)
    return next(folder.glob("alphadecay-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_its_sub_packages_and_nothing_else(wheel):
    tracked = subprocess.check_output(["git", "ls-files", "alphadecay"], cwd=ROOT, text=True).split()
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == set(tracked)


@pytest.mark.slow
def test_the_wheel_asks_for_torch_and_numpy_alone(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    wanted = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M)]
    assert {each.name for each in wanted if "extra ==" not in str(each.marker)} == {"torch", "numpy"}


@pytest.mark.slow
def test_the_readmes_example_runs_where_nothing_but_torch_and_numpy_is_installed(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    example = re.search(r"```python\n(.*?)```", README, re.S)[1]
    refused = set(importlib.metadata.packages_distributions()) - modules_of(closure("torch", "numpy")) - {"alphadecay"}
    refused |= {"runtime", "vision", "llama"}
    assert {"timm", "torchvision", "tqdm", "matplotlib", "safetensors", "PIL"} <= refused
    where = "print(alphadecay.__file__)\n"
    program = GUARD.format(refused=refused, folder=str(tmp_path / "site")) + example + where
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(tmp_path)) and "AlphaDecay(AdamW, step 3" in done.stdout


WITHOUT = """import importlib.util, runpy, sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == {package!r} else real(name, *more)
sys.meta_path.insert(0, Guard())
sys.argv = {words!r}
"""


def without(package: str, start: str, *words: str) -> tuple[int, str]:
    """Exit status and standard error of one of our programs where a package is not installed."""
    program = WITHOUT.format(package=package, words=list(words)) + start
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("main.py", ["--data_set", "digits"]),
        ("main_llama.py", ["--dataset", "stdlib"]),
        ("compare.py", ["--preset", "smoke", "--dry_run"]),
    ],
)
def test_a_trainer_without_its_extra_names_it_in_one_line(program, words):
    found = without("timm", f"runpy.run_path({program!r}, run_name='__main__')", program, *words)
    assert found == (2, f"error: {program} needs timm: pip install '.[train]'\n")


@pytest.mark.slow
def test_analyze_without_its_extra_names_it_in_one_line():
    found = without(
        "timm", "runpy.run_module('alphadecay', run_name='__main__')", "x", "analyze", "vit_tiny_patch16_224"
    )
    assert found == (2, "error: analyze needs timm: pip install '.[analyze]'\n")


@pytest.mark.slow
def test_analyze_without_matplotlib_says_so_before_it_measures(tmp_path):
    start = "runpy.run_module('alphadecay', run_name='__main__')"
    words = ("alphadecay", "analyze", "vit_tiny_patch16_224", "--output_dir", str(tmp_path / "out"))
    assert without("matplotlib", start, *words) == (2, "error: analyze needs matplotlib: pip install '.[analyze]'\n")
    assert not (tmp_path / "out").exists()


def test_wandb_where_it_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^--enable_wandb: needs wandb; pip install '\.\[train\]'$"):
        Wandb(tmp_path, {}, "project", None, None)


def test_requirements_name_what_the_extra_train_does():
    settings = (ROOT / "pyproject.toml").read_text()
    blocks = [re.search(rf"^{name} = \[.*?^\]", settings, re.M | re.S)[0] for name in ("dependencies", "train")]
    declared = {each for block in blocks for each in re.findall(r'"([^"]+)"', block)}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == declared
