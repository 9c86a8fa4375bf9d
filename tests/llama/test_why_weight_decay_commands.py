"""The printed commands of the published language program run here as printed, and mean what they mean there."""

import os
import shlex
import subprocess
import sys

import pytest
from texts import paragraphs
from tiny import ROOT, rows
from tiny_text import run_text
from why_weight_decay import (
    FOLDER,
    LANGUAGE,
    commands,
    first_of_groups,
    our_options,
    published_settings,
    run,
    translated,
)

from runtime.errors import UserError, exit_status
from runtime.schedules import schedules_of

SMALL = "config/train_gpt2_small.py"
PAIRS = list(zip(commands(), published_settings(), strict=True))
OPTIMIZERS = {"adam": "adamw", "gdm": "momentum"}


def test_the_commands_are_those_of_the_published_readme():
    for command, settings in PAIRS:
        words = ["--ckpt_path=CHECKPOINT" if word.startswith("--ckpt_path=") else word for word in command.words]
        assert words == settings["arguments"]
    counts = {group: sum(command.group == group for command in commands()) for group, _ in commands()}
    assert list(counts.values()) == [1, 3, 4, 2, 4, 7, 7, 4, 3]


@pytest.mark.parametrize(("command", "settings"), PAIRS, ids=range(len(PAIRS)))
def test_a_command_has_the_published_settings(command, settings):
    options = our_options(command.words)
    optimizer, text = options.optimizer, options.text
    assert optimizer.optimizer == OPTIMIZERS[settings["optimizer"]]
    if settings["optimizer"] == "adam":
        assert list(optimizer.opt_betas) == settings["betas"]
    else:
        assert optimizer.momentum == settings["betas"][0]
    assert optimizer.lr == settings["learning_rate"]
    assert optimizer.min_lr == (settings["min_lr"] if "--min_lr=" in command.line else None)
    assert optimizer.clip_grad == settings["grad_clip"] and optimizer.eval_every in (200, 250)
    assert optimizer.num_training_steps == settings["last_iteration"] and options.run.max_steps is None
    assert text.micro_steps(1) * text.batch_size == settings["sequences_per_update"]
    assert text.max_length == settings["block_size"]
    assert options.optimizer.l2 == settings["l2_reg"]
    assert options.decay.weight_decay == settings["weight_decay"] or settings["l2_reg"]
    assert list(options.decay.decay_only) == settings["decayed_substrings"].split()
    assert options.decay.decay == "uniform" and list(options.optimizer.freeze) == ["*.bias"]
    assert options.run.amp == ("none" if "--dtype=float32" in command.words else "bf16")


@pytest.mark.parametrize(("command", "settings"), PAIRS, ids=range(len(PAIRS)))
def test_learning_rates_are_the_published_ones(command, settings):
    options = our_options(command.words)
    optimizer = options.optimizer
    schedules = schedules_of(optimizer, options.decay, optimizer.num_training_steps, optimizer.warmup_steps)
    for iteration, rate in settings["rows"]:
        assert schedules.lr_at(iteration) == pytest.approx(rate, rel=1e-12, abs=1e-18), iteration


def test_every_command_has_a_folder_of_its_own():
    folders = [our_options(command.words).run.output_dir for command in commands()]
    assert len(set(folders)) == 35 and all(folder.startswith("runs/why_weight_decay/") for folder in folders)


def test_later_words_win_and_ours_win_over_all():
    options = our_options([SMALL, "--batch_size=3", "--batch_size=6"], "--lr", "0.5", "--decay", "alphadecay")
    assert (options.text.batch_size, options.text.total_batch_size) == (6, 240)
    assert (options.optimizer.lr, options.decay.decay) == (0.5, "alphadecay")
    assert (
        our_options(["--n_layer=4", "--n_head=4", "--n_embd=192", "--block_size=256"]).model
        == our_options(["config/train_gpt2_micro.py"]).model
    )


def test_the_pages_small_twin_is_understood():
    page = (ROOT / "docs" / "why_weight_decay.md").read_text().replace("\\\n", " ")
    line = next(line for line in page.splitlines() if line.startswith("python train.py") and "stdlib" in line)
    words = shlex.split(line)[2:]
    options = our_options(words[: words.index("--")], *words[words.index("--") + 1 :])
    assert (options.text.dataset, options.text.tokenizer, options.decay.weight_decay) == ("stdlib", "bytes", 0.1)
    assert options.model.model_config == "llama/configs/gpt2_micro.json"


WRONG = {
    "config/train_gpt2_smal.py": "config/train_gpt2_smal.py: unknown config; known are config/train_gpt2_small.py, ",
    "--learnin_rate=3": "unknown flag --learnin_rate; did you mean --learning_rate?",
    "--eval_iters=200": "unknown flag --eval_iters; did you mean ",
    "--batch_size": "--batch_size: needs a value: --batch_size=VALUE",
    "--batch_size=eight": "--batch_size=eight: is not a whole number",
    "--batch_size=0": "--batch_size=0: must be at least 1",
    "--learning_rate=nan": "--learning_rate=nan: is not a number",
    "--compile=1": "--compile=1: is neither True nor False",
    "--bias=True": "--bias=True: cannot be translated; False can",
    "--opt_type=lion": "--opt_type=lion: cannot be translated; one of adam, gdm, gd can",
    "--wd_substrings_include=": "--wd_substrings_include='': names no parameter",
    "--n_layer=5": "--n_layer=5 --n_head=12 --n_embd=768 --block_size=1024: no config of this size for --dataset=",
    "--l2_reg=1e-3 --weight_decay=0.1": "--l2_reg=0.001: not together with --weight_decay=0.1",
    "--init_from=resume --min_lr=6e-4": "--ckpt_path=: its name does not end with iter=N.pt; -- --resume RUN",
    "--init_from=resume": "--init_from=resume --min_lr=5.9999999999999995e-05: differs from --learning_rate=0.0006; ",
    "--init_from=resume --min_lr=6e-4 -- --resume auto": "--resume auto: name the run to fine-tune; ",
    "--ckpt_path=gone/iter=3.pt --init_from=resume --min_lr=6e-4": "--ckpt_path=gone/iter=3.pt: no such file; ",
}


