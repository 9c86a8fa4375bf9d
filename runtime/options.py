"""Command-line options from frozen dataclasses: the fields give types and defaults, their metadata constraints.

A module of options, which imports no slow package, declares them:

    @dataclass(frozen=True)
    class DecayOptions:
        TITLE = "Decay"  # title of the group in --help
        decay_low: float = option(2 / 3, "smallest multiplier", minimum=0)

and lists constraints between options in `CHECKS`, as (predicate, message) pairs.
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
LARGEST = 2**63 - 1  # larger whole numbers do not fit into a tensor, and some not into a float
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
    """A dataclass field that is a command-line option; one whose default is a tuple takes any number of values.

    `metavar` is the name of a value in --help. `fixed` is the category, such as "augmentation", of an option that must
    not change when a run resumes; "": it may change; None: the class's FIXED, if any. See `runtime.run_contract`.
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
        The value of every option by name, and the names of options on the command line.

    Raises:
        UserError: For an unknown option or a value of the wrong type.
    """
    names = [f.name for cls in classes for f in fields(cls)]
    parser = _Parser(
        usage="%(prog)s [options]", description=description, epilog=_epilog(names), allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )  # fmt: skip
    known = {}
    for cls in classes:
        title = getattr(cls, "TITLE", cls.__name__.removesuffix("Options"))
        group = parser.add_argument_group(title, (cls.__doc__ or "").split("\n")[0])
        hints = get_type_hints(cls)
        for option_field in fields(cls):
            known[option_field.name] = option_field.default
            _add(group, option_field, hints[option_field.name])
            for name, published in PUBLISHED.items():
                if published.option == option_field.name:
                    _add_published(group, name, published, hints[option_field.name])
    _refuse_single_dashes(argv, known)
    parsed, unknown = parser.parse_known_args([_spelled(word) for word in argv])
    if unknown:
        typed = next(word for word in argv if _spelled(word) == unknown[0])
        raise UserError(_unknown_option(typed, known))
    values = known | {name: value for name, value in (defaults or {}).items() if name in known} | vars(parsed)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return values, set(vars(parsed))


def build(classes: Sequence[type], values: Mapping[str, Any], checks: Sequence[Check] = ()) -> list[Any]:
    """Instances of the dataclasses from values by name, after checking every constraint.

    Args:
        classes: As for `parse`; a class may have `CHECKS`, pairs of (predicate on the instance, message).
        values: The value of every option.
        checks: Pairs of (predicate on a namespace of all options, message); messages may use {option} fields.

    Raises:
        UserError: For the first violated constraint; the message names option and value.
    """
    instances = []
    for cls in classes:
        hints = get_type_hints(cls)
        for option_field in fields(cls):
            _check_type(option_field, values[option_field.name], hints[option_field.name])
            _check_value(option_field, values[option_field.name])
        instance = cls(**{f.name: values[f.name] for f in fields(cls)})
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
    """A published switch: on, it sets our option; off, only if nothing else has set it (two switches can share one)."""

    def __init__(self, *words: Any, published: Published, **named: Any) -> None:
        super().__init__(*words, **named)
        self.published = published

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        on = values if isinstance(values, bool) else self.const
        current, wanted = getattr(namespace, self.dest, None), self.published.values[on]
        if on and current not in (None, wanted, self.published.values[False]):
            raise UserError(f"{option_string}: means --{self.dest} {wanted}, but --{self.dest} {current} was given too")
        if on or current is None:
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
    """Notes on all options, and the list of published names, which --help does not show next to ours."""
    pairs = [f"--{name} for --{published.option}" for name, published in PUBLISHED.items() if published.option in names]
    lines = ["A switch is turned off by --no_NAME. In names, dashes and underscores are the same."]
    lines += [f"The names of the published programs work too: {', '.join(pairs)}."] if pairs else []
    return "\n".join(textwrap.fill(line, 100, break_on_hyphens=False) for line in lines)


def _add(group: Any, option_field: Field, hint: Any) -> None:
    kind, many = _kind(hint)
    name = option_field.name
    common = {"dest": name, "default": argparse.SUPPRESS, "help": _help(option_field).replace("%", "%%")}
    if kind is bool:
        group.add_argument(f"--{name}", nargs="?", const=True, type=_boolean, **common)
        off = {**common, "help": argparse.SUPPRESS}
        group.add_argument(f"--no_{name}", action="store_const", const=False, **off)
        return
    converter = _renamed(RENAMED_VALUES.get(name, {}), _converter(kind))
    metavar = option_field.metadata["metavar"] or {int: "N", float: "X"}.get(kind, "NAME")
    group.add_argument(f"--{name}", type=converter, nargs="*" if many else None, metavar=metavar, **common)


def _help(option_field: Field) -> str:
    """An option's help with its choices and its default, unless that is empty."""
    text, choices, default = option_field.metadata["help"], option_field.metadata["choices"], option_field.default
    if choices:
        text += f"; one of {', '.join(choices)}"
    if default in ((), None, "") or default is False:
        return text
    return f"{text} (default: {'on' if default is True else _readable(default)})"


