"""Comparisons that cannot be run: one line that says where the mistake is, before anything starts."""

import copy
import datetime
import itertools
import os
import re
import socket
import time

import pytest
import yaml

from comparison.grid import read_grid
from runtime.errors import UserError

GRID = {
    "seeds": [0, 1],
    "strategies": {"none": {"weight_decay": 0}, "uniform": {}, "alphadecay": {"decay": "alphadecay"}},
    "contrasts": [["alphadecay", "none"]],
    "domains": {
        "digits": {
            "program": "main.py",
            "metric": "acc1",
            "options": {"data_set": "digits", "optimizer": "adamw"},
            "search": {"weight_decay": [0.1, 0.5]},
            "grid": {"size": {"small": {"epochs": 2}, "large": {"epochs": 4}}},
            "published": {"small": {"uniform": [90.0, None]}},
        }
    },
}
DIGITS = ("domains", "digits")
REMOVED = object()


def changed(*changes):
    """The grid with values at some paths set, or removed."""
    grid = copy.deepcopy(GRID)
    for path, value in changes:
        place = grid
        for key in path[:-1]:
            place = place[key]
        if value is REMOVED:
            del place[path[-1]]
        else:
            place[path[-1]] = value
    return grid


def digits(key, value):
    """The grid with one key of its domain set; other points have no published figures."""
    fewer = [((*DIGITS, "published"), REMOVED)] if key == "search" else []
    return changed(((*DIGITS, key), value), *fewer)


@pytest.fixture
def read(tmp_path):
    def read(grid):
        path = tmp_path / "grid.yaml"
        path.write_text(grid if isinstance(grid, str) else yaml.safe_dump(grid, sort_keys=False))
        return read_grid(path)

    return read


@pytest.fixture
def refusal(read, tmp_path):
    """The one line in which a grid is refused, without the file's name, which it begins with."""

    def refusal(grid):
        with pytest.raises(UserError) as error:
            read(grid)
        message = str(error.value)
        assert message.startswith(f"{tmp_path / 'grid.yaml'}: ") and "\n" not in message
        return message.removeprefix(f"{tmp_path / 'grid.yaml'}: ")

    return refusal


def test_the_grid_of_these_tests_is_read(read):
    assert len(read(GRID).specs) == 2 * (1 + 2 + 2) * 2


@pytest.mark.parametrize("grid, words", [
    (changed((("strategys",), {})), "strategys: unknown key; did you mean strategies?"),
    (changed((("xyz",), 1)), "xyz: unknown key; known are title, notes, baseline,"),
    (digits("optoins", {}), "domain digits: optoins: unknown key; did you mean options?"),
    (changed((("strategies",), REMOVED)), "strategies: is missing"),
    (changed((("domains",), {})), "domains: is missing"),
    (changed(((*DIGITS, "program"), REMOVED)), "domain digits: program: is missing"),
])  # fmt: skip
def test_keys_are_known_and_there(refusal, grid, words):
    assert refusal(grid).startswith(words)


@pytest.mark.parametrize("grid, words", [
    (changed((("seeds",), 3)), "seeds: 3: must be a list"),
    (changed((("title",), 3)), "title: 3: must be text"),
    (changed((("strategies",), ["uniform"])), "strategies: ['uniform']: must be a mapping"),
    (changed((("strategies", "uniform"), "uniform")), "strategy uniform: 'uniform': must be a mapping of names"),
    (changed((("strategies", False), {})), "strategies: False: must be a name; write it in quotes"),
    (changed((DIGITS, "main.py")), "domain digits: 'main.py': must be a mapping of names"),
    (digits("options", None), "domain digits: options: None: must be a mapping"),
    (digits("options", {3: 4}), "domain digits: options: 3: must be a name; write it in quotes"),
    (digits("search", "weight_decay"), "domain digits: search: 'weight_decay': must be a mapping or a list"),
    (digits("search", {"weight_decay": 0.1}), "domain digits: search: weight_decay: 0.1: must be a list"),
    (digits("search", [0.1, 0.5]), "domain digits: search: 0.1: must be a mapping of names"),
    (digits("grid", {"epochs": 3}), "domain digits: grid: epochs: 3: must be a list"),
    (digits("processes", True), "domain digits: processes: True: must be a whole number"),
    (digits("processes", 0), "domain digits: processes: 0: must be at least 1"),
    (digits("strategies", {"none": 0}), "domain digits: strategy none: 0: must be a mapping of names"),
    ("- 1\n- 2\n", "[1, 2]: must be a mapping of names"),
])  # fmt: skip
def test_values_have_the_form_of_their_key(refusal, grid, words):
    assert refusal(grid).startswith(words)


