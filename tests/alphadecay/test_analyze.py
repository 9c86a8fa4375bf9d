"""python -m alphadecay analyze: the same on files as on models, one line for bad input."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import ROOT
from torch import nn

import alphadecay
from alphadecay.command import output as analysis_output
from alphadecay.command.analyze import main
from alphadecay.command.sources import MANIFEST, read_source, sha256

SMALL = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "num_heads": 2, "depth": 2}


def llama(tied=False):
    config = transformers.LlamaConfig(**SMALL, vocab_size=100, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=2, vocab_size=100, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


MODELS = {
    "deit_tiny": lambda: timm.create_model("deit_tiny_patch16_224", depth=3),
    "swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 2, 1), embed_dim=64),
    "resnet18": lambda: timm.create_model("resnet18"),
    "convnext": lambda: timm.create_model("convnext_atto"),
    "llama": llama,
    "llama, tied": lambda: llama(tied=True),
    "gpt2": gpt2,
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, vocab_size=100)),
}


def save(model: nn.Module, folder) -> str:
    """A model on the disk, as its library saves it; returns what the command is given."""
    if isinstance(model, transformers.PreTrainedModel):
        model.save_pretrained(folder)
        return str(folder)
    folder.mkdir()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def by_name(records):
    return {record.name: record for record in records}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_file_has_the_records_of_the_model_it_is_of(build, tmp_path):
    torch.manual_seed(0)
    model = build()
    source = read_source(save(model, tmp_path / "model"))
    found, true = by_name(alphadecay.analyze(source.model)), by_name(alphadecay.analyze(model))
    assert found == true and any(record.alpha for record in true.values())


@pytest.mark.parametrize("build", [MODELS["deit_tiny"], MODELS["gpt2"]], ids=["deit_tiny", "gpt2"])
def test_q_k_and_v_of_a_file_are_those_of_the_model(build, tmp_path):
    model = build()
    source = read_source(save(model, tmp_path / "model"))
    found, true = (by_name(alphadecay.analyze(alphadecay.split_qkv(each))) for each in (source.model, model))
    assert found == true and any(record.role == "attn.q" for record in true.values())


def test_shards_are_read_as_one(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1 and not (tmp_path / "model.safetensors").exists()
    assert by_name(alphadecay.analyze(read_source(str(tmp_path)).model)) == by_name(alphadecay.analyze(model))


def test_stem_and_head_are_those_that_timm_declares_where_the_model_is_named(tmp_path):
    model = timm.create_model("resnet10t", num_classes=60)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t"}))
    found = by_name(alphadecay.analyze(read_source(str(tmp_path)).model))
    assert found == by_name(alphadecay.analyze(model)) and found["conv1.0"].note == "stem"


def run_folder(folder):
    """A run's folder with two checkpoints; the newer one has an average of other weights."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": "vit_tiny_patch16_224"}))
    for step in (100, 20):
        checkpoint = folder / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir()
        for name in ("model", "ema"):
            model = timm.create_model("vit_tiny_patch16_224", **VIT)
            save_file(model.state_dict(), checkpoint / f"{name}.safetensors")
        hashes = {path.name: sha256(path) for path in checkpoint.iterdir()}
        (checkpoint / MANIFEST).write_text(json.dumps({"step": step, "files": hashes}))
    (folder / "checkpoints" / "best").symlink_to("step_00000020")
    return folder


