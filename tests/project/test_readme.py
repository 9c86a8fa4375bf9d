"""What the README shows works as shown."""

import re

import pytest
from tiny import ROOT, TINY, run

README = (ROOT / "README.md").read_text()


def test_the_readmes_python_example_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("AlphaDecay(AdamW, step 3, next refresh before step 500, 4 modules x 0.667 to 3,")
    assert said[1].startswith("module  role  shape") and set(eval(said[-1])) == {"0", "1", "2", "3"}


@pytest.mark.slow
def test_the_readmes_training_command_is_understood(tmp_path, monkeypatch, capsys):
    command = re.search(r"python main.py --data_set.*?\n```", README, re.S)[0]
    words = command.removesuffix("```").replace("\\\n", " ").split()[2:]
    words[words.index("--output_dir") + 1] = str(tmp_path / "run")
    assert run(*words, "--max_steps", "1", monkeypatch=monkeypatch) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_files_the_readme_names_exist():
    named = re.findall(r"(?:docs|scripts)/[\w/]+\.\w+|[A-Z]{4,}\.(?:md|cff)", README)
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def test_the_readmes_options_exist(tmp_path, monkeypatch):
    named = set(re.findall(r"--(decay_\w+) (\w+)", README)) - {("decay_ledger", "runs")}  # a path of the reader's
    for name, value in named:
        words = ["--dry_run", "--output_dir", tmp_path, "--decay_interval", "100", f"--{name}", value]
        assert run(*TINY, *words, monkeypatch=monkeypatch) == 0


def test_the_readmes_language_commands_are_understood():
    from main_llama import read_options

    commands = re.findall(r"main_llama.py +(--(?:dataset|model_config|eval)[^`]*)[`\n]", README.replace("\\\n", " "))
    assert len(commands) == 3
    options = [read_options(command.split()) for command in commands if "--resume" not in command]
    assert [each.decay.decay for each in options] == ["alphadecay", "alphadecay"]
    published = options[1]
    assert (published.run.amp, published.run.checkpoint_every, published.text.dataset) == ("bf16", 10_000, "c4")
    assert (published.text.target_eval_tokens, published.text.micro_steps(2)) == (10_000_000, 1)
