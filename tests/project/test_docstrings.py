"""Docstrings of public names say everything, and their examples run."""

import doctest
import importlib
import inspect
import re
from dataclasses import fields, is_dataclass

import pytest

import alphadecay

PUBLIC = [name for name in alphadecay.__all__ if callable(getattr(alphadecay, name))]
METHODS = ["SpectrumRecords.plot", "SpectrumRecords.to_pandas"]
NEVER_RAISE = {"SpectrumRecord", "SpectrumRecords", "AuditRecord", "attached"}  # what they are made of, and a look-up


def public(name):
    found = alphadecay
    for part in name.split("."):
        found = getattr(found, part)
    return found


def sections(text):
    """Lines of each section by its title, such as Args."""
    found, title = {"": []}, ""
    for line in inspect.cleandoc(text).splitlines():
        heading = re.fullmatch(r"([A-Z][a-z]+):", line)
        if heading:
            title = heading[1]
            found[title] = []
        else:
            found[title].append(line)
    return found


def described(lines):
    """Names at the margin of a section with a colon and what they are behind it."""
    names = []
    for line in lines:
        entry = re.match(r"    (\w+(?:, \w+)*): \S", line)
        names += entry[1].split(", ") if entry else []
    return names


def needed(found):
    """What must be described in which section."""
    if is_dataclass(found):
        return {"Attributes": [field.name for field in fields(found)]}
    arguments = [name for name in inspect.signature(found).parameters if name != "self"]
    return {"Args": arguments} if arguments else {}


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_every_argument_and_attribute_is_described(name):
    found, said = public(name), sections(public(name).__doc__)
    for title, names in needed(found).items():
        assert sorted(described(said.get(title, []))) == sorted(names)
    assert "As in `" not in found.__doc__, "help() shows one docstring: it says itself what an argument means"


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_what_comes_back_and_what_is_raised_is_said(name):
    found, said = public(name), sections(public(name).__doc__)
    if not inspect.isclass(found) and inspect.signature(found).return_annotation is not None:
        assert any(line.strip() for line in said["Returns"])
    if name not in NEVER_RAISE:
        assert any(re.match(r"    \w*Error: ", line) for line in said["Raises"])


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs_and_shows_what_is_shown(name):
    found = public(name)
    assert any(">>> " in line for line in sections(found.__doc__)["Example"])
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(found, name, globs={}):
        runner.run(test, out=said.append)
    assert runner.tries and "".join(said) == ""


def test_an_undescribed_argument_and_a_wrong_example_are_found():
    lines = sections("Do.\n\n    Args:\n        a, b: Numbers.\n            More: yes.\n        c:\n")["Args"]
    assert described(lines) == ["a", "b"]
    runner, said = doctest.DocTestRunner(verbose=False), []
    runner.run(doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "x", None, 0), out=said.append)
    assert "Got:\n    2" in "".join(said)


WITH_FORMULAS = ("tails", "metrics", "assign", "spectra", "baselines", "adaptive", "entries")
FORMULA = re.compile(r"exp\(|log\(|\*\*|sqrt|\^|m_t")
SOURCE = re.compile(r"arXiv|Source|\(19\d\d\)|published|torch")


@pytest.mark.parametrize("room", WITH_FORMULAS)
def test_every_formula_of_the_method_names_its_source(room):
    module = importlib.import_module(f"alphadecay.{room}")
    parts = [part for part in vars(module).values() if getattr(part, "__module__", "") == module.__name__]
    texts = {part.__name__: part.__doc__ or "" for part in parts if hasattr(part, "__name__")}
    assert [name for name, text in texts.items() if FORMULA.search(text) and not SOURCE.search(text)] == []
