"""Every attack ends with status 2 and one line that names the culprit; nothing is written, nothing is lost."""

import shlex
import shutil
import signal
import sys

import pytest
from attacks import ATTACKS
from attacks.attack import snapshot
from tiny import TINY, run
from tiny_text import TINY_TEXT, run_text

import compare
from alphadecay.command.analyze import main as analyze
from runtime.errors import exit_status

SECONDS = 20  # none takes as long
COPIED = ("run", "text_run", "model")


class Hung(BaseException):
    """An attack that does not end."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of each trainer and an exported model, which the cases damage copies of."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(*TINY, "--max_steps", "5", "--output_dir", folder / "run", monkeypatch=monkeypatch) == 0
    words = ["--max_steps", "3", "--export_hf", folder / "model", "--output_dir", folder / "text_run"]
    assert run_text(*TINY_TEXT, *words) == 0
    return folder


def call(attack, here, monkeypatch) -> int:
    """The exit status of the attacked program."""
    words = [word.replace("{here}", str(here)) for word in shlex.split(attack.words)]
    for name in COPIED:
        words = [word.replace(f"{{{name}}}", str(here / name)) for word in words]
    for name, value in attack.environment:
        monkeypatch.setenv(name, value)
    elsewhere = (
        [] if "--output_dir" in words or "--resume {run}" in attack.words else ["--output_dir", str(here / "out")]
    )
    if attack.program == "alphadecay":
        return analyze(words)
    if attack.program == "compare.py":
        monkeypatch.setattr(sys, "argv", ["compare.py", *words])
        return exit_status(compare.main)
    alone = "--resume {run}" in attack.words or "--config" in words  # whose options are those of a run
    if attack.program == "main.py":
        return run(*([] if alone else TINY), *elsewhere, *words, monkeypatch=monkeypatch)
    return run_text(*([] if alone else TINY_TEXT), *elsewhere, *words)


def test_there_are_enough_attacks_on_each_program():
    counts = {each.program: 0 for each in ATTACKS}
    for each in ATTACKS:
        counts[each.program] += 1
    assert len({each.name for each in ATTACKS}) == len(ATTACKS) >= 250 and min(counts.values()) >= 40, counts


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_ends_in_one_line_and_changes_nothing(attack, finished, tmp_path, monkeypatch, capsys):
    here = tmp_path
    for name in COPIED:
        if f"{{{name}}}" in attack.words:
            shutil.copytree(finished / name, here / name, symlinks=True)
    if attack.build is not None:
        attack.build(here)
    before = snapshot(here)
    monkeypatch.setattr("runtime.trainer.Trainer._figures", lambda *_: {})
    capsys.readouterr()

    def hung(*_) -> None:
        raise Hung(attack.name)

    handler = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    try:
        status = call(attack, here, monkeypatch)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and said.err.endswith(f"{errors[0]}\n"), said.err
    assert attack.culprit.replace("{here}", str(here)) in errors[0] and errors[0].isprintable(), errors[0]
    assert "Traceback" not in said.out + said.err
    after = snapshot(here)
    assert {
        path: each for path, each in after.items() if not (attack.trains and path.startswith(f"{here}/out"))
    } == before