@pytest.mark.parametrize("grid, words", [
    (changed((("seeds",), [])), "domain digits: seeds: []: must be one or more, each only once"),
    (digits("seeds", []), "domain digits: seeds: []: must be one or more"),
    (digits("search", []), "domain digits: search: []: must be a list that is not empty"),
    (digits("search", {"weight_decay": []}), "domain digits: search: weight_decay: []: must be a list that is not"),
    (digits("search", [{}]), "domain digits: search: [{}]: every point must set the same options"),
    (digits("grid", {"size": {}}), "domain digits: grid: size: {}: must be a list that is not empty"),
    (digits("published", {"small": {"uniform": []}}), "domain digits: published: small: uniform: []: must be a list"),
    (digits("strategies", dict.fromkeys(GRID["strategies"])), "domain digits: strategies: has none"),
    ("", "strategies: is missing"),
])  # fmt: skip
def test_nothing_is_never_taken_for_something(refusal, grid, words):
    assert refusal(grid).startswith(words)


@pytest.mark.parametrize("seeds, words", [
    ([0, 1, 0], "seeds: [0, 1, 0]: must be one or more, each only once"),
    ([-1], "seeds: -1: is not a whole number of 0 or more"),
    ([True], "seeds: True: is not a whole number"),
    ([0.5], "seeds: 0.5: is not a whole number"),
    ([[0]], "seeds: [0]: is not a whole number"),
])  # fmt: skip
def test_seeds_are_whole_numbers_each_one_once(refusal, seeds, words):
    assert refusal(changed((("seeds",), seeds))).startswith(f"domain digits: {words}")


@pytest.mark.parametrize("grid, words", [
    (digits("program", "train.py"), "domain digits: program: train.py: must be one of main.py, main_llama.py"),
    (digits("metric", "perplexity"), "domain digits: metric: perplexity: must be one of acc1, acc1_ema,"),
    (changed((("baseline",), "unifrom")), "domain digits: baseline: unifrom: no such strategy; known are none,"),
    (digits("strategies", {"uniform": None}), "domain digits: baseline: uniform: no such strategy"),
    (digits("strategies", {"awd": None}), "domain digits: strategies: awd: is left out but is not one of none, uni"),
    (changed((("contrasts",), [["alphadecay", "awd"]])), "contrasts: awd: no such strategy; known are none, uniform"),
    (changed((("contrasts",), [["alphadecay"]])), "contrasts: ['alphadecay']: is not a pair of strategies"),
    (changed((("contrasts",), [["none", "none"]])), "contrasts: ['none', 'none']: is not a pair"),
    (changed((("contrasts",), [[["none"], "uniform"]])), "contrasts: ['none']: no such strategy"),
])  # fmt: skip
def test_what_is_named_exists(refusal, grid, words):
    assert refusal(grid).startswith(words)


@pytest.mark.parametrize("strategies", [[{"a": 1}], 5])
def test_strategies_of_another_domain_have_the_form_of_their_key_too(refusal, strategies):
    grid = changed((("domains", "other"), {"program": "main.py", "strategies": strategies}))
    assert "domain other: strategies: " in refusal(grid)


