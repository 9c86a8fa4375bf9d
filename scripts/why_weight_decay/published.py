"""Runs the printed commands of "Why Do We Need Weight Decay in Modern Deep Learning?" (arXiv 2310.04415) here.

    cd scripts/why_weight_decay/large_language_models
    python train.py config/train_gpt2_small_block256.py --batch_size=8 ... -- --max_steps 100

A table per published program (language.py) has every flag, its default and our words for it. The command of ours that
a printed one stands for is written first, on one line that can be pasted at the repository root, and then run there.
Words after a lone `--` are ours, and win; paths in them are relative to the repository root. docs/why_weight_decay.md
shows what the printed commands become.
"""

import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from runtime.errors import UserError, did_you_mean, exit_status  # noqa: E402

Values = dict[str, Any]  # of flags by name; and of further {names} in words


@dataclass(frozen=True)
class Flag:
    """A flag of a published program.

    `words` are ours for it. {name} stands for the value of a flag, or for what the program's `derive` computes: a list
    stands for several words. A mapping has the words of each value that can be translated; no words: another flag's
    words have its value.
    """

    default: Any
    words: str | Mapping[Any, str] = ""
    of: type | None = None  # of its values, if the default is None
    minimum: float | None = None

    def value(self, text: str) -> Any:
        """The value that a text stands for; raises ValueError, whose message follows `--flag=text: `."""
        kind = self.of or type(self.default)
        if kind is bool:
            value: Any = {"True": True, "False": False}.get(text)
        else:
            try:
                value = kind(text)
            except ValueError:
                value = None
        if value is None or (kind is float and not math.isfinite(value)):
            wanted = {bool: "True nor False", int: "a whole number", float: "a number"}[kind]
            raise ValueError(f"is {'neither ' if kind is bool else 'not '}{wanted}")
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"must be at least {self.minimum:g}")
        if isinstance(self.words, Mapping) and value not in self.words:
            known = ", ".join(map(str, self.words))
            raise ValueError(f"cannot be translated; {'one of ' * (len(self.words) > 1)}{known} can")
        return value


@dataclass(frozen=True)
class Program:
    """A published program.

    `read` turns its arguments into the values of all flags. `derive` computes further values for our words. `check`
    raises UserError if a command cannot run, given the values and our words after `--`.
    """

    trainer: str  # ours
    flags: Mapping[str, Flag]
    read: Callable[["Program", Sequence[str]], Values]
    derive: Callable[[Values, Sequence[str]], Values]
    check: Callable[[Values, Sequence[str]], None] = lambda values, own: None
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # the files that set its flags, by path

    def flag(self, name: str) -> Flag:
        """A flag by name; raises UserError if the program has none of that name."""
        if name not in self.flags:
            hint = did_you_mean(name, self.flags, prefix="--") or f"known are --{', --'.join(self.flags)}"
            raise UserError(f"unknown flag --{name}; {hint}")
        return self.flags[name]

    def words(self, values: Values, own: Sequence[str]) -> list[str]:
        """Our words for the values of all flags."""
        known = values | self.derive(values, own)
        return [word for name, flag in self.flags.items() for word in _filled(flag.words, values[name], known)]


def _filled(words: str | Mapping[Any, str], value: Any, known: Values) -> list[str]:
    filled: list[str] = []
    for word in (words if isinstance(words, str) else words[value]).split():
        found = known[word[1:-1]] if word[0] == "{" else word
        filled += [str(each) for each in (found if isinstance(found, list) else [found])]
    return filled


def read_assignments(program: Program, words: Sequence[str]) -> Values:
    """The values of all flags, from words such as config/x.py and --key=value; later ones win.

    Raises:
        UserError: For an unknown config or flag, or a value that is wrong or cannot be translated.
    """
    values = {name: flag.default for name, flag in program.flags.items()}
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            if word not in program.configs:
                raise UserError(f"{word}: unknown config; known are {', '.join(program.configs)}")
            values |= program.configs[word]
            continue
        flag = program.flag(name)
        if not equals:
            raise UserError(f"--{name}: needs a value: --{name}=VALUE")
        try:
            values[name] = flag.value(text)
        except ValueError as error:
            raise UserError(f"{word}: {error}") from None
    return values


def translated(program: Program, words: Sequence[str]) -> tuple[list[str], Values, list[str]]:
    """Translate the arguments of a published program.

    Returns:
        All words for our trainer, the values of the published flags, and those of the words that are our own.

    Raises:
        UserError: If they cannot be translated.
    """
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    printed, own = words[:end], words[end + 1 :]
    values = program.read(program, printed)
    return [*program.words(values, own), *own], values, own


def run(program: Program, words: Sequence[str]) -> None:
    """Write our command for the arguments of a published program, then become it, at the repository root.

    Raises:
        UserError: If the arguments cannot be translated, or the command could not run.
    """
    os.chdir(ROOT)
    command, values, own = translated(program, words)
    program.check(values, own)
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(shlex.join(["python", program.trainer, *command]) + "\n")
        sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, program.trainer, *command])


def main(program: Program) -> None:
    """Run a published program with the arguments of this process."""
    status = exit_status(lambda: run(program, sys.argv[1:]))
    if os.environ.get("RANK", "0") != "0":
        time.sleep(2)  # torchrun kills rank 0, which alone prints the error, as soon as another rank has ended
    sys.exit(status)
