"""Bad input to main_llama.py: exit status 2, one line that names the culprit and its value, nothing written."""

import gzip
import json
import sys

import pytest
from texts import save_tokenizer, write_c4, write_shard
from tiny_text import CONFIG, TINY_TEXT, changed_config, run_text

CASES = {
    "unknown option": ("--model_confg x", "--model_confg; did you mean --model_config or --model_ema?"),
    "batch size 0": ("--batch_size 0", "--batch_size 0: must be at least 1"),
    "batches that do not divide": ("--total_batch_size 6", "--total_batch_size 6: is not a multiple of --batch_size 4"),
    "no step": ("--num_training_steps 0", "--num_training_steps 0: must be at least 1"),
    "no config": ("--model_config nowhere.json", "--model_config nowhere.json: No such file"),
    "a config that is no JSON": ("--model_config README.md", "--model_config README.md: not JSON"),
    "too long": ("--max_length 65", "--max_length 65: the model has positions for 64 tokens"),
    "shards of one process": ("--fsdp", "--fsdp true: needs several processes"),
    "two precisions": ("--pure_bf16 --amp bf16", "--pure_bf16 true: not together with --amp bf16"),
    "a loss scale for shards": ("--fsdp --amp fp16", "--fsdp true: not together with --amp fp16"),
    "a file as folder": ("--export_hf README.md", "--export_hf README.md: is a file"),
    "below a file": ("--export_hf README.md/model", "--export_hf README.md/model: is a file, or below a file"),
    "no folder to start from": ("--init_from nowhere", "--init_from nowhere: not a transformers folder"),
    "a folder of something else": (
        "--init_from tests",
        "--init_from tests: not a transformers folder, it has no config",
    ),
    "eval of nothing": ("--eval", "--eval: needs weights to evaluate"),
    "nothing to split": ("--split_qkv", "--split_qkv: "),
    "unknown data": ("--dataset c5", "--dataset c5: must be one of c4, stdlib"),
    "data of another kind": ("--data_path tests", "--data_path tests: goes with --dataset c4"),
    "no tokenizer": ("--tokenizer ./nowhere", "--tokenizer ./nowhere: no such folder"),
    "no such data": ("--dataset c4 --tokenizer bytes --data_path nowhere", "--data_path nowhere: no such folder"),
    "no data in the folder": ("--dataset c4 --tokenizer bytes --data_path tests", "--data_path tests: "),
    "precision": ("--dtype float8", "--amp float8: must be one of none, bf16, fp16"),
    "rates swapped": ("--min_lr 1", "--min_lr 1: above --lr 0.003"),
}


