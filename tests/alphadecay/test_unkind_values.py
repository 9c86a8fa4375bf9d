"""Values, arguments and weights that a stranger thought of: they work, or are named in one line."""

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from recipes import block_model
from torch import nn
from unkind import adamw, decays, net, take_steps

import alphadecay
from alphadecay.decay_log import refresh_rows
from alphadecay.tails import fit_median


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1.0])
def test_adadecay_per_entry_has_the_same_factors_in_half_precision(scale):
    from alphadecay.entries import adadecay_factors

    gradient = scale * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    half = gradient.half()
    (found,), (expected,) = adadecay_factors([half]), adadecay_factors([half.double()])
    assert torch.isfinite(found).all() and float((found.double() - expected).abs().max()) < 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_adadecay_per_entry_and_awd_bear_gradients_whose_squares_do_not_fit_float32(scale):
    from alphadecay.entries import adadecay_factors
    from alphadecay.sharing import power_sums

    gradient = scale * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    (found,), (expected,) = adadecay_factors([gradient]), adadecay_factors([gradient.double()])
    assert float((found.double() - expected).abs().max()) < 1e-3
    assert float(power_sums([gradient], 2)[0]) == pytest.approx(float(gradient.double().square().sum()), rel=1e-6)


def test_lazy_weights_are_decayed_as_others_and_are_no_trouble_before_they_are_there(tmp_path):
    model = nn.Sequential(nn.LazyLinear(64), nn.Linear(64, 64))
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1), lr=1e-2)
    decay = alphadecay.AWD(model, optimizer)
    decay.log_to(tmp_path / "decay.jsonl")
    assert "2 modules" in repr(decay)
    decay.refresh()
    decay.detach()
    decay = alphadecay.AlphaDecay(model, optimizer)
    audit = alphadecay.DecayAudit(decay, 1)
    model[1].weight.grad = torch.ones(64, 64)
    optimizer.step()
    assert [record.name for record in audit.records] == ["1"]
    take_steps(model, optimizer, 0, 1)
    assert decays(optimizer)["0"] == pytest.approx(0.1 * decay.multipliers["0"]) and decay.multipliers["0"] != 1


class Declaring(nn.Sequential):
    def no_weight_decay(self):
        return {"0.weight"}


def test_what_a_model_declares_and_norms_of_any_shape_are_not_decayed():
    model = Declaring(nn.Linear(64, 64), nn.LayerNorm((4, 64)), nn.Linear(64, 64))
    groups = {id(p): group for group in alphadecay.param_groups(model, 0.1) for p in group["params"]}
    assert [groups[id(model[i].weight)]["weight_decay"] for i in range(3)] == [0.0, 0.0, 0.1]


def test_a_learning_rate_that_is_set_for_the_first_group_alone_is_said_once():
    model = net()
    optimizer = adamw(model)
    alphadecay.AlphaDecay(model, optimizer)
    take_steps(model, optimizer, 0, 1)
    for group in optimizer.param_groups:
        group["lr"] = 5e-3
    take_steps(model, optimizer, 1, 2)
    optimizer.param_groups[0]["lr"] = 1e-3
    with pytest.warns(UserWarning, match=r"learning rate of only group 0 was set to 0.001, and 4 other groups keep 0"):
        take_steps(model, optimizer, 2, 3)
    optimizer.param_groups[0]["lr"] = 1e-4
    take_steps(model, optimizer, 3, 4)


@pytest.mark.parametrize("shape", [(64, 64), (64, 200)], ids=str)
def test_the_audit_of_a_replaced_layer_is_of_the_new_one(shape):
    model = net(widths=(64, 64, 64))
    optimizer = adamw(model)
    decay = alphadecay.AlphaDecay(model, optimizer)
    audit = alphadecay.DecayAudit(decay, 1)
    take_steps(model, optimizer, 0, 1)
    model[1] = nn.Sequential(nn.Linear(*shape), nn.Linear(shape[1], 64)) if shape[1] != 64 else nn.Linear(64, 64)
    optimizer.add_param_group({"params": model[1].parameters()})
    take_steps(model, optimizer, 1, 3)
    names = [record.name for record in audit.records]
    assert len(set(names)) == len(names) and set(names) == set(decay.multipliers)
    weight = model.get_parameter("1.weight" if shape[1] == 64 else "1.1.weight")
    record = next(record for record in audit.records if record.name in ("1", "1.1"))
    assert record.weight_norm == pytest.approx(float(weight.detach().norm()), rel=0.1)
    audit.detach()
    audit.detach()


