"""Starting weights, layer-wise learning rates, and what composes with them."""

import pickle

import pytest
import timm
import torch
from photos import imagenet
from safetensors.torch import save_file
from tiny import TINY, run
from torch import nn

import alphadecay
from alphadecay.analysis import Measuring
from alphadecay.assign import Assignment
from optim_factory import build_decay, build_optimizer, scale_layers
from runtime.decay_options import DecayOptions
from runtime.errors import UserError
from vision.models import ModelOptions, build_model
from vision.options import VisionOptimizerOptions
from vision.run import build_schedules

SMALL = ("patch_size=8", "embed_dim=64", "depth=2", "num_heads=2")


def options(**changes):
    return ModelOptions(model="vit_tiny_patch16_224", model_kwargs=SMALL, **changes)


def saved(path, classes=10, input_size=32, **wrapping):
    model = build_model(options(), classes, input_size)
    weights = {name: value + 1 for name, value in model.state_dict().items()}
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(wrapping | {"model": weights}, path)
    return weights


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_weights_of_a_file_are_loaded_with_their_head(tmp_path, name):
    weights = saved(tmp_path / name)
    model = build_model(options(finetune=str(tmp_path / name)), 10, 32)
    assert all(torch.equal(value, weights[n]) for n, value in model.state_dict().items())


def test_a_head_for_other_classes_is_new_and_the_rest_is_loaded(tmp_path):
    weights = saved(tmp_path / "w.safetensors", classes=7)
    model = build_model(options(finetune=str(tmp_path / "w.safetensors")), 10, 32)
    state = model.state_dict()
    assert state["head.weight"].shape == (10, 64)
    assert all(torch.equal(state[n], weights[n]) for n in state if not n.startswith("head"))


def test_position_embeddings_are_resampled_to_another_input_size(tmp_path):
    saved(tmp_path / "w.safetensors", input_size=32)
    model = build_model(options(finetune=str(tmp_path / "w.safetensors")), 10, 64)
    assert model.pos_embed.shape[1] == 65


def test_evaluation_refuses_a_head_for_other_classes(tmp_path):
    saved(tmp_path / "w.safetensors", classes=7)
    with pytest.raises(UserError, match="has a head for 7 classes, the data have 10"):
        build_model(options(finetune=str(tmp_path / "w.safetensors")), 10, 32, new_head=False)


class Malicious:
    def __reduce__(self):
        return print, ("this must never run",)


def test_files_that_are_no_weights_are_refused_and_run_no_code(tmp_path, capsys):
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"model": Malicious()}, protocol=2))
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    for name in ("code.pth", "text.safetensors", "list.pth", "missing.pth"):
        with pytest.raises(UserError, match=f"--finetune .*{name}"):
            build_model(options(finetune=str(tmp_path / name)), 10, 32)
    assert capsys.readouterr().out == ""


