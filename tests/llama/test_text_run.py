"""Whole runs of main_llama.py: the published command, what a run leaves, defects of the published program."""

import json
import math
import shlex

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from texts import ALONE, save_tokenizer, write_c4
from tiny import rows
from tiny_text import CONFIG, MODULES, TINY_TEXT, run_text, task_of

from llama.models import flops_per_token
from llama.options import STDLIB
from main_llama import read_options
from runtime.checkpoints import find_checkpoint

# The README of the published program (hed-ucas/AlphaDecay at 23ce27c), its script's name apart.
PUBLISHED = """--model_config llama/configs/llama_130m.json --optimizer adam --seed 5 --lr 0.001 --batch_size 256
    --total_batch_size 512 --num_training_steps 20000 --warmup_steps 2000 --weight_decay 0.00001 --use_modulewise_wd
    --alpha_positively_with_WD --unbalancedWD_every 500 --esd_metric_for_tb alpha --assign_func tb_linear_map
    --wd_min_ratio 0.6666 --wd_max_ratio 3 --dtype bfloat16 --eval_every 1000 --wandb_name published
    --target_eval_tokens 10_000_000 --save_every 10000"""


def test_the_published_command_means_what_the_paper_means():
    options = read_options(shlex.split(PUBLISHED))
    decay, optimizer, text, run = options.decay, options.optimizer, options.text, options.run
    assert (decay.decay, decay.decay_metric, decay.decay_assign) == ("alphadecay", "alpha", "linear")
    assert (decay.decay_interval, decay.decay_low, decay.decay_high) == (500, 0.6666, 3)
    assert (decay.weight_decay, decay.decay_control, decay.remove_first_layer) == (1e-5, "none", False)
    assert (optimizer.optimizer, optimizer.lr, optimizer.min_lr) == ("adam", 1e-3, None)
    assert (optimizer.num_training_steps, optimizer.warmup_steps, optimizer.eval_every) == (20_000, 2000, 1000)
    assert (text.dataset, text.data_path, text.tokenizer, text.max_length) == ("c4", "", "t5-base", 256)
    assert (text.batch_size, text.total_batch_size, text.target_eval_tokens) == (256, 512, 10_000_000)
    assert (text.micro_steps(1), text.micro_steps(2)) == (2, 1)
    assert (run.amp, run.seed, run.checkpoint_every, run.enable_wandb) == ("bf16", 5, 10_000, False)
    assert not options.model.pure_bf16


def test_the_built_in_text_needs_one_option_and_its_defaults_give_way():
    options = read_options(["--dataset", "stdlib"])
    assert (options.text.tokenizer, options.optimizer.num_training_steps) == ("bytes", STDLIB["num_training_steps"])
    assert options.model.model_config == "llama/configs/llama_stdlib.json" and options.decay.weight_decay == 0.1
    given = read_options(["--dataset", "stdlib", "--weight_decay", "0.3", "--max_length", "16"])
    assert (given.decay.weight_decay, given.text.max_length, given.optimizer.lr) == (0.3, 16, 3e-3)
    assert read_options([]).text.tokenizer == "t5-base"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "run"
    text = ["--dataset", "c4", "--data_path", write_c4(folder.parent / "c4"), "--tokenizer", "bytes", "--no-pack"]
    text += ["--max_length", "64"]
    words = [*TINY_TEXT, *text, "--log_interval", "1", "--peak_tflops", "0.001", "--checkpoint_every", "2"]
    assert run_text(*words, "--output_dir", folder, draw=True) == 0
    return folder


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.json", "log.jsonl", "decay.jsonl", "tensorboard", "checkpoints", "summary.json", "figures",
    }  # fmt: skip
    assert {path.name for path in (finished / "figures").iterdir()} == {
        "training.png", "decay_over_time.png", "decay_by_depth.png", "alpha_by_depth.png", "spectra.png",
    }  # fmt: skip
    log, summary = rows(finished / "log.jsonl"), json.loads((finished / "summary.json").read_text())
    assert [row["step"] for row in log] == [3, 6]
    for name in ("perplexity", "perplexity_published", "loss", "tokens_seen", "documents_seen", "pad_share"):
        assert summary[name] == log[-1][name]
    assert summary["perplexity"] == pytest.approx(math.exp(summary["loss"]))
    assert summary["best_loss"] == min(row["loss"] for row in log)
    assert set(read_options(TINY_TEXT).flat()) < set(json.loads((finished / "config.json").read_text()))
    assert summary["tokens_seen"] < 6 * 4 * 64 and 0 < summary["pad_share"] < 1
    assert summary["tokens_seen"] / (1 - summary["pad_share"]) == pytest.approx(6 * 4 * 64)


