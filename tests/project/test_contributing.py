"""The places that CONTRIBUTING.md and the documentation name exist."""

import re

import pytest
from tiny import ROOT

SECTION = (ROOT / "CONTRIBUTING.md").read_text().split("## Where to change what")[1]
ROWS = dict(re.findall(r"^\| (?!to change|---)([^|]+) \| ([^|]+) \|$", SECTION, re.M))
FOLDERS = "alphadecay|benchmarks|comparison|docs|llama|runtime|scripts|tests|vision"
DOCUMENTS = [  # the changelog also names files of before
    path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if path.name != "CHANGELOG.md"
]


def places(cell):
    """Paths in backticks, each with the names in backticks that follow it."""
    by_path: dict[str, list[str]] = {}
    path = ""
    for word in re.findall(r"`([^`]+)`", cell):
        if word.endswith(".py"):
            path = word
            by_path.setdefault(path, [])
        else:
            by_path[path].append(word)
    return by_path


def missing(by_path):
    """Paths that do not exist, and names that do not occur in the file before them."""
    absent = []
    for path, names in by_path.items():
        if not (ROOT / path).is_file():
            absent.append(path)
            continue
        source = (ROOT / path).read_text()
        absent += [f"{path}: {name}" for name in names if not re.search(rf"\b{re.escape(name)}\b", source)]
    return absent


def test_all_tasks_are_in_the_table():
    assert len(ROWS) == 18


@pytest.mark.parametrize("task", ROWS)
def test_the_places_to_change_exist(task):
    by_path = places(ROWS[task])
    assert by_path and missing(by_path) == []


def test_a_place_that_does_not_exist_is_noticed():
    assert missing(places("`engine.py`: `nowhere_to_be_seen`; `engine/py.py`: `METRICS`")) == [
        "engine.py: nowhere_to_be_seen",
        "engine/py.py",
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_files_that_a_document_names_exist(path):
    named = re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w./]*\w", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
