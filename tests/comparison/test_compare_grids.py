"""The grids that come with the project: they are read, hold what they say, and carry the published figures."""

import re
from collections import Counter
from dataclasses import fields

import pytest
from tiny import ROOT

from compare import read_options
from comparison.grid import DOMAIN, TOP, read_grid
from comparison.options import PRESETS
from llama.options import LanguageDecayOptions
from runtime.decay_options import DecayOptions

TABLES = {path.stem: path for path in sorted((ROOT / "scripts" / "compare").glob("*.yaml"))}
GRIDS = {path: read_grid(path) for path in [*TABLES.values(), *PRESETS.values()]}
DOCUMENTED = (ROOT / "docs" / "compare.md").read_text()
DECAY_OPTIONS = {each.name for cls in (DecayOptions, LanguageDecayOptions) for each in fields(cls)}
SIZES = {"60M": ("60m", 10_000, 1e-3, 256), "135M": ("130m", 20_000, 1e-3, 128), "350M": ("350m", 60_000, 1e-3, 64),
         "1B": ("1b", 90_000, 6e-4, 32)}  # fmt: skip

# Written out from the papers' tables: file, setting, strategy, weight decay, figure; None where none is published.
PUBLISHED = [
    ("llama_c4_adam", "c4, 60M", "none", 0, 33.23),
    ("llama_c4_adam", "c4, 60M", "uniform", 1e-5, 32.39),
    ("llama_c4_adam", "c4, 60M", "awd", 5e-6, 33.74),
    ("llama_c4_adam", "c4, 60M", "alphadecay", 1e-6, 32.61),
    ("llama_c4_adam", "c4, 60M", "alphadecay matched", 1e-5, None),
    ("llama_c4_adam", "c4, 135M", "none", 0, 24.60),
    ("llama_c4_adam", "c4, 135M", "uniform", 1e-6, 24.14),
    ("llama_c4_adam", "c4, 135M", "adadecay", 1e-5, 23.20),
    ("llama_c4_adam", "c4, 135M", "alphadecay", 5e-6, 22.55),
    ("llama_c4_adam", "c4 large, 350M", "uniform", 5e-6, 16.74),
    ("llama_c4_adam", "c4 large, 350M", "awd", 1e-6, 18.79),
    ("llama_c4_adam", "c4 large, 350M", "alphadecay", 1e-5, 17.00),
    ("llama_c4_adam", "c4 large, 1B", "none", 0, 16.11),
    ("llama_c4_adam", "c4 large, 1B", "uniform", 1e-5, 15.36),
    ("llama_c4_adam", "c4 large, 1B", "adadecay", 5e-6, 18.14),
    ("llama_c4_adam", "c4 large, 1B", "alphadecay", 1e-6, 14.63),
    ("llama_c4_adamw", "c4, 60M", "none", 0, 32.73),
    ("llama_c4_adamw", "c4, 60M", "uniform", 0.05, 32.31),
    ("llama_c4_adamw", "c4, 60M", "adadecay per entry", 0.05, None),
    ("llama_c4_adamw", "c4, 60M", "alphadecay", 0.1, 31.20),
    ("llama_c4_adamw", "c4, 135M", "awd", 0.01, 24.41),
    ("llama_c4_adamw", "c4, 135M", "adadecay", 0.1, 23.18),
    ("llama_c4_adamw", "c4, 135M", "alphadecay", 0.05, 23.04),
    ("llama_c4_wide", "adam, 60M", "uniform", 1e-5, 32.39),
    ("llama_c4_wide", "adam, 60M", "uniform", 2e-5, None),
    ("llama_c4_wide", "adam, 135M", "alphadecay", 1e-5, 22.76),
    ("llama_c4_wide", "adamw, 60M", "alphadecay", 0.1, 31.20),
    ("llama_c4_wide", "adamw, 135M", "uniform", 0.1, 23.32),
    ("llama_c4_wide", "adamw, 135M", "uniform", 0.5, None),
    ("vit_tiny_imagenet", "imagenet", "none", 0, 65.12),
    ("vit_tiny_imagenet", "imagenet", "uniform", 1e-6, 66.41),
    ("vit_tiny_imagenet", "imagenet", "awd", 5e-6, 65.21),
    ("vit_tiny_imagenet", "imagenet", "adadecay", 1e-6, 66.26),
    ("vit_tiny_imagenet", "imagenet", "alphadecay", 5e-6, 67.40),
    ("vit_tiny_imagenet", "imagenet", "alphadecay", 1e-6, 67.73),
    ("ablation_assignment", "c4, 60M", "uniform", 5e-6, 32.562),
    ("ablation_assignment", "c4, 60M", "linear", 1e-5, 31.565),
    ("ablation_assignment", "c4, 60M", "sqrt", 1e-6, 33.074),
    ("ablation_assignment", "c4, 60M", "log2", 1e-5, 32.301),
    ("ablation_assignment", "c4, 60M", "sigmoid", 5e-6, 32.171),
    ("ablation_metric", "c4, 135M", "uniform", 1e-5, 22.993),
    ("ablation_metric", "c4, 135M", "alpha", 5e-6, 22.551),
    ("ablation_metric", "c4, 135M", "gradient norm", 1e-6, 23.801),
    ("ablation_metric", "c4, 135M", "frobenius norm", 1e-5, 23.265),
    ("ablation_metric", "c4, 135M", "spectral norm", 5e-6, 23.006),
    ("ablation_fit", "c4, 60M", "median", 1e-5, 31.628),
    ("ablation_fit", "c4, 60M", "goodness-of-fit", 5e-6, 32.436),
    ("ablation_fit", "c4, 135M", "fix-finger", 1e-6, 24.058),
    ("ablation_fit", "c4, 135M", "median", 1e-5, 23.004),
    ("ablation_interval", "c4, 60M", "every step", 1e-6, 32.769),
    ("ablation_interval", "c4, 60M", "every 100", 5e-6, 31.673),
    ("ablation_interval", "c4, 135M", "every 500", 1e-5, 22.763),
    ("ablation_interval", "c4, 135M", "every 50", 1e-6, 23.468),
    ("ablation_bounds", "c4, 135M", "0.67 to 5", 5e-6, None),
]  # fmt: skip
FIGURES = {
    "llama_c4_adam": 52, "llama_c4_adamw": 26, "llama_c4_wide": 8, "vit_tiny_imagenet": 9, "ablation_assignment": 15,
    "ablation_metric": 15, "ablation_fit": 18, "ablation_interval": 30, "ablation_bounds": 0,
}  # fmt: skip


