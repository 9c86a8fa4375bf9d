"""The 35 printed commands of the published language program, and the translator."""

import json
import shlex
import sys
from functools import cache
from typing import NamedTuple

from tiny import ROOT

FOLDER = ROOT / "scripts" / "why_weight_decay"
GOLDENS = ROOT / "tests" / "goldens" / "why_weight_decay"
sys.path.append(str(FOLDER))

from language import LANGUAGE  # noqa: E402
from published import run, translated  # noqa: E402, F401

from main_llama import read_options  # noqa: E402


class Command(NamedTuple):
    """A printed command."""

    group: str
    line: str

    @property
    def words(self) -> list[str]:
        """Its arguments."""
        program, script, *words = shlex.split(self.line)
        assert (program, script) == ("python", "train.py")
        return words


@cache
def commands() -> tuple[Command, ...]:
    """The printed commands in their order; a line that begins with # names the group of those after it."""
    found, group = [], ""
    for line in (FOLDER / "large_language_models" / "commands.txt").read_text().splitlines():
        if line.startswith("# "):
            group = line[2:]
        else:
            found.append(Command(group, line))
    return tuple(found)


@cache
def published_settings() -> list[dict]:
    """What the published program makes of each command: settings, and learning rates as [iteration, rate]."""
    return json.loads((GOLDENS / "language_schedules.json").read_text())


def first_of_groups() -> list[Command]:
    """One command of each group."""
    return list({command.group: command for command in reversed(commands())}.values())[::-1]


def our_options(words, *own):
    """The options of our trainer for the arguments of the published program, also where the checkpoint is missing."""
    resume = [] if "--resume" in own else ["--resume", ""]
    return read_options(translated(LANGUAGE, [*words, "--", *resume, *map(str, own)])[0])
