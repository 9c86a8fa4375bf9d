"""--decay_multiplier, --decay_only and --freeze through main_llama.py, and the published lists of names on GPT-2."""

import json

import pytest
import torch
from forked import forked
from safetensors.torch import load_file
from tiny import ROOT, rows
from tiny_text import TINY_TEXT, run_text, task_of

import alphadecay
from runtime.by_name import freeze, named_decays
from runtime.checkpoints import find_checkpoint
from runtime.decay_options import DecayOptions
from runtime.processes import Ranks

GOLDEN = json.loads((ROOT / "tests" / "goldens" / "why_weight_decay" / "decayed_names.json").read_text())
SIZES = ["gpt2_small_block1024", "gpt2_small_block256", "gpt2_micro", "shakespeare_char", "gpt2_small_block256_untied"]
ALONE = Ranks(0, 1, torch.device("cpu"))


def gpt2(config):
    """transformers' GPT-2 of a published size on the meta device, with frozen biases, which nanoGPT does not have."""
    transformers = pytest.importorskip("transformers")
    names = {"n_positions": "block_size", "vocab_size": "vocab_size", "n_layer": "n_layer", "n_head": "n_head"}
    values = {ours: config[theirs] for ours, theirs in names.items()} | {"n_embd": config["n_embd"]}
    tied = config.get("weight_tying", True)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values, tie_word_embeddings=tied))
    freeze(model, ["*.bias"])
    return model


@pytest.mark.parametrize("which", [0, 1], ids=["default", "all"])
@pytest.mark.parametrize("size", SIZES)
def test_the_published_lists_decay_the_published_parameters(size, which):
    golden, model = GOLDEN["counts"][size], gpt2(GOLDEN["counts"][size]["config"])
    names = {id(p): name for name, p in model.named_parameters()}
    assert sum(p.requires_grad for p in model.parameters()) == golden["tensors"]
    words = tuple(golden["by_list"][which]["substrings"].split())
    options = DecayOptions(decay_only=words, weight_decay=0.1)
    for groups in (
        alphadecay.param_groups(model, 0.1, only=words),
        alphadecay.param_groups(model, 0.1, **named_decays(options, model), **options.selection(model)),
    ):
        decayed = {True: [], False: []}
        for group in groups:
            assert group["weight_decay"] in (0, 0.1)
            decayed[group["weight_decay"] > 0] += group["params"]
        counts = {decays: sum(p.numel() for p in parameters) for decays, parameters in decayed.items()}
        assert counts == {True: golden["by_list"][which]["decayed"], False: golden["by_list"][which]["not_decayed"]}
        assert sum(counts.values()) == golden["total"]
        if size == "gpt2_small_block256":
            found = {decays: {names[id(p)] for p in parameters} for decays, parameters in decayed.items()}
            published = GOLDEN["lists"][which]
            assert found == {True: set(published["decayed"]), False: set(published["not_decayed"])}


BY_NAME = ["--decay_multiplier", "*.mlp.*=0.5", "*.layers.1.self_attn.o_proj*=0", "--decay_only", "proj", "norm"]