def test_a_date_is_no_value_of_an_option(refusal):
    said = refusal(changed(((*DIGITS, "options", "wandb_name"), datetime.date(2026, 1, 1))))
    assert "wandb_name: 2026-01-01: is not text or a number; write it in quotes" in said


def test_a_contrast_may_be_of_strategies_that_only_one_domain_has(read):
    grid = changed(
        (("domains", "other"), {**GRID["domains"]["digits"], "strategies": {"awd": {"decay": "awd"}}}),
        (("contrasts",), [["awd", "uniform"]]),
    )
    contrasts = {setting.domain: setting.contrasts for setting in read(grid).settings}
    assert contrasts == {"digits": (), "other": (("awd", "uniform"),)}


PREFIX = "run digits/small/{}/seed0: "


@pytest.mark.parametrize("grid, spec, words", [
    (changed(((*DIGITS, "options", "batchsize"), 8)), "none", "unknown option --batchsize; did you mean --batch_size"),
    (changed((("strategies", "uniform", "dekay"), "awd")), "uniform/weight_decay=0.1", "unknown option --dekay"),
    (digits("search", {"weight_decai": [1]}), "none/weight_decai=1", "unknown option --weight_decai; did you mean"),
    (digits("search", [{"weight_decay": 1, "decai": 2}]), "uniform/weight_decay=1,decai=2", "unknown option --decai"),
    (changed(((*DIGITS, "grid", "size", "small", "epoch"), 8)), "none", "unknown option --epoch; did you mean"),
    (changed((("strategies", "alphadecay", "decay"), "alfa")), "alphadecay/weight_decay=0.1",
     "--decay alfa: must be one of"),
    (digits("search", {"weight_decay": [-1]}), "uniform/weight_decay=-1", "--weight_decay -1.0: must be at least 0"),
    (changed(((*DIGITS, "options", "lr"), "fast")), "none", "--lr: 'fast' is not a number"),
    (changed(((*DIGITS, "options", "lr"), [1, 2])), "none", "unexpected word '2'"),
    (changed(((*DIGITS, "options", "lr"), None)), "none", "lr: has no value"),
    (changed(((*DIGITS, "options", "decay_control"), "shuffle")), "none", "--decay_control shuffle: has no effect"),
    (digits("metric", "acc1_ema"), "none", "metric: acc1_ema: needs model_ema_eval: true"),
])  # fmt: skip
def test_what_a_trainer_refuses_is_said_of_the_cell(refusal, grid, spec, words):
    assert refusal(grid).startswith(PREFIX.format(spec) + words)


@pytest.mark.parametrize("name", ["output_dir", "seed", "resume", "config", "dry-run", "overwrite", "help"])
@pytest.mark.parametrize("place", [("options",), ("grid", "size", "small")])
def test_what_compare_says_itself_is_not_for_a_grid(refusal, name, place):
    message = refusal(changed(((*DIGITS, *place, name), True)))
    assert message == f"run digits/small/none/seed0: {name}: is not allowed in a grid; compare.py sets it"


def test_two_cells_that_are_the_same_run_are_named_both(refusal):
    message = refusal(changed((("strategies", "again"), {"decay": "uniform"})))
    assert message == (
        "run digits/small/again/weight_decay=0.1/seed0: has the same options as "
        "digits/small/uniform/weight_decay=0.1/seed0"
    )
    message = refusal(digits("search", {"weight_decay": [0.1, "1e-1"]}))
    assert message.startswith("run digits/small/uniform/weight_decay=1e-1/seed0: has the same options as digits/")


@pytest.mark.parametrize("search", [{"weight_decay": [0.1, 0.1]}, [{"weight_decay": 0.1}, {"weight_decay": 0.1}]])
def test_a_point_is_there_once(refusal, search):
    assert refusal(digits("search", search)) == "domain digits: search: {'weight_decay': 0.1}: is there twice"


