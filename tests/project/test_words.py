"""One word per thing: retired words stay out of code and documentation, and tensors come with their shapes."""

import ast
import re

import pytest
from tiny import ROOT

FOLDERS = ("alphadecay", "runtime", "vision", "llama", "comparison", "benchmarks", "docs", "scripts")
TEXTS = sorted(
    path
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*"))]
    if path.suffix in (".py", ".md", ".yaml", ".html", ".sh") and path.name != "CHANGELOG.md"
)
RETIRED = {  # as a regular expression -> the word in its place
    r"(?<!decay_)ledger(?![:=]|_mean|\)|,$)": "decay log",
    r"tak(e|es|ing) part|stay(s|ed|ing)? out\b": "is adapted, is skipped",
    r"steer(s|ed|ing)?\b": "adapts, sets",
    r"(last|same|to the|every) bits?\b": "bitwise identical, bitwise reproducible",
    r"\b(go|goes|going|went|gone) on\b": "continues, resumes",
    r"\bbehind\b": "after, in the background",
    r"\btold\b": "preemption, requested, said",
    r"\bkinds? of decay\b": "strategy",
    r"\bCells?\b": "RunSpec",
    r"\b(brought_together|shared_out|Beside|have_checkpoint_to_roll_back_to)\b": "see docs/glossary.md",
    r"\b(lines?|rows?|tokens|images|steps|samples|sequences|bytes|seconds|files?) an? "
    r"(module|matrix|step|micro-step|process|rank|epoch|run|seed|role|refresh|image|sequence|row)\b": "per",
    r"\bnone such\b|\btherefrom\b|\bthereof\b": "plain English",
}
SHAPED = [  # the method and what handles tensors in a step
    *(p for p in (ROOT / "alphadecay").glob("*.py")),
    ROOT / "engine.py", ROOT / "llama/engine.py", ROOT / "runtime/steps.py", ROOT / "runtime/finite.py",
]  # fmt: skip


@pytest.mark.parametrize("retired", RETIRED, ids=list(RETIRED.values()))
def test_retired_words_stay_out(retired):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(retired, line)
    ]
    assert found == [], f"the word is: {RETIRED[retired]}"


def takes_tensors(function):
    """Whether a function has an argument that is a tensor, or a collection of them."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return any(a.annotation and re.search(r"\bTensor\b", ast.unparse(a.annotation)) for a in arguments)


@pytest.mark.parametrize("path", SHAPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_tensor_argument_has_its_shape(path):
    """In the docstring, or in a comment beside the argument: a shape, a scalar, or that any shape will do."""
    source = path.read_text()
    without = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and takes_tensors(function):
            text = ast.get_source_segment(source, function) or ""
            if not re.search(r"\bshapes?\b|\bscalars?\b|\(\w+(, \w+)*,?\)(?= float|: )|# \(", text):
                without.append(f"line {function.lineno}: {function.name}")
    assert without == []
