"""The recipes of the published C4 tables: what they start, as main_llama.py understands it."""

import os
import subprocess

import pytest
from tiny import ROOT

from main_llama import read_options

RECIPES = sorted(path.stem for path in (ROOT / "scripts" / "llama_c4").glob("*.sh") if path.stem != "common")
STEPS = {"60m": (10_000, 1e-3), "130m": (20_000, 1e-3), "350m": (60_000, 1e-3), "1b": (90_000, 6e-4)}


@pytest.fixture
def started(tmp_path):
    """Runs a recipe with a torchrun that only notes its words, and returns the options of each run."""
    stand_in, calls = tmp_path / "torchrun", tmp_path / "calls"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$*" >> "$CALLS"\n')
    stand_in.chmod(0o755)

    def start(recipe, *words, **environment):
        variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls)} | environment
        script = ROOT / "scripts" / "llama_c4" / f"{recipe}.sh"
        done = subprocess.run(["bash", script, *words], env=variables, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in calls.read_text().splitlines()]
        assert all(line[:3] == ["--standalone", "--nproc_per_node=2", "main_llama.py"] for line in lines)
        return [read_options(line[3:]) for line in lines]

    return start


@pytest.mark.parametrize("optimizer, sizes, decays", [("adam", 4, {1e-5, 5e-6, 1e-6}), ("adamw", 2, {0.1, 0.05, 0.01})])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_starts_its_rows_of_the_published_table(started, recipe, optimizer, sizes, decays):
    runs = started(recipe, OPTIMIZER=optimizer)
    assert len(runs) == sizes * (1 if recipe == "none" else 3)
    assert {run.decay.weight_decay for run in runs} == ({0.0} if recipe == "none" else decays)
    assert {run.decay.decay for run in runs} == {"uniform" if recipe == "none" else recipe}
    assert len({run.run.output_dir for run in runs}) == len(runs)
    for run in runs:
        size = run.model.model_config.removeprefix("llama/configs/llama_").removesuffix(".json")
        assert (run.optimizer.num_training_steps, run.optimizer.lr) == STEPS[size]
        assert run.text.micro_steps(2) * 2 * run.text.batch_size == 512
        assert (run.text.dataset, run.text.data_path, run.optimizer.optimizer) == ("c4", "", optimizer)
        assert (ROOT / run.model.model_config).exists()
        assert run.decay.decay != "alphadecay" or run.decay.decay_high == (3 if run.decay.weight_decay == 1e-5 else 5)


def test_variables_and_options_of_the_user_count(started, tmp_path):
    words = ("--clip_grad", "0", "--pack")
    (run,) = started("uniform", *words, DATA="c4", SIZES="60m", DECAYS="2e-5", SEEDS="7", PRECISION="--pure_bf16")
    assert run.text.data_path == str(tmp_path / "c4") and run.text.pack and run.run.seed == 7
    assert run.decay.weight_decay == 2e-5 and run.optimizer.clip_grad == 0 and run.model.pure_bf16
    assert run.run.amp == "none"