@pytest.fixture
def refused(tmp_path, capsys):
    def check(culprit, *words):
        assert run_text(*TINY_TEXT, "--output_dir", tmp_path / "run", *words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and culprit in said, said
        assert not (tmp_path / "run").exists()

    return check


@pytest.mark.parametrize(("words", "culprit"), CASES.values(), ids=CASES)
def test_bad_input_is_one_line_and_nothing_is_written(words, culprit, refused):
    refused(culprit, *words.split())


BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
CONFIGS = {
    "of an image model": ({"model_type": "vit"}, "model_type 'vit' is not a causal language model"),
    "of nothing": ({"model_type": ...}, "model_type None is not a causal language model"),
    "of an unknown model": ({"model_type": "lama"}, "model_type 'lama' is not a causal language model"),
    "that looks ahead": ({"model_type": "bert", **BERT}, "not a causal language model"),
    "heads that do not divide": ({"num_attention_heads": 3}, ""),
    "groups that do not divide": ({"num_attention_heads": 4, "num_key_value_heads": 3}, ""),
    "negative size": ({"intermediate_size": -1}, ""),
    "size in words": ({"hidden_size": "big"}, ""),
    "no head": ({"num_attention_heads": 0}, ""),
    "unknown activation": ({"hidden_act": "siluu"}, "siluu"),
    "too few tokens": ({"vocab_size": 257}, "--tokenizer bytes: token 'padding' has id 257, the model's last is 256"),
    "no layer": ({"num_hidden_layers": 0}, ""),
}


@pytest.mark.parametrize(("values", "culprit"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be_is_refused(values, culprit, refused, tmp_path):
    path = changed_config(tmp_path / "model", **values)
    refused(culprit, "--model_config", path)


def test_a_config_that_is_a_list_is_refused(refused, tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    refused("model_type None is not a causal", "--model_config", tmp_path / "list.json")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(refused, tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    refused("(vocab_size 260)", "--tokenizer", tmp_path / "tokenizer")


@pytest.mark.parametrize("damage", ["truncated", "empty config", "no weights"])
def test_a_broken_folder_to_start_from_is_refused(refused, tmp_path, capsys, damage):
    folder = tmp_path / "model"
    words = [*TINY_TEXT, "--max_steps", "1", "--output_dir", tmp_path / "first", "--export_hf", folder]
    assert run_text(*words) == 0
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    else:
        (folder / "config.json").write_text("{}")
    capsys.readouterr()
    refused(f"--init_from {folder}: ", "--init_from", folder)


def c4(folder, *words):
    return ["--dataset", "c4", "--tokenizer", "bytes", "--data_path", folder, *words]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_files_is_refused(refused, tmp_path, split):
    for path in write_c4(tmp_path / "c4").glob(f"c4-{split}.*"):
        path.unlink()
    refused(f"c4-{split}", *c4(tmp_path / "c4"))


def test_a_missing_shard_is_named_and_the_others_train(tmp_path, capsys):
    (write_c4(tmp_path / "c4") / "c4-train.00001-of-00003.json.gz").unlink()
    assert run_text(*TINY_TEXT, *c4(tmp_path / "c4"), "--max_steps", "1", "--output_dir", tmp_path / "run") == 0
    said = capsys.readouterr()
    assert "1 of 3 files of c4-train are missing: 00001" in said.out + said.err


def test_validation_text_without_a_document_is_refused(refused, tmp_path):
    write_c4(tmp_path / "c4")
    write_shard(tmp_path / "c4", "validation", 0, 1, b"")
    refused("no validation document", *c4(tmp_path / "c4"))


def test_too_many_bad_lines_are_refused(refused, tmp_path):
    write_c4(tmp_path / "c4")
    write_shard(tmp_path / "c4", "validation", 0, 1, b"no json\n" * 5)
    refused("--max_bad_lines 0: ", *c4(tmp_path / "c4", "--max_bad_lines", "0"))


def test_a_shard_that_breaks_off_ends_the_run_without_a_traceback(tmp_path, capsys):
    folder = write_c4(tmp_path / "c4", shards=1)
    shard = folder / "c4-train.00000-of-00001.json.gz"
    shard.write_bytes(shard.read_bytes()[:-200])
    assert gzip.decompress((folder / "c4-validation.00000-of-00001.json.gz").read_bytes())
    words = [*TINY_TEXT, *c4(folder), "--max_bad_lines", "0", "--output_dir", tmp_path / "run"]
    assert run_text(*words) == 2
    said = capsys.readouterr().err
    assert "c4-train.00000-of-00001.json.gz" in said and "Traceback" not in said


def test_a_folder_with_another_run_is_left_alone(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"seed": 1, "environment": {}}))
    assert run_text(*TINY_TEXT, "--output_dir", tmp_path) == 2
    assert "holds another run; give --resume, --overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_architecture_cannot_change_under_a_run(tmp_path, capsys):
    config = changed_config(tmp_path / "model")
    words = [*TINY_TEXT, "--model_config", config, "--output_dir", tmp_path / "run"]
    assert run_text(*words, "--max_steps", "1") == 0
    changed_config(tmp_path / "model", rope_theta=77.0)  # of the same sizes: the weights would fit
    assert run_text("--resume", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "architecture" in said and "1 difference from the checkpoint" in said
    assert (
        run_text("--resume", tmp_path / "run", "--model_config", CONFIG, "--max_steps", "2") == 0
    )  # the same, elsewhere


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run_text(*TINY_TEXT, "--output_dir", tmp_path / "run") == 2
    assert capsys.readouterr().err == "error: language models need transformers: pip install '.[llama]'\n"
    assert not (tmp_path / "run").exists()