def test_two_names_with_one_folder_are_named_both(refusal):
    message = refusal(
        changed((("strategies", "awd x"), {"decay": "awd"}), (("strategies", "awd/x"), {"decay": "adadecay"}))
    )
    assert re.fullmatch("run digits/small/awd/x/.*: has the same folder as digits/small/awd x/.*: runs/.*", message)


@pytest.mark.parametrize("name", ["..", "."])
def test_a_name_leads_to_no_other_folder(refusal, name):
    message = refusal(changed((("strategies", name), {"decay": "awd"})))
    assert message.endswith("a name that is empty or has only dots makes no folder")


def test_points_that_are_listed_say_the_same_options(refusal):
    message = refusal(digits("search", [{"weight_decay": 0.1}, {"lr": 0.1}]))
    assert message.endswith("every point must set the same options")


@pytest.mark.parametrize("published, words", [
    ({"tiny": {"uniform": [1, 2]}}, "published: tiny: is not one of small, large"),
    ({"small": {"awd": [1, 2]}}, "published: small: awd: no such strategy"),
    ({"small": {"uniform": [1]}}, "published: small: uniform: [1]: must be 2 numbers or null, one per point"),
    ({"small": {"none": [1, 2]}}, "published: small: none: [1, 2]: must be 1 numbers"),
    ({"small": {"uniform": [1, "2"]}}, "published: small: uniform: [1, '2']: must be 2 numbers"),
    ({"small": {"uniform": [1, True]}}, "published: small: uniform: [1, True]: must be 2 numbers"),
    ({"small": {"uniform": 1}}, "published: small: uniform: 1: must be a list"),
    ({"small": [1, 2]}, "published: small: [1, 2]: must be a mapping of names"),
])  # fmt: skip
def test_published_figures_are_of_cells(refusal, published, words):
    assert refusal(digits("published", published)).startswith(f"domain digits: {words}")


def test_without_a_grid_published_figures_are_of_strategies(read):
    without = changed(((*DIGITS, "grid"), REMOVED), ((*DIGITS, "published"), {"uniform": [90.0, None], "none": [80]}))
    figures = {(spec.strategy, spec.weight_decay): spec.published for spec in read(without).specs}
    assert figures == {
        ("none", 0.0): 80, ("uniform", 0.1): 90.0, ("uniform", 0.5): None, ("alphadecay", 0.1): None,
        ("alphadecay", 0.5): None,
    }  # fmt: skip


@pytest.mark.parametrize("search", [{"weight_decay": [0.1, 0.5]}, [{"weight_decay": 0.1}, {"weight_decay": 0.5}]])
def test_a_strategy_that_sets_what_is_searched_is_run_once(read, search):
    specs = [spec for spec in read(digits("search", search)).specs if spec.setting.label == "small"]
    assert [spec.name for spec in specs if spec.strategy == "none"] == [f"digits/small/none/seed{i}" for i in (0, 1)]
    assert [spec.weight_decay for spec in specs if spec.strategy == "uniform"] == [0.1, 0.1, 0.5, 0.5]


def test_a_strategy_that_sets_one_of_two_searched_options_is_searched_over_the_other(read):
    specs = read(digits("search", {"weight_decay": [0.1, 0.5], "lr": ["1e-3", "2e-3"]})).specs
    points = [
        spec.point_name for spec in specs if (spec.setting.label, spec.strategy) == ("small", "none") and spec.seed == 0
    ]
    assert points == ["lr=1e-3", "lr=2e-3"]
    assert len(specs) == 2 * (2 + 4 + 4) * 2


def test_options_that_are_mappings_can_be_searched(read):
    grid = digits("search", {"model_kwargs": [{"depth": 2}, {"depth": 3}]})
    del grid["strategies"]["none"], grid["contrasts"]
    assert {spec.words()[spec.words().index("--model_kwargs") + 1] for spec in read(grid).specs} == {
        "depth=2",
        "depth=3",
    }


