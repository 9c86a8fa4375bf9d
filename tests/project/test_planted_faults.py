"""The table of planted faults fits the code and the tests, and what plants them tells a survivor from a stale entry."""

import re
import subprocess
from dataclasses import replace

import planted_faults
import pytest
from faults_planted import FAULTS, planting
from faults_planted.fault import Fault
from faults_planted.planting import CAUGHT, STALE, SURVIVED, Outcome
from tiny import ROOT

DOUBLE = Fault("double", "code.py", "2 * x", "3 * x", "test_code.py", "it is not double")
TESTS = "from code_here import double\n\n\ndef test_double():\n    assert double(2) == 4\n"


def test_names_are_unique_and_reasons_short():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 60
    assert [fault.name for fault in FAULTS if not re.fullmatch(r"[a-z0-9_]+", fault.name)] == []
    assert [fault.name for fault in FAULTS if not 0 < len(fault.why) <= 90] == []


def test_what_is_replaced_stands_once_in_its_file():
    texts = {file: (ROOT / file).read_text() for file in {fault.file for fault in FAULTS}}
    counts = {fault.name: texts[fault.file].count(fault.old) for fault in FAULTS}
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_what_is_planted_is_python():
    for fault in FAULTS:
        if fault.file.endswith(".py"):
            compile((ROOT / fault.file).read_text().replace(fault.old, fault.new), fault.name, "exec")


def test_the_tests_that_are_named_exist():
    sources = {}
    for fault in FAULTS:
        for node_id in fault.node_ids:
            path, _, name = node_id.partition("::")
            source = sources.setdefault(path, (ROOT / path).read_text())
            assert not name or f"def {name.partition('[')[0]}(" in source, f"{fault.name}: {node_id}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project under git."""
    monkeypatch.setattr(planting, "LIBRARIES", ("pytest",))
    (tmp_path / "tests").mkdir()
    (tmp_path / "code_here.py").write_text("def double(x):\n    return 2 * x\n\n\ndef same(x):\n    return x + 0\n")
    (tmp_path / "tests" / "test_code.py").write_text(TESTS)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_caught_fault_a_survivor_and_stale_entries_are_told_apart(project, capsys):
    caught = replace(DOUBLE, file="code_here.py")
    survivor = replace(caught, name="survivor", old="x + 0", new="x + 1")
    faults = [
        caught,
        survivor,
        replace(caught, name="gone", old="4 * x"),
        replace(caught, name="twice", old="return"),
        replace(caught, name="no test", tests="test_code.py::test_nothing"),
    ]
    found = planted_faults.try_all(faults, project, jobs=1)
    assert [each.verdict for each in found] == [CAUGHT, SURVIVED, STALE, STALE, STALE]
    assert found[0].by == "tests/test_code.py::test_double" and "has the old text 2 times" in found[3].by
    assert "SURVIVED" in capsys.readouterr().out
    assert (project / "code_here.py").read_text().count("2 * x") == 1  # what is planted is in a copy


def test_the_exit_status_says_the_worst():
    caught, survived, stale = (Outcome("x", verdict, "", 0.0) for verdict in (CAUGHT, SURVIVED, STALE))
    assert planted_faults.exit_status([caught]) == 0
    assert planted_faults.exit_status([caught, survived]) == 1
    assert planted_faults.exit_status([caught, survived, stale]) == 2
    assert planted_faults.summary([caught, survived]).splitlines() == ["SURVIVED x: ", "1 of 2 faults caught in 0 s"]


def test_faults_are_chosen_by_name(capsys):
    assert [fault.name for fault in planted_faults.chosen(["median_cut"], quick=False)] == ["median_cut"]
    with pytest.raises(SystemExit):
        planted_faults.chosen(["nothing"], quick=False)
    assert "--only nothing: no such fault" in capsys.readouterr().err
    assert not any(fault.slow for fault in planted_faults.chosen(None, quick=True))