def test_weights_of_another_model_are_refused_in_one_line(tmp_path):
    save_file({"head.weight": torch.zeros(10, 64), "x": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="cannot be loaded into vit_tiny_patch16_224") as caught:
        build_model(options(finetune=str(tmp_path / "w.safetensors")), 10, 32)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_that_cannot_be_had_are_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network\nand more")

    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    with pytest.raises(UserError, match="--pretrained: cannot be loaded into deit_tiny_patch16_224: no network$"):
        build_model(ModelOptions(model="deit_tiny_patch16_224", pretrained=True), 10, 224)


@pytest.mark.slow
def test_a_run_starts_from_a_run_and_its_weights_are_evaluated(tmp_path, monkeypatch, capsys):
    first = tmp_path / "first"
    assert run(*TINY, "--output_dir", first, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    assert (
        run(*TINY, "--output_dir", tmp_path / "next", "--finetune", first, "--max_steps", "1", monkeypatch=monkeypatch)
        == 0
    )
    assert run(*TINY, "--eval", "--finetune", first, monkeypatch=monkeypatch) == 0
    by_weights = capsys.readouterr().out.splitlines()[-1].split()
    assert run("--eval", "--resume", first, monkeypatch=monkeypatch) == 0
    assert by_weights in [line.split() for line in capsys.readouterr().out.splitlines()] and by_weights[0] == "raw"


def test_a_pth_file_of_timm_is_evaluated(tmp_path, monkeypatch, capsys):
    root = imagenet(tmp_path / "images", classes=10, train=1, val=2)
    saved(tmp_path / "w.pth", classes=10, input_size=16)
    words = [*TINY, "--data_set", "IMNET", "--data_path", root, "--eval", "--finetune", tmp_path / "w.pth"]
    assert run(*words, monkeypatch=monkeypatch) == 0
    assert "top-5 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "resnet18", "mixer_s32_224"]
)
def test_each_layers_rate_is_a_fixed_share_of_the_nexts_and_every_parameter_keeps_its_group(name):
    model = timm.create_model(name)
    groups = scale_layers(alphadecay.param_groups(model, 0.1), model, 0.5)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = [group["decay_name"] for group in groups]
    assert len(names) == len(set(names))
    scales = {group["lr_scale"] for group in groups}
    assert max(scales) == 1 and scales == {0.5**i for i in range(len(scales))}
    names = {id(p): n for n, p in model.named_parameters()}
    scale_of = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    classifier = model.pretrained_cfg["classifier"]
    assert scale_of[f"{classifier}.weight"] == 1 and scale_of[f"{model.pretrained_cfg['first_conv']}.weight"] == min(
        scales
    )


def test_layer_decay_alphadecay_and_both_schedules_compose():
    model = build_model(options(), 10, 32)
    wanted = VisionOptimizerOptions(optimizer="adamw", lr=1.0, epochs=1, warmup_epochs=0, layer_decay=0.5)
    decays = DecayOptions(weight_decay=0.1, weight_decay_end=0.05, decay="alphadecay", decay_interval=1)
    optimizer = build_optimizer(wanted, decays, model, wanted.layer_decay)
    schedule = build_decay(decays, model, optimizer, seed=0)
    schedules = build_schedules(wanted, decays, steps_per_epoch=3)
    for step in range(3):
        schedules.write(optimizer, step)
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(schedules.lr_at(step) * group["lr_scale"])
            static = 0 if group["decay_name"].startswith("(no decay") else 1
            expected = schedules.weight_decay_at(step) * static * schedule.multipliers.get(group["decay_name"], 1)
            assert group["weight_decay"] == pytest.approx(expected)
    assert len(set(schedule.multipliers.values())) == 8


def test_layer_decay_of_a_model_without_layers_is_refused():
    model = nn.Linear(60, 60)
    with pytest.raises(UserError, match="--layer_decay 0.5: Linear does not name its layers"):
        scale_layers(alphadecay.param_groups(model, 0.1), model, 0.5)


def test_stem_and_head_take_part_when_asked():
    model = build_model(options(), 64, 32)
    decays = DecayOptions(decay="alphadecay", remove_first_layer=False, remove_last_layer=False)
    optimizer = build_optimizer(VisionOptimizerOptions(), decays, model)
    schedule = build_decay(decays, model, optimizer, seed=0)
    schedule.refresh()
    assert {"patch_embed.proj", "head"} < set(schedule.multipliers) and len(schedule.multipliers) == 10


@pytest.mark.parametrize(
    "metric", ["alpha_hat", "spectral_norm", "largest_eigenvalue", "frobenius_norm", "stable_rank", "entropy"]
)
def test_any_measure_can_score_the_modules(metric):
    model = build_model(options(), 10, 32)
    decays = DecayOptions(decay="alphadecay", decay_metric=metric)
    schedule = build_decay(decays, model, build_optimizer(VisionOptimizerOptions(), decays, model), seed=0)
    schedule.refresh()
    ranked = sorted(schedule.scores, key=schedule.scores.__getitem__)
    assert schedule.multipliers[ranked[0]] == pytest.approx(2 / 3) and schedule.multipliers[ranked[-1]] == 3.0


def test_the_control_is_dealt_by_the_seed_of_the_run():
    def dealt(seed):
        decays = DecayOptions(decay="alphadecay", decay_control="shuffle")
        model = build_model(options(), 10, 32)
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p)
        schedule = build_decay(decays, model, build_optimizer(VisionOptimizerOptions(), decays, model), seed)
        schedule.refresh()
        return list(schedule.multipliers.values())

    assert dealt(0) == dealt(0) != dealt(1)


def test_every_option_of_the_decay_reaches_the_schedule():
    decays = DecayOptions(
        decay="alphadecay", decay_interval=7, decay_lag=3, decay_metric="entropy", decay_fit="paper",
        decay_xmin_pos=3.0, decay_window="farms", filter_zeros=True, decay_assign="sqrt", decay_low=0.5,
        decay_high=1.5, decay_budget="matched", decay_control="shuffle", decay_frozen=True, decay_cautious=True,
    )  # fmt: skip
    model, adamw = build_model(options(), 10, 32), VisionOptimizerOptions(optimizer="adamw")
    made = build_decay(decays, model, build_optimizer(adamw, decays, model), seed=4)
    assert (made.interval, made.lag, made.metric, made.frozen, made.cautious) == (7, 3, "entropy", True, True)
    assert made.measuring == Measuring("paper", 3.0, "farms", True)
    assert made.assignment == Assignment("sqrt", low=0.5, high=1.5, budget="matched", control="shuffle", seed=4)