@pytest.mark.parametrize("text, words", [
    ("seeds: [0]\ntitle: a\nseeds: [1]\n", "line 3: 'seeds' is there twice"),
    ("strategies:\n  1: {}\n  '1': {}\n", "line 3: '1' is there twice"),
    ("title: a: b\n", "line 1: mapping values are not allowed here"),
    ("title: [a\n", "line 2: expected ',' or ']'"),
    ("title: !!python/object:os.system x\n", "line 1: could not determine a constructor"),
    ("title: *nothing\n", "line 1: found undefined alias 'nothing'"),
    ("title: a\x00b\n", "unacceptable character #x0000"),
    ("title: 2024-02-31\n", "day is out of range for month"),
    ("? [a]\n: b\n", "line 1: found unhashable key"),
])  # fmt: skip
def test_what_is_no_yaml_is_refused_with_its_line(refusal, text, words):
    assert refusal(text).startswith(words)


def test_merged_keys_may_be_overridden(read):
    text = yaml.safe_dump(GRID, sort_keys=False).replace("  digits:", "  digits: &digits")
    grid = read(text + "  other: {<<: *digits, seeds: [7]}\n")
    assert [len(grid.of(setting)) for setting in grid.settings] == [10, 10, 5, 5]
    assert {spec.seed for spec in grid.specs if spec.setting.domain == "other"} == {7}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "lacking.yaml", tmp_path, tmp_path / "binary"):
        with pytest.raises(UserError, match=f"^--config {path}: cannot be read: .+$"):
            read_grid(path)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{here}: &{here} [{', '.join([f'*{before}'] * 10)}]\n" for before, here in itertools.pairwise("abcdefg")
)
MERGES = "a: &a {x1: 1, x2: 1}\n" + "".join(
    f"{here}: &{here} {{<<: [{', '.join([f'*{before}'] * 20)}]}}\n" for before, here in itertools.pairwise("abcdef")
)  # fmt: skip


@pytest.mark.parametrize("text, words", [
    (BOMB, "has more than 100000 values after aliases are expanded"),
    (MERGES, "has more than 100000 values after aliases are expanded"),
    ("a: &a [*a]\n", "an alias inside the value that it stands for"),
    ("a: &a {b: *a}\n", "an alias inside the value that it stands for"),
    ("[" * 100_000, "nested too deeply"),
    ("a: " + "{a: " * 100 + "1" + "}" * 100, "nested more than 40 levels deep"),
    ("- " * 5000 + "a", "nested"),
    ("seeds: [" + "9" * 5000 + "]", "Exceeds the limit"),
    ("seeds: [0x" + "f" * 5000 + "]", "a whole number beyond 64 bits"),
    ("seeds: [9223372036854775808]", "a whole number beyond 64 bits"),
    ('title: "\\e[2Jgone"\n', "has a control character in it"),
    ('strategies: {"\\u202ea": {}}\n', "has a control character in it"),
    ('notes: "\\x9b31m"\n', "has a control character in it"),
    ("title: " + "x" * 1_000_000, "is longer than 1000000 characters"),
])  # fmt: skip
def test_no_file_is_a_bomb_or_steers_the_terminal(read, text, words):
    began = time.monotonic()
    with pytest.raises(UserError, match=re.escape(words)) as error:
        read(text)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000 and time.monotonic() - began < 5