def test_the_curves_show_scores_and_decay_by_role_and_the_speed(finished):
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    roles = {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"}
    assert {f"decay_score/{role}" for role in roles} | {f"decay_weight_decay/{role}" for role in roles} <= tags
    names = ("perplexity", "perplexity_published", "loss", "tokens_per_second", "pad_share", "tokens_seen", "mfu")
    assert {f"evaluation/{name}" for name in names} | {"training/loss", "training/lr"} <= tags
    ledger = rows(finished / "decay.jsonl")
    queries = [row["score"] for row in ledger if row["role"] == "attn.q" and row["step"] == 2]
    shown = {event.step: event.value for event in events.Scalars("decay_score/attn.q")}
    assert shown[2] == pytest.approx(sum(queries) / len(queries))
    assert [event.step for event in events.Scalars("training/lr")] == [1, 2, 3, 4, 5, 6]


def test_the_utilisation_is_of_flops_that_are_counted_by_hand(finished):
    task, _ = task_of(*TINY_TEXT, alone=ALONE)
    hidden, inter, layers, vocabulary, length = 64, 96, 2, 260, 64
    weights = layers * (4 * hidden * hidden + 3 * hidden * inter) + vocabulary * hidden  # the input is a look-up
    per_token = 6 * weights + layers * 12 * hidden * length  # q.k and its use, twice again for the gradients
    assert flops_per_token(task.learner.plain, length) == per_token
    row = rows(finished / "log.jsonl")[-1]
    assert row["mfu"] == pytest.approx(per_token * row["tokens_per_second"] / 1e9, rel=0.01)
    task.stream.close()


def test_every_projection_takes_part_and_nothing_else(finished):
    ledger = [row for row in rows(finished / "decay.jsonl") if row["step"] == 0]
    assert [row["module"] for row in ledger] == [f"model.layers.{n}.{name}" for n in (0, 1) for name in MODULES]
    assert len({row["weight_decay"] for row in ledger}) > 2


def test_the_first_and_last_can_stay_out_as_published(tmp_path):
    words = [*TINY_TEXT, "--remove_first_layer", "--remove_last_layer", "--max_steps", "1"]
    assert run_text(*words, "--output_dir", tmp_path / "run") == 0
    modules = [row["module"] for row in rows(tmp_path / "run" / "decay.jsonl")]
    assert len(modules) == 12 and "model.layers.0.self_attn.q_proj" not in modules
    assert "model.layers.1.mlp.down_proj" not in modules


def test_it_takes_as_many_steps_as_it_is_told_and_ends_at_the_lowest_rate(finished):
    log = rows(finished / "log.jsonl")
    assert find_checkpoint(finished)[0].step == 6
    state = find_checkpoint(finished)[0].training_state()["optimizer"]["state"]
    assert {float(each["step"]) for each in state.values()} == {6.0}  # AdamW's own count of its steps
    assert log[-1]["lr"] == pytest.approx(1e-4)  # a tenth of the peak
    assert log[0]["lr"] == pytest.approx(1e-3)  # the first step behind the warm-up


def test_a_run_of_one_step_works(tmp_path):
    words = [*TINY_TEXT, "--num_training_steps", "1", "--warmup_steps", "0", "--output_dir", tmp_path / "run"]
    assert run_text(*words) == 0
    assert [row["lr"] for row in rows(tmp_path / "run" / "log.jsonl")] == [3e-3]


@pytest.mark.parametrize(
    "words",
    [
        "--optimizer adam --weight_decay 5e-6",
        "--decay adadecay --optimizer sgd",
        "--esd_metric_for_tb gradnorm_d_weightnorm --assign_func tb_sqrt --pl_fitting fix-finger",
        "--decay_window farms --decay_budget matched --decay_norm_bias",
        "--dtype bfloat16 --chunked_loss --activation_checkpointing",
        "--dtype float16 --grad_clipping 1.0",
        "--max_steps 2 --warmup_steps 100",
        pytest.param("--compile", marks=pytest.mark.proof),
    ],
)
def test_options_train(tmp_path, words):
    limits = ["--max_steps", "2", "--output_dir", tmp_path / "run"]
    assert run_text(*TINY_TEXT, *limits, *words.split()) == 0
    assert math.isfinite(json.loads((tmp_path / "run" / "summary.json").read_text())["perplexity"])


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_awd_by_its_published_name_decays_all_alike(tmp_path, optimizer):
    words = [word for word in TINY_TEXT if word not in ("--decay", "alphadecay")]
    words += ["--use_AWD_NeurIPS2023", "--optimizer", optimizer, "--output_dir", tmp_path / "run"]
    assert run_text(*words) == 0
    ledger = rows(tmp_path / "run" / "decay.jsonl")
    assert [row["step"] for row in ledger] == [0, 1, 2, 3, 4, 5]
    assert all(row["weight_decay"] > 0 for row in ledger[1:])


PRECISIONS = {
    "--dtype bfloat16": (torch.float32, torch.float32),
    "--pure_bf16": (torch.bfloat16, torch.bfloat16),
    "": (torch.float32, torch.float32),
}


@pytest.mark.parametrize(("words", "dtypes"), PRECISIONS.items(), ids=lambda each: str(each))
def test_only_pure_bfloat16_rounds_weights_and_says_what_that_does_to_decay(tmp_path, capsys, words, dtypes):
    assert run_text(*TINY_TEXT, *words.split(), "--max_steps", "1", "--output_dir", tmp_path / "run") == 0
    checkpoint, said = find_checkpoint(tmp_path / "run")[0], capsys.readouterr().out
    assert {each.dtype for each in checkpoint.model_weights().values()} == {dtypes[0]}
    moments = checkpoint.training_state()["optimizer"]["state"].values()
    assert {each["exp_avg"].dtype for each in moments} == {dtypes[1]}
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == (words == "--pure_bf16")
    assert all("--decay_audit" in line and "--dtype bfloat16" in line for line in warnings)


def test_text_in_c4s_format_and_a_tokenizer_of_transformers_train(tmp_path):
    words = shlex.split(PUBLISHED) + ["--batch_size", "4", "--total_batch_size", "8", "--max_length", "32"]
    words += ["--target_eval_tokens", "300"]
    data, tokenizer = write_c4(tmp_path / "c4"), save_tokenizer(tmp_path / "tokenizer")
    config = json.loads(CONFIG.read_text()) | {"vocab_size": 400}
    (tmp_path / "model.json").write_text(json.dumps(config))
    words += ["--data_path", data, "--tokenizer", tokenizer, "--model_config", tmp_path / "model.json"]
    assert run_text(*words, "--max_steps", "2", "--output_dir", tmp_path / "run") == 0
    assert rows(tmp_path / "run" / "log.jsonl")[-1]["step"] == 2


def test_dry_run_shows_every_parameter_and_writes_nothing(tmp_path, capsys):
    assert run_text(*TINY_TEXT, "--dry_run", "--output_dir", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "model.layers.0.self_attn.q_proj.weight" in said and "21 trainable parameters" in said
    assert list(tmp_path.iterdir()) == []