@pytest.mark.parametrize("side", [128, 256])
def test_a_spike_above_a_flat_spectrum_does_not_cost_accuracy(side):
    generator = torch.Generator().manual_seed(0)
    weight, _ = torch.linalg.qr(torch.randn(side, side, generator=generator))
    weight += 1e-3 * torch.randn(side, side, generator=generator)
    u, v = (torch.randn(side, generator=generator) / side**0.5 for _ in range(2))
    model = nn.Sequential(nn.Linear(side, side))
    model[0].weight.data = weight + 31 * torch.outer(u, v)
    exact = np.sort(np.linalg.svd(model[0].weight.detach().double().numpy(), compute_uv=False) ** 2)
    assert alphadecay.analyze(model)[0].alpha == pytest.approx(fit_median(exact).alpha, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128])
def test_norms_are_exact_in_every_precision(dtype):
    model = net(torch.float32 if dtype.is_complex else dtype)
    if dtype.is_complex:
        model = nn.Sequential(*[nn.Linear(64, 64, dtype=dtype) for _ in range(2)])
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, weight_decay=0.1)
    decay = alphadecay.AlphaDecay(model, optimizer)
    optimizer.step()
    for row in refresh_rows(decay):
        weight = model.get_parameter(f"{row['module']}.weight").detach()
        exact = float(weight.to(torch.complex128 if dtype.is_complex else torch.float64).norm())
        assert row["weight_norm"] == pytest.approx(exact, rel=1e-6)
    assert [r.grad_norm for r in alphadecay.analyze(model)] == pytest.approx(
        [p.numel() ** 0.5 for p in list(model.parameters())[::2]]
    )


@pytest.mark.parametrize("kind", [alphadecay.AWD, alphadecay.AdaDecayPerEntry])
def test_weights_of_several_precisions_go_together(kind):
    model = net()
    model[2].double()
    optimizer = adamw(model)
    kind(model, optimizer)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_log_whose_last_line_was_cut_by_a_kill_goes_on(tmp_path):
    path = tmp_path / "decay.jsonl"
    model = net()
    optimizer = adamw(model)
    decay = alphadecay.AlphaDecay(model, optimizer, 2)
    decay.log_to(path)
    take_steps(model, optimizer, 0, 3)
    whole = path.read_text()
    path.write_text(whole[:-10])
    model = net()
    optimizer = adamw(model)
    alphadecay.AlphaDecay(model, optimizer, 2).log_to(path, append=True)
    take_steps(model, optimizer, 0, 3)
    assert path.read_text() == whole


OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10)
NO_META = pytest.mark.skipif(OLD, reason="this torch's AdamW takes no step on the meta device")


@pytest.mark.parametrize("device", [None, pytest.param("meta", marks=NO_META)])
def test_whether_decay_is_decoupled_is_tried_on_the_weights_own_device(device):
    model = net()
    optimizer = adamw(model)
    if device and torch.__version__ < "2.7":
        pytest.skip("before 2.7 torch's own AdamW takes no step under another default device")
    with torch.device(device or "cpu"):
        alphadecay.UniformDecay(model, optimizer, cautious=True)
        take = [torch.ones_like(p) for p in model.parameters()]
        for p, gradient in zip(model.parameters(), take, strict=True):
            p.grad = gradient
        optimizer.step()


def test_a_step_that_takes_a_module_is_no_step_with_a_closure():
    class WithModel(torch.optim.AdamW):
        def step(self, model=None):
            assert isinstance(model, nn.Module)
            return super().step()

    model = net()
    optimizer = WithModel(model.parameters(), lr=1e-2, weight_decay=0.1)
    decay = alphadecay.AlphaDecay(model, optimizer)
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step(model)
    assert decay.step == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, o: alphadecay.AlphaDecay(m, None), "NoneType is not a torch optimizer"),
        (lambda m, o: alphadecay.AlphaDecay(None, o), "model must be a torch.nn.Module, got NoneType"),
        (lambda m, o: alphadecay.AlphaDecay(m, o, low="1"), "low must be a number, got '1'"),
        (lambda m, o: alphadecay.AlphaDecay(m, o, exclude=None), "exclude=None: give a list of names"),
        (lambda m, o: alphadecay.AlphaDecay(m, o, exclude=[5]), r"exclude=\[5\]: give a list of names"),
        (lambda m, o: alphadecay.AlphaDecay(m, o, xmin_pos="2"), "xmin_pos must be above 1, got '2'"),
        (lambda m, o: alphadecay.AlphaDecay(m, o, on_refresh=5), "on_refresh must be callable, got 5"),
        (lambda m, o: alphadecay.AlphaDecay(m, o, lag=True), "lag must be a whole number"),
        (lambda m, o: alphadecay.AWD(m, o, "50"), "scale must be a number above 0, got '50'"),
        (lambda m, o: alphadecay.param_groups(m, "0.1"), "weight_decay must be a number of at least 0, got '0.1'"),
        (lambda m, o: alphadecay.DecayAudit(None), "decay must be a decay schedule, such as AlphaDecay, got NoneType"),
        (lambda m, o: alphadecay.assign({"a": 1, "b": 2}, budget="matched", sizes={"a": 0, "b": 0}), "size of a is 0"),
    ],
)  # fmt: skip
def test_arguments_of_a_wrong_kind_are_named(call, sentence):
    model = net()
    with pytest.raises((TypeError, ValueError), match=sentence) as raised:
        call(model, adamw(model))
    assert "\n" not in str(raised.value)