def test_the_dry_run_says_which_option_decides_and_how_much_it_matches(tmp_path, capsys):
    words = [*BY_NAME, "--freeze", "*k_proj*", "--output_dir", tmp_path / "run"]
    assert run_text(*TINY_TEXT, *words, "--dry_run") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    table = {line.split()[0]: line for line in lines if "layers" in line or "embed" in line}
    assert "model.layers.0.self_attn.k_proj.weight" not in table
    assert "--decay_multiplier *.mlp.*=0.5: 0.5 x base; alpha 2" in table["model.layers.0.mlp.up_proj.weight"]
    assert table["model.layers.1.self_attn.o_proj.weight"].endswith(
        "1 0 --decay_multiplier *.layers.1.self_attn.o_proj*=0: 0 x base"
    )
    assert "--decay_only proj: named; alpha 2" in table["model.layers.0.self_attn.q_proj.weight"]
    assert table["model.layers.1.input_layernorm.weight"].endswith("0.1 --decay_only norm: named")
    assert table["model.embed_tokens.weight"].endswith("0 --decay_only: not named")
    assert lines[-5:] == [
        "--decay_multiplier *.mlp.*=0.5: 6 tensors, 36864 parameters",
        "--decay_multiplier *.layers.1.self_attn.o_proj*=0: 1 tensor, 4096 parameters",
        "--decay_only proj: 14 tensors, 69632 parameters, 2 frozen",
        "--decay_only norm: 5 tensors, 320 parameters",
        "--freeze *k_proj*: 2 tensors, 8192 parameters, 2 frozen",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decay_multiplier", "*.mpl.*=1"], "--decay_multiplier *.mpl.*=1: matches no parameter (did you mean mlp?)"),
        (["--decay_multiplier", "mlp=0.5"], "--decay_multiplier mlp=0.5: matches no parameter (did you mean '*mlp*'?)"),
        (["--decay_multiplier", "*=0.5", "zzz=1"], "--decay_multiplier zzz=1: matches no parameter\n"),
        (["--decay_multiplier", "*.mlp.*"], "--decay_multiplier *.mlp.*: expected GLOB=X"),
        (["--decay_multiplier", "=0.5"], "--decay_multiplier =0.5: expected GLOB=X"),
        (["--decay_multiplier", ""], "--decay_multiplier : expected GLOB=X"),
        (["--decay_multiplier", "*=-1"], "--decay_multiplier *=-1: -1 must be finite and at least 0"),
        (["--decay_multiplier", "*=nan"], "--decay_multiplier *=nan: nan must be finite"),
        (["--decay_multiplier", "*=inf"], "--decay_multiplier *=inf: inf must be finite"),
        (["--decay_multiplier", "*=1e999"], "--decay_multiplier *=1e999: 1e999 must be finite"),
        (["--decay_multiplier", "*=half"], "--decay_multiplier *=half: 'half' is not a number"),
        (["--decay_multiplier", "*="], "--decay_multiplier *=: '' is not a number"),
        (["--decay_multiplier", "*=1", "*=2"], "--decay_multiplier *=2: * is given twice"),
        (["--decay_only", "mlp", "atn"], "--decay_only atn: occurs in no name of a parameter (did you mean attn?)"),
        (["--decay_only", ""], "--decay_only '': an empty name is part of every name"),
        (["--freeze", "*.bias"], "--freeze *.bias: matches no parameter\n"),
        (["--freeze", "model.layers.0.mlp.up_prj.weight"], "matches no parameter (did you mean up_proj?)"),
        (["--freeze", ""], "--freeze '': matches no parameter"),
        (["--freeze", "*embed*", "*"], "--freeze *embed* *: matches every parameter, so none would be trained"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_meant_is_one_line(words, message, tmp_path, capsys):
    assert run_text(*TINY_TEXT, "--output_dir", tmp_path / "run", *words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {words[0]} ") and message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def gpt2_config(folder):
    values = {"model_type": "gpt2", "vocab_size": 260, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 2}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpt2.json").write_text(json.dumps(values))
    return folder / "gpt2.json"


def weights_of(folder):
    return find_checkpoint(folder)[0].model_weights()


@pytest.mark.slow
def test_frozen_weights_keep_their_bits_through_training_resuming_and_export(tmp_path, capsys):
    words = [*TINY_TEXT, "--model_config", gpt2_config(tmp_path), "--freeze", "*.bias", "*.h.0.attn.*"]
    words += ["--decay_only", "wte", "mlp", "attn", "--decay_multiplier", "*.h.1.mlp.*=0.5"]
    task, _ = task_of(*words, "--output_dir", tmp_path / "run", alone=ALONE)
    task.stream.close()
    start = {name: p.detach().clone() for name, p in task.learner.plain.named_parameters()}
    frozen = {name for name, p in task.learner.plain.named_parameters() if not p.requires_grad}
    assert len(frozen) == 13 + 2 and all(n.endswith("bias") or ".h.0.attn." in n for n in frozen)
    assert run_text(*words, "--output_dir", tmp_path / "run", "--export_hf", tmp_path / "exported") == 0
    assert run_text(*words, "--output_dir", tmp_path / "part", "--max_steps", "3") == 0
    assert run_text("--resume", tmp_path / "part", "--max_steps", "6") == 0
    whole, resumed, exported = (
        weights_of(tmp_path / "run"),
        weights_of(tmp_path / "part"),
        load_file(tmp_path / "exported" / "model.safetensors"),
    )
    for name, before in start.items():
        assert torch.equal(whole[name], before) == (name in frozen), name
        assert torch.equal(resumed[name], whole[name]) and torch.equal(exported[name], whole[name])
    capsys.readouterr()
    assert run_text("--resume", tmp_path / "part", "--freeze", "*.bias") == 2
    assert "from the checkpoint: freeze;" in capsys.readouterr().err
    assert run_text("--resume", tmp_path / "part", "--decay_only", "wte") == 2
    assert "from the checkpoint: decay_only;" in capsys.readouterr().err
    assert run_text("--resume", tmp_path / "part", "--decay_multiplier", "*=1") == 2
    assert "from the checkpoint: decay_multiplier;" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_replayed_bitwise_and_its_log_has_the_decays_that_acted(tmp_path):
    words = [*TINY_TEXT, *BY_NAME, "--output_dir"]
    assert run_text(*words, tmp_path / "run") == 0
    log = rows(tmp_path / "run" / "decay.jsonl")
    by_module = {row["module"]: row for row in log if row["step"] == 0}
    up, o = by_module["model.layers.0.mlp.up_proj"], by_module["model.layers.1.self_attn.o_proj"]
    assert up["weight_decay"] == 0.1 * 0.5 * up["multiplier"] and o["weight_decay"] == 0
    assert o["note"] == "not decayed: its static multiplier is 0"
    assert rows(tmp_path / "run" / "log.jsonl")[-1]["weight_decay_min"] == min(
        r["weight_decay"] for r in by_module.values() if r["weight_decay"]
    )
    replayed = ["--decay", "replay", "--decay_ledger", tmp_path / "run" / "decay.jsonl"]
    assert run_text(*words, tmp_path / "again", *replayed) == 0
    ours, theirs = weights_of(tmp_path / "run"), weights_of(tmp_path / "again")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_shards_are_frozen_and_decayed_by_the_names_of_whole_weights(tmp_path):
    words = [*TINY_TEXT, *BY_NAME, "--freeze", "*k_proj*", "--max_steps", "3", "--fsdp", "--output_dir"]
    task, _ = task_of(*TINY_TEXT, "--output_dir", tmp_path, alone=ALONE)
    task.stream.close()
    done = forked(2, *words, tmp_path / "two", program="main_llama.py")
    assert done.returncode == 0, done.stderr[-3000:]
    weights = weights_of(tmp_path / "two")
    for name, before in task.learner.plain.named_parameters():
        assert torch.equal(weights[name], before) == ("k_proj" in name), name
    notes = {row["module"]: (row["weight_decay"] > 0, row["note"]) for row in rows(tmp_path / "two" / "decay.jsonl")}
    assert "model.layers.0.self_attn.k_proj" not in notes
    assert notes.pop("model.layers.1.self_attn.o_proj") == (False, "not decayed: its static multiplier is 0")
    assert set(notes.values()) == {(True, "")}


@pytest.mark.slow
def test_another_decay_by_name_acts_from_where_it_is_allowed(tmp_path, capsys):
    words = [*TINY_TEXT, "--decay_multiplier", "*v_proj*=0", "*mlp*=0.5", "--max_steps", "3"]
    assert run_text(*words, "--output_dir", tmp_path / "run") == 0
    resumed = ["--resume", tmp_path / "run", "--max_steps", "6", "--allow_changed", "decay", "--decay_multiplier"]
    assert run_text(*resumed, "*norm*=3") == 2
    assert "group '(no decay)' was saved where '(other, x3)' is now" in capsys.readouterr().err
    assert run_text(*resumed, "*mlp*=2") == 0
    last = [row for row in rows(tmp_path / "run" / "decay.jsonl") if row["step"] == 4]
    for row in last:
        static = 2 if ".mlp." in row["module"] else 1
        assert row["weight_decay"] == 0.1 * static * row["multiplier"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["uniform", "alphadecay"])
def test_a_run_whose_matrices_are_all_frozen_ends_well(strategy, tmp_path):
    words = [*TINY_TEXT, "--decay", strategy, "--freeze", "*proj*", "lm_head*", "--output_dir", tmp_path / "run"]
    with pytest.warns(UserWarning, match="no weight matrix can be adapted yet"):
        assert run_text(*words, "--decay_audit", "--log_interval", "1", draw=True) == 0
    assert rows(tmp_path / "run" / "decay.jsonl") == []
