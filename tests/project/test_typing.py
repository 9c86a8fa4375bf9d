"""The package has types, and a user's program that uses all of it is checked by mypy and runs."""

import ast
import re

import pytest
import typed_user
from tiny import ROOT

import alphadecay

SETTINGS = (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
def test_the_users_program_runs(tmp_path):
    assert typed_user.main(tmp_path).startswith(f"alphadecay {alphadecay.__version__}: ")
    assert (tmp_path / "alpha.png").stat().st_size > 1000


def test_the_users_program_uses_every_public_name():
    tree = ast.parse((ROOT / "tests" / "helpers" / "typed_user.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert set(alphadecay.__all__) - used == set()


def test_types_are_shipped_and_the_users_program_is_checked():
    assert (ROOT / "alphadecay" / "py.typed").exists()
    assert 'package-data = { alphadecay = ["py.typed"] }' in SETTINGS
    files, strict = re.search(r"^files = .*$", SETTINGS, re.M)[0], SETTINGS.split('module = "typed_user"\n')[1]
    assert '"tests/helpers/typed_user.py"' in files
    asked = {line.split(" = ")[0] for line in strict.split("\n\n")[0].splitlines()}
    assert {"disallow_untyped_calls", "disallow_untyped_defs", "disallow_any_generics", "warn_return_any"} <= asked