@pytest.fixture
def started(monkeypatch):
    """The programs that were started instead of this one."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    monkeypatch.chdir(ROOT)
    return calls


@pytest.mark.parametrize(("words", "message"), WRONG.items(), ids=WRONG)
def test_what_is_wrong_is_named_in_one_line(started, capsys, words, message):
    status = exit_status(lambda: run(LANGUAGE, [SMALL, *words.split()]))
    out, err = capsys.readouterr()
    assert (status, out, started) == (2, "", []) and err.count("\n") == 1 and err.startswith(f"error: {message}")


def test_the_fine_tunes_name_the_checkpoint_that_nobody_has(started, capsys):
    for command in commands():
        if command.group == "fine-tune":
            assert exit_status(lambda command=command: run(LANGUAGE, command.words)) == 2
            path = next(word for word in command.words if word.startswith("--ckpt_path="))
            assert capsys.readouterr().err == f"error: {path}: no such file; fine-tune a run of ours: -- --resume RUN\n"


def test_our_command_is_printed_on_one_line_and_then_run_at_the_root(started, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(LANGUAGE, [*commands()[1].words, "--", "--data_path", "a b"])
    printed = capsys.readouterr().out
    (call,) = started
    assert os.getcwd() == str(ROOT) and call[0] == sys.executable and printed.count("\n") == 1
    assert shlex.split(printed) == ["python", *call[1][1:]] and call[1][1] == "main_llama.py"
    assert "'*.bias'" in printed and call[1][-2:] == ["--data_path", "a b"]
    monkeypatch.setenv("RANK", "1")
    run(LANGUAGE, [SMALL])
    assert capsys.readouterr().out == ""


TINY_OWN = "--num_training_steps 3 --max_length 16 --batch_size 2 --total_batch_size 4 --eval_every 3 --no_compile"
TINY_OWN += " --target_eval_tokens 100 --train_eval_tokens 100 --shuffle_buffer 20 --log_interval 1 --tokenizer bytes"


@pytest.fixture(scope="module")
def tiny_words(tmp_path_factory):
    """Words after -- for a run of three steps on a small text."""
    folder = tmp_path_factory.mktemp("text")
    text, config = folder / "text.txt", folder / "config.json"
    text.write_text("\n".join(paragraphs()[:60]))
    config.write_text(
        '{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 16, "vocab_size": 260, '
        '"activation_function": "gelu", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, '
        '"bos_token_id": null, "eos_token_id": 256, "pad_token_id": null}'
    )
    return [*TINY_OWN.split(), "--data_path", str(text), "--model_config", str(config)]


@pytest.mark.slow
def test_a_command_of_each_group_trains(tiny_words, tmp_path, capsys):
    for number, command in enumerate(first_of_groups()):
        own = [*tiny_words, "--output_dir", tmp_path / str(number)]
        if command.group == "fine-tune":
            own += ["--resume", tmp_path / "1", "--num_training_steps", "6"]
        words = translated(LANGUAGE, [*command.words, "--", *map(str, own)])[0]
        assert run_text(*words) == 0, (command.group, capsys.readouterr().err)
        log = rows(tmp_path / str(number) / "log.jsonl")
        last = 6 if command.group == "fine-tune" else 3
        assert log[-1]["step"] == last and {"loss", "loss_ema"} <= set(log[-1]), command.group


@pytest.mark.slow
def test_a_printed_line_runs_where_the_readme_says(tiny_words, tmp_path):
    line = f"{commands()[1].line} -- {shlex.join(tiny_words)} --output_dir {tmp_path / 'run'}"
    line = line.replace("python", shlex.quote(sys.executable), 1)
    folder = FOLDER / "large_language_models"
    done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("python main_llama.py --dataset text ")
    assert rows(tmp_path / "run" / "log.jsonl")[-1]["step"] == 3
    again = shlex.split(done.stdout.splitlines()[0])[1:]
    assert again[0] == "main_llama.py" and str(tmp_path / "run") in again


def test_a_fine_tune_begins_at_the_step_of_our_checkpoint(monkeypatch, tmp_path):
    command = next(command for command in commands() if command.group == "fine-tune")

    class Found:
        step = 137

    monkeypatch.setattr("runtime.checkpoints.find_checkpoint", lambda path: (Found, []))
    words = translated(LANGUAGE, [*command.words, "--", "--resume", str(tmp_path)])[0]
    assert words[words.index("--num_training_steps") + 1] == str(137 + 10_000)
    assert words[words.index("--l2") + 1] == "0", "the term of the run that is continued would stay"
    with pytest.raises(UserError):
        our_options(command.words, "--resume", tmp_path / "nowhere")