def test_a_run_means_its_newest_checkpoint_and_a_link_what_it_points_at(tmp_path):
    folder = run_folder(tmp_path / "run")
    steps = folder / "checkpoints"
    for what, ema, file in (
        (folder, False, "step_00000100/model"), (folder, True, "step_00000100/ema"),
        (steps / "best", False, "step_00000020/model"), (steps / "step_00000020", True, "step_00000020/ema"),
    ):  # fmt: skip
        found = read_source(str(what), ema=ema).model.state_dict()
        expected = {k: v for k, v in load_file(steps / f"{file}.safetensors").items() if v.ndim >= 2}
        assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    """What one run of the command writes and prints: an average against raw weights."""
    folder = tmp_path_factory.mktemp("analysis")
    run = run_folder(folder / "run")
    command = [sys.executable, "-m", "alphadecay", "analyze", str(run), "--ema", "--against", str(run)]
    command += ["--output-dir", str(folder / "out"), "--split-qkv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return run, folder / "out", done.stdout


@pytest.mark.slow
def test_tables_and_files_hold_what_analyze_says(analysis):
    run, out, said = analysis
    raw, average = (alphadecay.split_qkv(read_source(str(run), ema=ema).model) for ema in (False, True))
    before, true = by_name(alphadecay.analyze(raw)), alphadecay.analyze(average)
    with open(out / "spectra.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    content = json.loads((out / "spectra.json").read_text())
    assert list(rows) == [r.name for r in true] == [module["name"] for module in content["modules"]]
    for record, module in zip(true, content["modules"], strict=True):
        assert module["alpha"] == record.alpha and module["note"] == record.note
        assert rows[record.name]["alpha"] == ("" if record.alpha is None else str(record.alpha))
        if record.alpha is not None:
            assert module["alpha_change"] == record.alpha - before[record.name].alpha
            assert f"{record.alpha:.3f}" in next(line for line in said.splitlines() if line.startswith(record.name))
    ema = run / "checkpoints" / "step_00000100" / "ema.safetensors"
    assert content["source"]["sha256"] == {str(ema): sha256(ema)}
    assert content["settings"]["split_qkv"] and content["versions"]["torch"] == torch.__version__
    assert {each["role"] for each in content["roles"]} >= {"attn.q", "attn.k", "attn.v", "mlp.fc1"}


@pytest.mark.slow
def test_figures_are_written_for_screen_and_print(analysis):
    _, out, _ = analysis
    names = {path.name for path in (out / "figures").iterdir()}
    both = ("alpha_by_depth", "alpha_by_role", "alpha_change", "spectra_by_role")
    roles = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert names == {
        *(f"{name}.{kind}" for name in both for kind in ("png", "pdf")),
        *(f"spectra_{role}.png" for role in roles), "spectra_by_module.pdf",
    }  # fmt: skip
    assert all((out / "figures" / name).stat().st_size > 1000 for name in names)


@pytest.mark.slow
def test_another_analysis_is_replaced_only_when_asked(analysis, capsys):
    run, out, _ = analysis
    assert main(["analyze", str(run), "--output_dir", str(out)]) == 2
    assert f"--output_dir {out}: holds another analysis" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of things that cannot be analysed."""
    folder = tmp_path_factory.mktemp("bad")
    weight = torch.randn(64, 64)
    torch.save({"layer.weight": weight}, folder / "model.pth")
    shutil.copy(folder / "model.pth", folder / "hidden.safetensors")
    torch.save({"layer.weight": weight}, folder / "old", _use_new_zipfile_serialization=False)
    save_file({"layer.weight": weight}, folder / "whole.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-100])
    (folder / "text.safetensors").write_text("no weights")
    save_file({"bias": torch.zeros(3)}, folder / "flat.safetensors")
    save_file({"small.weight": torch.randn(4, 4)}, folder / "small.safetensors")
    save_file({"layer.weight": weight.to(torch.int8)}, folder / "int8.safetensors")
    weight[3, 4] = torch.nan
    save_file({"layer.weight": weight}, folder / "nan.safetensors")
    for name in ("empty", "pickles", "escape", "lost"):
        (folder / name).mkdir()
    shutil.copy(folder / "model.pth", folder / "pickles" / "pytorch_model.bin")
    for name, shard in (("escape", "../whole.safetensors"), ("lost", "model-1.safetensors")):
        index = {"weight_map": {"layer.weight": shard}}
        (folder / name / "model.safetensors.index.json").write_text(json.dumps(index))
    changed = run_folder(folder / "changed") / "checkpoints" / "step_00000100" / "model.safetensors"
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    save_file(model.state_dict(), changed)
    run_folder(folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints" / "step_00000100")
    (folder / "run" / "checkpoints" / "step_00000020" / "ema.safetensors").unlink()
    return folder


VERIFIED = "step_00000100/model.safetensors: is damaged: its SHA-256 differs from the manifest's"
BAD = {
    "no file": ("{}/nowhere.safetensors", "nowhere.safetensors: no such file or folder"),
    "a pickle": ("{}/model.pth", "model.pth: is a pickle, which can run code"),
    "a pickle under another name": ("{}/hidden.safetensors", "hidden.safetensors: is a pickle"),
    "a pickle of old": ("{}/old", "old: is a pickle"),
    "a folder of pickles": ("{}/pickles", "pytorch_model.bin: is a pickle"),
    "an empty folder": ("{}/empty", "empty: has neither model.safetensors"),
    "a lost shard": ("{}/lost", "model-1.safetensors: no such file"),
    "a shard elsewhere": ("{}/escape", "'../whole.safetensors', which is outside its folder"),
    "a file cut short": ("{}/cut.safetensors", "cut.safetensors: is not a safetensors file, or is damaged"),
    "text": ("{}/text.safetensors", "text.safetensors: is not a safetensors file"),
    "no matrix": ("{}/flat.safetensors", "flat.safetensors: has no weight matrix"),
    "none takes part": ("{}/small.safetensors", "no weight matrix can be measured (small: 4 eigenvalues"),
    "quantized": ("{}/int8.safetensors", "layer.weight is quantized (I8)"),
    "not finite": ("{}/nan.safetensors", "layer (64, 64): the weight holds values that are not finite"),
    "changed since": ("{}/changed", VERIFIED),
    "changed, named itself": ("{}/changed/checkpoints/step_00000100/model.safetensors", VERIFIED),
    "no average": ("{}/run --ema", "--ema: "),
    "average of a file": ("{}/whole.safetensors --ema", "--ema: needs a checkpoint of a run"),
    "average of a name": ("resnet18 --ema", "--ema: needs a checkpoint, but resnet18"),
    "unknown model": ("deit_tiny_patch16_24", "close names: deit_tiny_patch16_224"),
    "pretrained file": ("{}/whole.safetensors --pretrained", "--pretrained: needs the name of a timm model"),
    "other modules": (
        "{}/whole.safetensors --against {}/run",
        "run: has other modules: layer is 64x64 in WHAT, absent in OTHER; blocks.0.attn.qkv is absent in WHAT, 192x64 ",
    ),
    "itself": ("{}/whole.safetensors --against {}/whole.safetensors", "is WHAT itself"),
    "unknown window": ("{}/whole.safetensors --window wide", "--window: invalid choice: 'wide'"),
    "unknown fit": ("{}/whole.safetensors --fit best", "--fit: invalid choice: 'best'"),
    "cut": ("{}/whole.safetensors --xmin_pos 1", "--xmin_pos 1.0: must be above 1"),
    "seed": ("resnet18 --seed -1", "--seed -1: must be at least 0"),
    "glob": ("{}/whole.safetensors --exclude blocks.*", "--exclude='blocks.*' matches no weight matrix"),
    "nothing to split": ("{}/whole.safetensors --split_qkv", "--split_qkv: "),
    "unknown device": ("{}/whole.safetensors --device tpu9", "--device tpu9: "),
    "unknown option": ("{}/whole.safetensors --widow farms", "--widow"),
    "nothing": ("", "WHAT"),
}


@pytest.mark.parametrize(("words", "culprit"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_nothing_is_written(words, culprit, bad, tmp_path, capsys):
    words = [word.replace("{}", str(bad)) for word in words.split()]
    assert main(["analyze", *words, "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and culprit in said.err
    assert said.out == "" and list(tmp_path.iterdir()) == []


def test_pretrained_weights_that_cannot_be_fetched_are_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["analyze", "resnet18", "--pretrained"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --pretrained resnet18: ") and said.count("\n") == 1


def test_names_of_strangers_are_neither_formulas_nor_steer_the_terminal(tmp_path, monkeypatch, capsys):
    names = ["=1+1", "@SUM(A1)", "-2+3", "+1", "\t=1", "a\x1b[2J"]
    save_file({f"{name}.weight": torch.randn(64, 64) for name in names}, tmp_path / "w.safetensors")
    monkeypatch.setattr(analysis_output, "_write_figures", lambda *_: None)
    assert main(["analyze", str(tmp_path / "w.safetensors"), "--output_dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable() and r"a\x1b[2J" in said
    with open(tmp_path / "out" / "spectra.csv", newline="") as file:
        found = [row["name"] for row in csv.DictReader(file)]
    assert sorted(found) == sorted(["'=1+1", "'@SUM(A1)", "'-2+3", "+1", r"'\t=1", r"a\x1b[2J"])  # +1 is a number


def test_an_analysis_leaves_foreign_files_alone_and_replaces_its_own(tmp_path, monkeypatch, capsys):
    save_file({"layer.weight": torch.randn(64, 64)}, tmp_path / "w.safetensors")
    monkeypatch.setattr(analysis_output, "_write_figures", lambda *_: None)
    words = ["analyze", str(tmp_path / "w.safetensors"), "--output_dir", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(words) == 0 and main(words) == 2
    assert "holds another analysis; give --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["analyze", "resnet18", "--output_dir", str(tmp_path / "file")]) == 2
    assert f"--output_dir {tmp_path / 'file'}: is a file" in capsys.readouterr().err


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert "python -m alphadecay analyze deit_tiny_patch16_224" in said


def test_both_spellings_of_an_option_work(bad, capsys):
    for words in ("--xmin-pos 3 --filter-zeros", "--xmin_pos=3 --filter_zeros"):
        assert main(["analyze", str(bad / "whole.safetensors"), *words.split()]) == 0
    first, second = capsys.readouterr().out.split(str(bad))[1:]
    assert first == second


def test_projections_that_mix_q_k_and_v_head_by_head_are_not_split(tmp_path, capsys):
    config = transformers.GPTBigCodeConfig(
        n_embd=64,
        n_layer=2,
        n_head=2,
        vocab_size=100,
        n_positions=32,
        multi_query=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPTBigCodeForCausalLM(config).save_pretrained(tmp_path)
    assert main(["analyze", str(tmp_path), "--split_qkv"]) == 2
    assert "--split_qkv: " in capsys.readouterr().err
