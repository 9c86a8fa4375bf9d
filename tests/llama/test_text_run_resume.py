"""A language run that was stopped and resumed is the run that was not, to the last bit."""

import signal

import pytest
from forked import forked
from signals import in_this_process, signal_at
from texts import write_c4
from tiny import rows
from tiny_text import TINY_TEXT, changed_config, run_text

from runtime.checkpoints import find_checkpoint
from runtime.self_test import differences

ACCUMULATED = [*TINY_TEXT, "--total_batch_size", "8", "--clip_grad", "0.5", "--weight_decay_end", "0.01"]
VARIETY = {
    "autocast": ["--dtype", "bfloat16"],
    "fp16": ["--amp", "fp16"],
    "bfloat16 weights": ["--pure_bf16", "--decay_audit", "--log_interval", "2"],
    "padded": ["--no-pack", "--max_length", "48"],
    "averaged": "--pure_bf16 --model_ema --model_ema_decay 0.7 --model_ema_warmup --model_ema_eval".split(),
    "awd": ["--decay", "awd"],
    "adadecay": ["--decay", "adadecay"],
    "cautious": ["--decay_cautious", "--decay_lag", "1"],
    "adam": ["--optimizer", "adam", "--decay_control", "shuffle", "--decay_budget", "matched"],
    "recomputed": ["--activation_checkpointing", "--chunked_loss"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume") / "whole"
    assert run_text(*ACCUMULATED, "--output_dir", folder) == 0
    return folder


@pytest.mark.parametrize("stop", range(1, 6))
def test_stopped_at_any_step_it_resumes_to_the_same_bits(whole, tmp_path, stop):
    parts = tmp_path / "parts"
    assert run_text(*ACCUMULATED, "--output_dir", parts, "--max_steps", stop) == 0
    with open(parts / "log.jsonl", "a") as file:  # written after the checkpoint, then a crash
        file.write('{"step": 99}\n{"step": 1')
    assert run_text("--resume", parts, "--max_steps", "6") == 0
    assert differences(whole, parts) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", VARIETY)
def test_whatever_is_trained_resumes_to_the_same_bits_twice_in_a_row(tmp_path, kind):
    left_alone, parts = tmp_path / "whole", tmp_path / "parts"
    words = [*ACCUMULATED, *VARIETY[kind]]
    if kind == "padded":
        words += ["--dataset", "c4", "--tokenizer", "bytes", "--data_path", write_c4(tmp_path / "c4")]
    assert run_text(*words, "--output_dir", left_alone) == 0
    for more in (["--max_steps", "2"], ["--resume", "auto", "--max_steps", "5"], ["--resume", "auto"]):
        assert run_text(*words, "--output_dir", parts, *more) == 0
    assert differences(left_alone, parts) == {}
    assert (rows(parts / "log.jsonl")[-1]["pad_share"] > 0) == (kind == "padded")


@pytest.mark.slow
def test_dropout_and_split_projections_resume_to_the_same_bits(tmp_path):
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "hidden_size": ...}
    config = changed_config(tmp_path / "gpt2", **gpt2, num_hidden_layers=..., num_attention_heads=..., pad_token_id=...)
    words = [*ACCUMULATED, "--model_config", config, "--split_qkv", "--checkpoint_every", "2", "--save_ckpt_num", "9"]
    assert run_text(*words, "--output_dir", tmp_path / "whole") == 0
    there = tmp_path / "whole" / "checkpoints" / "step_00000002"
    assert run_text(*words, "--resume", there, "--output_dir", tmp_path / "again") == 0
    assert differences(tmp_path / "whole", tmp_path / "again") == {}
    assert {"attn.q", "attn.k", "attn.v"} < {row["role"] for row in rows(tmp_path / "whole" / "decay.jsonl")}


SIGNALLED_IN = {
    "training": ("runtime.trainer.Trainer._rates", 3, 3),  # function, its call, step of the checkpoint
    "evaluating": ("llama.engine.count_targets", 9, 3),  # counted twice a step, then once a validation batch
    "refreshing": ("alphadecay.analysis.Measurement.run", 2, 3),
    "reading": ("llama.stream.TextStream.next", 9, 5),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.parametrize("phase", SIGNALLED_IN)
def test_told_to_end_it_saves_leaves_a_mark_and_goes_on(whole, tmp_path, capsys, phase, number):
    target, call, step = SIGNALLED_IN[phase]
    words = [*ACCUMULATED, "--output_dir", tmp_path / "run", "--resume", "auto", "--log_interval", "1"]
    with pytest.MonkeyPatch.context() as inner:
        signal_at(call, target, number, inner)
        assert run_text(*words) == 75
    assert f"preempted: {number.name} at optimizer step" in capsys.readouterr().err
    assert find_checkpoint(tmp_path / "run")[0].step == step
    assert (tmp_path / "run" / "REQUEUE").read_text().startswith(f"{number.name} at optimizer step {step}")
    assert run_text(*words) == 0
    assert not (tmp_path / "run" / "REQUEUE").exists() and differences(whole, tmp_path / "run") == {}


def test_evaluating_more_often_changes_no_weight(whole, tmp_path):
    assert run_text(*ACCUMULATED, "--eval_every", "2", "--output_dir", tmp_path / "often") == 0
    assert run_text(*ACCUMULATED, "--eval_every", "1000", "--output_dir", tmp_path / "once") == 0
    assert [row["step"] for row in rows(tmp_path / "often" / "log.jsonl")] == [2, 4, 6]
    assert [row["step"] for row in rows(tmp_path / "once" / "log.jsonl")] == [6]
    for folder in (tmp_path / "often", tmp_path / "once"):
        # The schedule of evaluations, the log and what is counted from one line to the next differ; nothing else.
        assert set(differences(whole, folder)) <= {"log.jsonl", "counts and best metrics"}


@pytest.mark.slow
def test_a_user_can_see_it_for_their_own_options(tmp_path, capsys, monkeypatch):
    words = [*TINY_TEXT, "--output_dir", tmp_path / "run", "--self_test_resume", "--max_steps", "3"]
    monkeypatch.setattr("runtime.self_test.subprocess.run", in_this_process(run_text))
    assert run_text(*words) == 0
    assert "resuming is exact: only times differ" in capsys.readouterr().out and not list(tmp_path.iterdir())


LATE = [("KILL", 1, 12), ("KILL", 2, 12), ("TERM", 1, 4), ("TERM", 2, 4)]  # signal, processes, hits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "hits"), [("KILL", 2, 4), *(pytest.param(*each, marks=pytest.mark.proof) for each in LATE)]
)
def test_hit_at_random_moments_it_still_ends_with_the_same_bits(name, processes, hits):
    options = ["--program", "main_llama.py", "--signal", name, "--hits", hits, "--processes", processes]
    done = forked(1, *options, program="tests/faults.py", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{hits} x SIG{name}" in done.stdout and "the same bits as the run that was left alone" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "",
        "--fsdp --dtype bfloat16 --chunked_loss",
        pytest.param("--fsdp", marks=pytest.mark.proof),
        pytest.param("--no-pack --chunked_loss", marks=pytest.mark.proof),
    ],
)
def test_two_processes_resume_to_the_same_bits(tmp_path, kind):
    words = [*ACCUMULATED, *kind.split(), "--output_dir"]
    for folder, *more in (
        (tmp_path / "whole",),
        (tmp_path / "parts", "--max_steps", "2"),
        (tmp_path / "parts", "--resume", "auto", "--max_steps", "5"),
        (tmp_path / "parts", "--resume", "auto"),
    ):
        done = forked(2, *words, folder, *more, program="main_llama.py")
        assert done.returncode == 0, done.stderr[-3000:]
    assert differences(tmp_path / "whole", tmp_path / "parts") == {}