def _readable(value: Any) -> str:
    """0.6666666666666666 as 0.667; short values unchanged."""
    return f"{value:.3g}" if isinstance(value, float) and len(str(value)) > 8 else str(value)


def _add_published(group: Any, name: str, published: Published, hint: Any) -> None:
    """Add the published name of an option of ours; --help shows it in the epilog only."""
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
        hint = next(member for member in get_args(hint) if member is not type(None))
    return hint, False


def _spelled(word: str) -> str:
    """A word with underscores in its option name; other words unchanged."""
    match = OPTION_NAME.match(word)
    if not match or (match.end() < len(word) and word[match.end()] != "="):
        return word
    return "--" + match.group()[2:].replace("-", "_") + word[match.end() :]


def _refuse_single_dashes(argv: Sequence[str], known: Mapping[str, Any]) -> None:
    """Raise UserError for a word such as -lr; the message of argparse would not show the mistake."""
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


def _check_type(option_field: Field, value: Any, hint: Any) -> None:
    """Raise UserError for a value of the wrong type; the parser has not seen the values of a configuration file."""
    kind, many = _kind(hint)
    accepted = (int, float) if kind is float else kind
    parts = value if many and isinstance(value, tuple) else (value,)
    matches = all(isinstance(p, accepted) and (kind is bool or not isinstance(p, bool)) for p in parts)
    if many and not isinstance(value, tuple):
        raise UserError(f"--{option_field.name} {value!r}: must be a list")
    if not matches and not (value is None and option_field.default is None):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
        raise UserError(f"--{option_field.name} {value!r}: must be {'a list, each ' * many}{wanted}")
    if any(isinstance(p, int) and abs(p) > LARGEST or isinstance(p, float) and not math.isfinite(p) for p in parts):
        raise UserError(f"--{option_field.name} {str(value)[:40]}: must be a finite number below 2^63")


def _check_value(option_field: Field, value: Any) -> None:
    name, rules = option_field.name, option_field.metadata
    if value is None or option_field.default is MISSING:
        return
    if rules["choices"] and value not in rules["choices"]:
        hint = f" ({close})" if (close := did_you_mean(str(value), rules["choices"])) else ""
        raise UserError(f"--{name} {value}: must be one of {', '.join(rules['choices'])}{hint}")
    for rule, broken, words in (
        ("minimum", lambda limit: value < limit, "at least"),
        ("above", lambda limit: value <= limit, "above"),
        ("maximum", lambda limit: value > limit, "at most"),
    ):
        if rules[rule] is not None and broken(rules[rule]):
            raise UserError(f"--{name} {value}: must be {words} {rules[rule]:g}")
