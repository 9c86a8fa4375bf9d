"""Command-line options from frozen dataclasses: types and defaults are the fields', constraints their metadata.

A module of options, which imports nothing slow, declares them:

    @dataclass(frozen=True)
    class DecayOptions:
        TITLE = "Decay"  # of their group in --help
        decay_low: float = option(2 / 3, "smallest multiplier", minimum=0)

and lists what must hold between them in `CHECKS`, as (predicate, message) pairs.
"""

import argparse
import math
import re
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from runtime.errors import UserError, did_you_mean
from runtime.published import PUBLISHED, RENAMED_VALUES, Published

Check = tuple[Callable[[Any], bool], str]
LARGEST = 2**63 - 1  # whole numbers beyond it fit no tensor, and some no float
OPTION_NAME = re.compile(r"--[A-Za-z][\w-]*")


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    metavar: str | None = None,
    fixed: str | None = None,
) -> Any:
    """A dataclass field that is a command-line option; a tuple as default takes any number of values.

    `metavar` is what --help calls a value. `fixed` names what a run cannot change when it goes on, such as
    "augmentation"; "": it can; None: as FIXED of the class says, if it has one. See `runtime.run_contract`.
    """
    limits = {"choices": choices, "minimum": minimum, "above": above, "maximum": maximum}
    return field(default=default, metadata={"help": help, "metavar": metavar, "fixed": fixed, **limits})


def parse(
    classes: Sequence[type],
    argv: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    description: str = "",
) -> tuple[dict[str, Any], set[str]]:
    """Read a command line.

    Args:
        classes: The dataclasses whose fields are the options.
        argv: The words of the command line; dashes and underscores in names both work.
        defaults: Values that replace the fields' own defaults, such as those of a run's config.json.
        description: Shown above the options by --help.

    Returns:
        Every option's value by name, and the names that were given on the command line.

    Raises:
        UserError: For an unknown option or a value of the wrong type.
    """
    names = [each.name for cls in classes for each in fields(cls)]
    parser = _Parser(
        usage="%(prog)s [options]", description=description, epilog=_epilog(names), allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )  # fmt: skip
    known = {}
    for cls in classes:
        title = getattr(cls, "TITLE", cls.__name__.removesuffix("Options"))
        group = parser.add_argument_group(title, (cls.__doc__ or "").split("\n")[0])
        hints = get_type_hints(cls)
        for each in fields(cls):
            known[each.name] = each.default
            _add(group, each, hints[each.name])
            for name, published in PUBLISHED.items():
                if published.option == each.name:
                    _add_published(group, name, published, hints[each.name])
    _refuse_single_dashes(argv, known)
    given, unknown = parser.parse_known_args([_spelled(word) for word in argv])
    if unknown:
        typed = next(word for word in argv if _spelled(word) == unknown[0])
        raise UserError(_unknown_option(typed, known))
    values = known | {name: value for name, value in (defaults or {}).items() if name in known} | vars(given)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return values, set(vars(given))


def build(classes: Sequence[type], values: Mapping[str, Any], checks: Sequence[Check] = ()) -> list[Any]:
    """Instances of the dataclasses from values by name, every constraint checked.

    Args:
        classes: As for `parse`; a class may have `CHECKS`, pairs of (predicate on the instance, message).
        values: Every option's value.
        checks: Pairs of (predicate on a namespace of all options, message); messages may use {option} fields.

    Raises:
        UserError: For the first constraint that does not hold; option and value are named.
    """
    instances = []
    for cls in classes:
        hints = get_type_hints(cls)
        for each in fields(cls):
            _check_type(each, values[each.name], hints[each.name])
            _check_value(each, values[each.name])
        instance = cls(**{each.name: values[each.name] for each in fields(cls)})
        for holds, message in getattr(cls, "CHECKS", ()):
            if not holds(instance):
                raise UserError(message.format_map(vars(instance)))
        instances.append(instance)
    everything = types.SimpleNamespace(**values)
    for holds, message in checks:
        if not holds(everything):
            raise UserError(message.format_map(values))
    return instances


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(message.removeprefix("argument ").replace("expected one argument", "needs a value"))


class _Switch(argparse.Action):
    """A published switch: on, it sets our option; off, it does so unless something else has (two may share one)."""

    def __init__(self, *words: Any, published: Published, **named: Any) -> None:
        super().__init__(*words, **named)
        self.published = published

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        on = values if isinstance(values, bool) else self.const
        before, wanted = getattr(namespace, self.dest, None), self.published.values[on]
        if on and before not in (None, wanted, self.published.values[False]):
            raise UserError(f"{option_string}: means --{self.dest} {wanted}, but --{self.dest} {before} was given too")
        if on or before is None:
            setattr(namespace, self.dest, wanted)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "?":  # a switch
            return ""
        return f"{action.metavar} ..." if action.nargs == "*" else super()._format_args(action, default_metavar)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return super()._format_action_invocation(action).rstrip()


def _epilog(names: Sequence[str]) -> str:
    """What holds for all options, and the published names, which --help does not show beside ours."""
    pairs = [f"--{name} for --{each.option}" for name, each in PUBLISHED.items() if each.option in names]
    lines = ["A switch is turned off by --no_NAME. In names, dashes and underscores are the same."]
    lines += [f"The names of the published programs work too: {', '.join(pairs)}."] if pairs else []
    return "\n".join(textwrap.fill(line, 100, break_on_hyphens=False) for line in lines)


