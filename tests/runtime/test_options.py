"""The command line: spelling, types, published names, and that no option goes unread."""

from dataclasses import dataclass, fields

import pytest
from sources import attributes_read
from tiny import ROOT

import main as program
import main_llama
from runtime.errors import UserError
from runtime.options import build, option, parse
from runtime.published import PUBLISHED
from runtime.strategies import STRATEGIES


@dataclass(frozen=True)
class Example:
    """Example options."""

    a_rate: float = option(0.5, "a rate", minimum=0, maximum=1)
    many: tuple[str, ...] = option((), "words")
    flag: bool = option(False, "a flag")
    count: int | None = option(None, "a count", above=0)
    kind: str = option("x", "a kind", choices=("x", "yy"))

    CHECKS = ((lambda o: not (o.flag and o.kind == "yy"), "--flag {flag}: not with --kind {kind}"),)


def read(*words):
    return build([Example], parse([Example], words)[0])[0]


def test_defaults_are_the_fields():
    assert read() == Example()


def test_words_of_the_command_line_count_more_than_stored_options():
    values, _ = parse([Example], ["--a_rate", "0.25"], defaults={"a_rate": 0.75, "kind": "yy", "unknown": 1})
    assert (values["a_rate"], values["kind"]) == (0.25, "yy") and "unknown" not in values


@pytest.mark.parametrize("word", ["--a_rate", "--a-rate"])
def test_dashes_and_underscores_both_work(word):
    assert read(word, "0.25").a_rate == 0.25 and read(f"{word}=0.25").a_rate == 0.25


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--flag"], True),
        (["--flag", "true"], True),
        (["--flag=false"], False),
        (["--no-flag"], False),
        (["--no_flag"], False),
    ],
)
def test_booleans_have_every_spelling(words, value):
    assert read(*words).flag is value


def test_values_keep_their_dashes():
    assert read("--many", "a-b=c-d", "e").many == ("a-b=c-d", "e")


def test_whole_numbers_may_have_underscores():
    assert read("--count", "10_000").count == 10_000


BAD = {
    "unknown option --a_rat; did you mean --a_rate?": ["--a_rat", "1"],
    "unknown option --zzz; --help lists": ["--zzz"],
    "--a_rate: 'fast' is not a number": ["--a_rate", "fast"],
    "--a_rate: 'nan' is not a number": ["--a_rate", "nan"],
    "--a_rate 2.0: must be at most 1": ["--a_rate", "2"],
    "--a_rate -1.0: must be at least 0": ["--a_rate", "-1"],
    "--count 0: must be above 0": ["--count", "0"],
    "--count: '1.5' is not a whole number": ["--count", "1.5"],
    "--flag: 'maybe' is neither true nor false": ["--flag", "maybe"],
    "--kind y: must be one of x, yy (did you mean yy?)": ["--kind", "y"],
    "--flag True: not with --kind yy": ["--flag", "--kind", "yy"],
    "unexpected word 'stray'": ["--flag", "true", "stray"],
}


@pytest.mark.parametrize(("message", "words"), BAD.items(), ids=BAD)
def test_bad_words_are_one_line_with_the_culprit(message, words):
    with pytest.raises(UserError) as caught:
        read(*words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_published_names_mean_ours():
    words = "--opt sgd --wd_min_ratio 0.5 --wd_max_ratio 4 --unbalancedWD_every 7 --assign_func tb_sqrt".split()
    read_in = program.read_options([*words, "--data_set", "digits"])
    assert (read_in.optimizer.optimizer, read_in.decay.decay_low, read_in.decay.decay_high) == ("sgd", 0.5, 4)
    assert (read_in.decay.decay_interval, read_in.decay.decay_assign) == (7, "sqrt")


def test_published_names_lead_to_options_that_exist():
    assert {published.option for published in PUBLISHED.values()} <= {
        each.name for cls in program.OPTION_CLASSES for each in fields(cls)
    }


@pytest.mark.parametrize("trainer", [program, main_llama], ids=lambda trainer: trainer.__name__)
def test_every_option_name_is_declared_once(trainer):
    names = [each.name for cls in trainer.OPTION_CLASSES for each in fields(cls)]
    assert len(names) == len(set(names))


SHARED = (ROOT / "optim_factory.py", *(ROOT / "runtime").glob("*.py"))
OWN = {program: ("main.py", "engine.py", "datasets.py", "vision/*.py"), main_llama: ("main_llama.py", "llama/*.py")}


@pytest.mark.parametrize("trainer", [program, main_llama], ids=lambda trainer: trainer.__name__)
def test_no_option_goes_unread(trainer):
    own = [path for pattern in OWN[trainer] for path in ROOT.glob(pattern)]
    read_somewhere = attributes_read([*SHARED, *own])
    read_somewhere |= {option for strategy in STRATEGIES.values() for option in strategy.arguments.values()}
    unread = [each.name for cls in trainer.OPTION_CLASSES for each in fields(cls) if each.name not in read_somewhere]
    assert unread == []


def test_the_guard_against_unread_options_can_fail(tmp_path):
    (tmp_path / "source.py").write_text("a.kind = 1\nprint(a.flag)\n")
    assert attributes_read([tmp_path / "source.py"]) == {"flag"}


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(program.OPTION_CLASSES, ["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert [n for cls in program.OPTION_CLASSES for n in fields(cls) if f"--{n.name}" not in text] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("a_rate", "fast"), ("a_rate", None), ("flag", "yes"), ("count", 1.5), ("count", True), ("many", 3)],
)
def test_values_of_the_wrong_type_in_a_configuration_are_named(name, value):
    values, _ = parse([Example], [], defaults={name: value})
    with pytest.raises(UserError, match=f"--{name} .*: must be "):
        build([Example], values)


@pytest.mark.parametrize(
    ("words", "decay"),
    [
        ("--use_modulewise_wd --esd_metric_for_tb alpha --assign_func tb_linear_map", "alphadecay"),
        ("--use_modulewise_wd --esd_metric_for_tb gradnorm --assign_func layerwise_sigmoid", "adadecay"),
        ("--use_modulewise_wd --esd_metric_for_tb gradnorm --assign_func tb_linear_map", "alphadecay"),
        ("--use_AWD_NeurIPS2023", "awd"),
        ("--use_AWD_NeurIPS2023 --use_modulewise_wd false", "awd"),
        ("--use_modulewise_wd false --use_AWD_NeurIPS2023 true", "awd"),
        ("--use_AWD_NeurIPS2023 false --use_modulewise_wd", "alphadecay"),
        ("--no_use_AWD_NeurIPS2023", "uniform"),
        ("", "uniform"),
    ],
)
def test_published_switches_name_the_kind_of_decay(words, decay):
    options = program.read_options(["--data_set", "digits", *words.split()]).decay
    assert options.decay == decay
    resolved = [f"--{name}={getattr(options, name)}" for name in ("decay", "decay_metric", "decay_assign")]
    assert program.read_options(["--data_set", "digits", *resolved]).decay == options