@pytest.mark.parametrize("what", ["pipe", "device", "socket"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, what):
    path = tmp_path / "grid.yaml"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    with pytest.raises(UserError, match="is no regular file"):
        read_grid(path)


AXES = {f"axis{i}": list(range(10)) for i in range(8)}


@pytest.mark.parametrize("grid, words", [
    (digits("search", AXES), "domain digits: search: has 100000000 combinations; a comparison may have 10000 runs"),
    (changed(((*DIGITS, "grid"), AXES), ((*DIGITS, "published"), REMOVED)),
     "domain digits: grid: has 100000000 combinations; a comparison may have 10000 runs"),
    (digits("search", {f"o{i}": [1, 2] for i in range(15_000)}),
     "domain digits: search: has a huge number combinations"),
    (digits("search", {"weight_decay": [i / 1e4 for i in range(2600)]}),
     "domain digits: has 20804 runs; a comparison may have 10000 in all"),
    (changed((("seeds",), list(range(5000)))), "domain digits: seeds: has 5000; at most 1000 are allowed"),
    (changed((("contrasts",), [["none", "uniform"]] * 1001)), "contrasts: has 1001; at most 1000 are allowed"),
    (digits("processes", 1_000_000), "domain digits: processes: 1000000: must be at least 1 and at most 1024"),
    (changed((("strategies", "x" * 300), {"decay": "awd"})), "run digits/small/xxx"),
    (changed((("strategies", "two\nlines"), {"decay": "awd"})),
     r"run digits/small/two\nlines/weight_decay=0.1/seed0: "),
])  # fmt: skip
def test_a_grid_has_a_largest_size(refusal, grid, words):
    began = time.monotonic()
    assert refusal(grid).startswith(words) and time.monotonic() - began < 10


@pytest.mark.parametrize("name, value", [
    ("cutmix_minmax", ["0", "1", "--overwrite"]), ("cutmix_minmax", ["--output_dir", "elsewhere"]),
    ("cutmix_minmax", ["-x"]), ("cutmix_minmax", ["--"]), ("cutmix_minmax", ["-1e5 --overwrite"]),
    ("model_kwargs", {"--overwrite": 1}), ("model_kwargs", {"-x": 1}), ("model_kwargs", ["--resume=elsewhere"]),
    ("model_kwargs", ["depth=2", "--no_dry_run"]),
])  # fmt: skip
def test_no_value_is_an_option(refusal, name, value):
    message = refusal(changed(((*DIGITS, "options", name), value)))
    assert message.startswith(f"run digits/small/none/seed0: {name}: ") and "begins with a dash" in message


@pytest.mark.parametrize(
    "name", ["output_dir=x", "config=x", "lr 1 --overwrite", "-lr", "--overwrite", "", "=", "lr\n"]
)
def test_no_name_is_more_than_a_name(refusal, name):
    assert "is not an option name" in refusal(changed(((*DIGITS, "options", name), "x")))


@pytest.mark.parametrize("name", ["no_overwrite", "no-dry-run", "no_resume"])
def test_switches_that_compare_says_itself_cannot_be_turned_off_either(refusal, name):
    assert "is not allowed in a grid; compare.py sets it" in refusal(changed(((*DIGITS, "options", name), True)))


@pytest.mark.parametrize("value", ["--overwrite", "-1", "a b", "", "--output_dir=x", "'; rm -rf /"])
def test_a_value_is_one_word_whatever_it_is(read, value):
    (spec, *_) = read(changed(((*DIGITS, "options", "wandb_name"), value))).specs
    assert [word for word in spec.words() if "wandb_name" in word] == [f"--wandb_name={value}"]


def test_negative_numbers_in_lists_are_values(refusal):
    assert "--cutmix_minmax" in refusal(changed(((*DIGITS, "options", "cutmix_minmax"), [-0.5, -1])))


@pytest.mark.parametrize("name, value, words", [
    ("slurm_setup", ["rm -rf /"], "slurm: slurm_setup: is not allowed in a grid, because jobs would execute it"),
    ("setup", "x", "slurm: setup: is not allowed in a grid"),
    ("slurm_teardown", ["x"], "slurm: slurm_teardown: is not allowed in a grid"),
    ("slurm_srun_args", ["--prolog=x"], "slurm: slurm_srun_args: is not allowed in a grid"),
    ("slurm_partition", "a\nrm -rf /", r"slurm: 'slurm_partition': 'a\nrm -rf /': must be one line"),
    ("slurm_additional_parameters", {"a\nb": 1}, "slurm: 'slurm_additional_parameters': "),
])  # fmt: skip
def test_no_grid_has_commands_for_jobs(refusal, name, value, words):
    assert refusal(changed((("slurm",), {name: value}))).startswith(words)