def _add(group: Any, each: Field, hint: Any) -> None:
    kind, many = _kind(hint)
    common = {"dest": each.name, "default": argparse.SUPPRESS, "help": _help(each).replace("%", "%%")}
    if kind is bool:
        group.add_argument(f"--{each.name}", nargs="?", const=True, type=_boolean, **common)
        off = {**common, "help": argparse.SUPPRESS}
        group.add_argument(f"--no_{each.name}", action="store_const", const=False, **off)
        return
    converter = _renamed(RENAMED_VALUES.get(each.name, {}), _converter(kind))
    metavar = each.metadata["metavar"] or {int: "N", float: "X"}.get(kind, "NAME")
    group.add_argument(f"--{each.name}", type=converter, nargs="*" if many else None, metavar=metavar, **common)


def _help(each: Field) -> str:
    """An option's help with its choices and, where it says something, its default."""
    text, choices = each.metadata["help"], each.metadata["choices"]
    if choices:
        text += f"; one of {', '.join(choices)}"
    if each.default in ((), None, "") or each.default is False:
        return text
    return f"{text} (default: {'on' if each.default is True else _readable(each.default)})"


def _readable(value: Any) -> str:
    """0.6666666666666666 as 0.667; what is short stays as it is."""
    return f"{value:.3g}" if isinstance(value, float) and len(str(value)) > 8 else str(value)


def _add_published(group: Any, name: str, published: Published, hint: Any) -> None:
    """The published name of an option of ours, out of sight of --help, which names it at ours."""
    common = {"dest": published.option, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    if True in published.values:
        switch = {"action": _Switch, "published": published, "type": _boolean, **common}
        group.add_argument(f"--{name}", nargs="?", const=True, **switch)
        group.add_argument(f"--no_{name}", nargs=0, const=False, **switch)
        return
    group.add_argument(f"--{name}", type=_renamed(published.values, _converter(_kind(hint)[0])), **common)


def _converter(kind: type) -> Callable[[str], Any]:
    converters: dict[type, Callable[[str], Any]] = {int: _integer, float: _number}
    return converters.get(kind, str)


def _renamed(names: Mapping[Any, str], converter: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: converter(names.get(text, text))


def _kind(hint: Any) -> tuple[type, bool]:
    """The basic type of an annotation such as float, int | None or tuple[str, ...], and whether it is a tuple."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    return hint, False


def _spelled(word: str) -> str:
    """An option's name with underscores; values stay as they are."""
    match = OPTION_NAME.match(word)
    if not match or (match.end() < len(word) and word[match.end()] != "="):
        return word
    return "--" + match.group()[2:].replace("-", "_") + word[match.end() :]


def _refuse_single_dashes(argv: Sequence[str], known: Mapping[str, Any]) -> None:
    """Raise UserError for a word such as -lr, of which argparse would only say that it does not know --lr."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, _ = word[1:].partition("=")
        spelled = name.replace("-", "_")
        if word[:1] == "-" and word[:2] != "--" and spelled in {*known, *PUBLISHED, "help"}:
            value = "" if equals or following.startswith("--") else f" {following}".rstrip()
            raise UserError(f"{word}: names of options begin with two dashes; write -{word}{value}")


def _unknown_option(word: str, known: Mapping[str, Any]) -> str:
    if not word.startswith("-"):
        return f"unexpected word {word!r}; options begin with --"
    typed = word.split("=")[0]
    hint = did_you_mean(typed.lstrip("-").replace("-", "_"), [*known, *PUBLISHED], at_most=3, prefix="--")
    return f"unknown option {typed}; {hint or '--help lists the options'}"


def _boolean(text: str) -> bool:
    truths = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    if text.lower() not in truths:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return truths[text.lower()]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _check_type(each: Field, value: Any, hint: Any) -> None:
    """Values of a configuration file have not been through the parser."""
    kind, many = _kind(hint)
    accepted = (int, float) if kind is float else kind
    parts = value if many and isinstance(value, tuple) else (value,)
    right = all(isinstance(p, accepted) and (kind is bool or not isinstance(p, bool)) for p in parts)
    if many and not isinstance(value, tuple):
        raise UserError(f"--{each.name} {value!r}: must be a list")
    if not right and not (value is None and each.default is None):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
        raise UserError(f"--{each.name} {value!r}: must be {'a list, each ' * many}{wanted}")
    if any(isinstance(p, int) and abs(p) > LARGEST or isinstance(p, float) and not math.isfinite(p) for p in parts):
        raise UserError(f"--{each.name} {str(value)[:40]}: is no number that is finite and fits 63 bits")


def _check_value(each: Field, value: Any) -> None:
    rules = each.metadata
    if value is None or each.default is MISSING:
        return
    if rules["choices"] and value not in rules["choices"]:
        hint = f" ({close})" if (close := did_you_mean(str(value), rules["choices"])) else ""
        raise UserError(f"--{each.name} {value}: must be one of {', '.join(rules['choices'])}{hint}")
    for rule, broken, words in (
        ("minimum", lambda limit: value < limit, "at least"),
        ("above", lambda limit: value <= limit, "above"),
        ("maximum", lambda limit: value > limit, "at most"),
    ):
        if rules[rule] is not None and broken(rules[rule]):
            raise UserError(f"--{each.name} {value}: must be {words} {rules[rule]:g}")