def every_grid(function):
    return pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)(function)


@pytest.mark.parametrize("name, setting, strategy, weight_decay, figure", PUBLISHED)
def test_a_published_figure_is_beside_its_runs(name, setting, strategy, weight_decay, figure):
    specs = [spec for spec in GRIDS[TABLES[name]].specs
             if (spec.setting.name, spec.strategy, spec.weight_decay) == (setting, strategy, weight_decay)]  # fmt: skip
    assert len({spec.seed for spec in specs}) == len(specs) >= 1
    assert {spec.published for spec in specs} == {figure}


@pytest.mark.parametrize("name", TABLES)
def test_all_published_figures_are_there(name):
    specs = [spec for spec in GRIDS[TABLES[name]].specs if spec.published is not None]
    assert len({(spec.setting.name, spec.strategy, spec.point) for spec in specs}) == FIGURES[name]


@pytest.mark.parametrize(
    "name, heading", [("llama_c4_adam", "| decay | 60M | 135M | 350M"), ("llama_c4_adamw", "| decay | 60M | 135M |\n")]
)
def test_the_main_tables_are_those_of_the_documentation(name, heading):
    lines = (ROOT / "docs" / "differences.md").read_text().split(heading)[1].split("\n\n")[0].splitlines()
    documented = [row.strip("| ").split(" | ") for row in lines if row.startswith("| ") and not row.startswith("| ---")]
    assert len(documented) == 5
    for strategy, *sizes in documented:
        for label, figures in zip(SIZES, sizes, strict=False):
            specs = [spec for spec in GRIDS[TABLES[name]].specs if spec.strategy == strategy.lower()]
            found = list(dict.fromkeys((c.point, c.published) for c in specs if c.setting.label == label))
            assert [figure for _, figure in found] == [float(each) for each in figures.split(" / ")]


@every_grid
def test_published_figures_say_where_they_are_from(path):
    for setting in GRIDS[path].settings:
        published = [spec for spec in GRIDS[path].of(setting) if spec.published is not None]
        assert bool(published) == bool(setting.published_from)


@every_grid
def test_every_searched_strategy_gets_the_same_points_and_seeds(path):
    for setting in GRIDS[path].settings:
        runs: dict[str, list] = {}
        for spec in GRIDS[path].of(setting):
            runs.setdefault(spec.strategy, []).append((spec.point, spec.seed))
        searched = runs[setting.baseline]
        assert len(set(searched)) == len(searched) and searched[0][0]
        assert all(found == searched for strategy, found in runs.items() if strategy != "none")


@every_grid
def test_strategies_of_a_setting_differ_in_nothing_but_decay(path):
    for setting in GRIDS[path].settings:
        shared = []
        for spec in GRIDS[path].of(setting):
            options = setting.program.read_options(spec.words()).flat()
            shared.append({name: value for name, value in options.items() if name not in {*DECAY_OPTIONS, "seed"}})
        assert all(each == shared[0] for each in shared)