def test_a_far_score_among_many_does_not_overflow_the_sigmoid():
    names = [str(i) for i in range(40000)]
    scores = dict.fromkeys(names, 1.0) | {"0": -1e6}
    found = alphadecay.assign(scores, "sigmoid", blocks=dict.fromkeys(names, ""))
    assert found["0"] == pytest.approx(0, abs=1e-12) and found["1"] > 1


def test_weights_that_are_untied_or_no_longer_pruned_are_taken_in():
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(4)])
    model[1].weight = model[0].weight
    torch.nn.utils.prune.identity(model[2], "weight")
    optimizer = adamw(model)
    decay = alphadecay.AlphaDecay(model, optimizer, exclude=[])
    take_steps(model, optimizer, 0, 1)
    assert set(decay.multipliers) == {"3"}
    torch.nn.utils.prune.remove(model[2], "weight")
    model[1].weight = nn.Parameter(model[0].weight.detach().clone())
    optimizer.add_param_group({"params": [model[1].weight]})
    take_steps(model, optimizer, 1, 2)
    assert set(decay.multipliers) == set("0123") and all(not record.note for record in decay.records)


def test_modules_without_a_gradient_say_why_they_keep_their_base_decay():
    model = net()
    optimizer = adamw(model)
    decay = alphadecay.AlphaDecay(model, optimizer, metric="grad_norm")
    for p in model[:3].parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert [record.note for record in decay.records] == ["", "", "", "no grad_norm: no gradient"]


def test_attention_heads_are_no_head_of_a_model():
    attention = nn.Module()
    attention.heads = nn.ModuleList([nn.Linear(64, 64) for _ in range(2)])
    model = nn.Sequential(attention)
    assert [record.note for record in alphadecay.analyze(model)] == ["", ""]
    top = nn.Module()
    top.heads = nn.Sequential(nn.Linear(64, 64))
    assert [record.note for record in alphadecay.analyze(top)] == ["head"]


def test_a_state_of_cautious_decay_holds_the_decays_that_act():
    model = net()
    optimizer = adamw(model)
    decay = alphadecay.AlphaDecay(model, optimizer, cautious=True)
    take_steps(model, optimizer, 0, 1)
    saved = [group["weight_decay"] for group in optimizer.state_dict()["param_groups"]]
    assert saved[:4] == pytest.approx([0.1 * multiplier for multiplier in decay.multipliers.values()])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_a_refresh_that_fails_is_due_again():
    model = net()
    model[3].requires_grad_(False)
    optimizer = adamw(model)
    decay = alphadecay.AlphaDecay(model, optimizer, 100)
    take_steps(model, optimizer, 0, 1)
    model[3].requires_grad_(True)
    with torch.no_grad():
        model[0].weight[0, 0], kept = float("nan"), float(model[0].weight[0, 0])
    with pytest.raises(ValueError, match="0 .* not finite"):
        optimizer.step()
    with torch.no_grad():
        model[0].weight[0, 0] = kept
    optimizer.step()
    assert decay.multipliers["3"] != 1


@pytest.mark.parametrize("base", [float("nan"), float("inf"), -1.0, None, "0.1"])
def test_a_base_decay_that_a_schedule_wrote_wrongly_is_named_before_the_step(base):
    model = block_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    alphadecay.AlphaDecay(model, optimizer)
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.param_groups[0]["base_weight_decay"] = base
    with pytest.raises(ValueError, match="base_weight_decay of .* must be a finite number of at least 0, got"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("seed", [None, "a", float("nan"), 1.5, True])
def test_a_seed_that_would_deal_anew_each_time_is_refused(seed):
    model = block_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    with pytest.raises(ValueError, match="seed must be a whole number, got"):
        alphadecay.AlphaDecay(model, optimizer, control="shuffle", seed=seed)


def test_numbers_of_numpy_are_numbers():
    model = block_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    decay = alphadecay.AlphaDecay(model, optimizer, low=np.float32(0.5), control="shuffle", seed=np.int64(3))
    decay.refresh()
    assert min(decay.multipliers.values()) == pytest.approx(0.5)


def test_a_metric_of_another_type_is_refused():
    model = block_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"metric=\['alpha'\] is unknown"):
        alphadecay.AlphaDecay(model, optimizer, metric=["alpha"])