@pytest.mark.parametrize("name", TABLES)
def test_the_header_says_what_the_file_costs(name):
    header = re.match(r"(#.*\n)+", TABLES[name].read_text())[0]
    grid = GRIDS[TABLES[name]]
    assert int(re.search(r"^# (\d+) runs\. Not run here\.$", header, re.M)[1]) == len(grid.specs)
    assert f"--config scripts/compare/{name}.yaml --output_dir runs/" in header
    cost = re.search(r"^# Cost: (.*?)\.$", header.replace("\n#  ", ""), re.M)[1]
    parts = re.findall(r"(\d+) x ([\d.]+) h \((\w+)", cost)
    if not parts:
        assert name == "vit_tiny_imagenet" and cost.startswith("nothing is published")
        return
    assert sum(int(runs) * float(hours) for runs, hours, _ in parts) == pytest.approx(float(cost.split()[-2]))
    runs = Counter()
    for count, _, size in parts:
        runs[size] += int(count)
    assert runs == Counter(spec.setting.label for spec in grid.specs)


@pytest.mark.parametrize("name", [name for name in TABLES if name != "vit_tiny_imagenet"])
def test_language_tables_run_what_the_recipes_run(name):
    for spec in GRIDS[TABLES[name]].specs:
        options = spec.setting.program.read_options(spec.words())
        size, steps, lr, batch_size = SIZES[spec.setting.label]
        assert options.model.model_config == f"llama/configs/llama_{size}.json"
        assert (ROOT / options.model.model_config).exists()
        optimizer, text, decay = options.optimizer, options.text, options.decay
        assert (optimizer.num_training_steps, optimizer.warmup_steps, optimizer.lr) == (steps, steps // 10, lr)
        assert (optimizer.clip_grad, optimizer.min_lr, optimizer.eval_every) == (1.0, None, 1000)
        assert (text.batch_size, text.total_batch_size, spec.setting.processes) == (batch_size, 512, 2)
        assert (text.dataset, text.tokenizer, text.max_length, text.pack) == ("c4", "t5-base", 256, False)
        assert (options.run.amp, options.run.checkpoint_every) == ("bf16", 1000)
        assert decay.decay_norm_bias and not decay.remove_first_layer and decay.awd_scale == 100
        assert spec.setting.metric.name == "perplexity_published"
        if name not in ("ablation_interval", "ablation_bounds"):
            assert (decay.decay_interval, decay.decay_low) == (500, 0.6666)
        if optimizer.optimizer == "adam" and name not in ("ablation_bounds", "llama_c4_wide") and spec.point:
            assert decay.decay_high == (3 if decay.weight_decay == 1e-5 else 5)


def test_the_imagenet_table_runs_what_the_recipe_runs():
    words = re.search(r"main.py (--data_set.*?)\n}", (ROOT / "scripts/vit_tiny_imagenet/common.sh").read_text(), re.S)[
        1
    ]
    words = words.replace("\\\n", " ").replace('"$DATA"', "data/imagenet").replace('"$seed"', "0")
    words = words.replace('"$@"', "--weight_decay 1e-6 --decay alphadecay --decay_low 0.6666 --decay_high 5").split()
    specs = {(spec.strategy, spec.weight_decay, spec.seed): spec for spec in GRIDS[TABLES["vit_tiny_imagenet"]].specs}
    spec = specs["alphadecay", 1e-6, 0]
    read = spec.setting.program.read_options
    ours, recipe = read(spec.words()).flat(), read(words).flat()
    assert {name for name in ours if ours[name] != recipe[name]} <= {"output_dir", "resume"}
    assert spec.setting.processes == 2 and specs["awd", 1e-6, 0].options["awd_scale"] == 50


def test_the_documentations_example_is_read(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCUMENTED, re.S)
    (tmp_path / "example.yaml").write_text(example)
    grid = read_grid(tmp_path / "example.yaml")
    runs, settings = len(grid.specs), [setting.label for setting in grid.settings]
    assert f"{runs} runs" in DOCUMENTED
    assert settings == [f"epochs {epochs}, {size}" for epochs in (10, 30) for size in ("narrow", "wide")]


def test_the_documentation_has_every_key_file_and_command():
    keys = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", DOCUMENTED, re.M))))
    assert keys >= {*TOP, *DOMAIN}
    assert set(re.findall(r"`(\w+)\.yaml`", DOCUMENTED)) == set(TABLES)
    commands = re.findall(r"^python compare.py ([^#\n]*)", DOCUMENTED, re.M)
    named = [read_options(command.split()) for command in commands]
    assert [options.preset or options.config for options in named] == [
        "smoke",
        "quick",
        str(TABLES["llama_c4_adam"].relative_to(ROOT)),
    ]
