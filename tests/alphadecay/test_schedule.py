"""When decays are refreshed, what is written, and what an optimizer's state carries."""

import pytest
import torch
from recipes import block_model, gaussian, model_of
from timm.optim import Lookahead
from torch import nn

import alphadecay
from alphadecay.decay_log import refresh_rows

HIGH = 3.0


def setup(kind=alphadecay.AlphaDecay, optimizer=torch.optim.AdamW, weight_decay=0.1, **options):
    model = block_model()
    optimizer = optimizer(alphadecay.param_groups(model, weight_decay), lr=1e-2)
    return model, optimizer, kind(model, optimizer, **options)


def take_steps(model, optimizer, steps, seed=0, accumulate=1):
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            model(torch.randn(16, 60)).square().mean().backward()
        optimizer.step()


def refreshed_at(**options):
    steps = []
    model, optimizer, decay = setup(on_refresh=lambda schedule: steps.append(schedule.step), **options)
    return model, optimizer, decay, steps


@pytest.mark.parametrize("accumulate", [1, 3])
def test_refreshes_come_before_the_first_step_and_every_interval_of_optimizer_steps(accumulate):
    model, optimizer, _, steps = refreshed_at(interval=4)
    assert steps == []
    take_steps(model, optimizer, 9, accumulate=accumulate)
    assert steps == [0, 4, 8]


def test_only_its_own_group_gets_a_modules_decay():
    model, optimizer, decay = setup()
    take_steps(model, optimizer, 1)
    alphas = {record.name: record.alpha for record in decay.records if not record.note}
    expected = alphadecay.assign(alphas)
    assert decay.multipliers == expected and len(expected) == 6
    for group in optimizer.param_groups:
        others = {"(other)": 0.1, "(no decay)": 0.0}
        name = group["decay_name"]
        assert group["weight_decay"] == (others[name] if name in others else pytest.approx(0.1 * expected[name]))


def test_base_schedule_static_and_adaptive_multipliers_compose():
    model, optimizer, decay = setup(interval=10)
    take_steps(model, optimizer, 1)
    before = {g["decay_name"]: g["weight_decay"] for g in optimizer.param_groups}
    for group in optimizer.param_groups:
        group["base_weight_decay"] = 0.05
    take_steps(model, optimizer, 1)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == pytest.approx(before[group["decay_name"]] / 2)
    assert len({g["weight_decay"] for g in optimizer.param_groups}) > 4  # nobody was flattened


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_the_decay_written_is_the_decay_applied(optimizer):
    model, optimizer, _ = setup(optimizer=optimizer)
    plain = block_model()
    twin = type(optimizer)([{"params": [p], "weight_decay": 0.0} for p in plain.parameters()], lr=1e-2)
    take_steps(model, optimizer, 1)  # writes the decays
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for group, parameter in zip(twin.param_groups, model.parameters(), strict=True):
        group["weight_decay"] = decays[id(parameter)]
    take_steps(plain, twin, 1)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_uniform_decay_is_the_optimizer_left_alone():
    model, optimizer, _ = setup(alphadecay.UniformDecay)
    take_steps(model, optimizer, 3)
    plain = block_model()
    twin = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in plain.parameters()], lr=1e-2
    )
    take_steps(plain, twin, 3)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_frozen_keeps_the_first_assignment():
    model, optimizer, decay = setup(interval=1, frozen=True)
    take_steps(model, optimizer, 1)
    first = decay.multipliers
    take_steps(model, optimizer, 3)
    assert decay.multipliers == first and len(set(first.values())) > 1


def test_the_shuffled_control_deals_by_one_permutation_for_the_whole_run():
    model, optimizer, decay = setup(interval=1, control="shuffle")
    dealt = []
    for step in range(4):
        take_steps(model, optimizer, 1, seed=step)
        plain = alphadecay.assign(decay.scores)
        sources = {multiplier: name for name, multiplier in plain.items()}
        dealt.append([sources[decay.multipliers[name]] for name in plain])
    assert all(each == dealt[0] for each in dealt) and dealt[0] != list(plain)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_the_optimizers_state_alone_resumes_the_decay(stop):
    model, optimizer, decay = setup(interval=4)
    for step in range(9):
        take_steps(model, optimizer, 1, seed=step)
    other, other_optimizer, _ = setup(interval=4)
    for step in range(stop):
        take_steps(other, other_optimizer, 1, seed=step)
    weights, state = other.state_dict(), other_optimizer.state_dict()
    last, last_optimizer, last_decay = setup(interval=4)
    last.load_state_dict(weights)
    last_optimizer.load_state_dict(state)
    for step in range(stop, 9):
        take_steps(last, last_optimizer, 1, seed=step)
    assert last_decay.multipliers == decay.multipliers and last_decay.step == 9
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), last.parameters(), strict=True))


def test_a_state_saved_without_alphadecay_is_refused_in_words():
    model = block_model()
    state = torch.optim.AdamW(model.parameters()).state_dict()
    _, optimizer, _ = setup()
    with pytest.raises(ValueError, match="saved without alphadecay. Load it into the optimizer before"):
        optimizer.load_state_dict(state)


def test_a_state_of_another_model_is_refused_with_the_group_named():
    _, small, _ = setup()
    model = block_model(depth=3)
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1))
    alphadecay.AlphaDecay(model, optimizer)
    with pytest.raises(ValueError, match=r"has 8 groups, the optimizer 11; group '\(other\)' was saved"):
        optimizer.load_state_dict(small.state_dict())


def test_lookahead_steps_are_seen():
    model = block_model()
    optimizer = Lookahead(torch.optim.AdamW(model.parameters(), lr=1e-2))
    decay = alphadecay.AlphaDecay(model, optimizer, interval=2)
    take_steps(model, optimizer, 3)
    assert decay.step == 3 and len(set(decay.multipliers.values())) > 1
    assert optimizer.param_groups is decay.optimizer.param_groups


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_gradscaler_skips_do_not_count(fused):
    model = block_model()
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1), lr=1e-2, fused=fused)
    decay = alphadecay.AlphaDecay(model, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    for overflow in (True, False, True, False):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 60)).square().mean()
        scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert decay.step == 2


def test_detach_leaves_the_optimizer_with_its_last_decays():
    model, optimizer, decay = setup(interval=1)
    take_steps(model, optimizer, 1)
    before = [g["weight_decay"] for g in optimizer.param_groups]
    decay.detach()
    take_steps(model, optimizer, 2)
    assert [g["weight_decay"] for g in optimizer.param_groups] == before and decay.step == 1


def one_step(**weights):
    model = model_of(**weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    decay = alphadecay.AlphaDecay(model, optimizer)
    decay.refresh()
    return decay


def test_the_only_matrix_keeps_its_base_decay_and_says_why():
    decay = one_step(m=gaussian(64, 64))
    assert decay.multipliers == {"m": 1.0} and decay.records[0].note == "the only matrix with a score"


def test_equal_scores_keep_their_base_decay_and_say_why():
    decay = one_step(a=gaussian(64, 64), b=gaussian(64, 64))
    assert decay.multipliers == {"a": 1.0, "b": 1.0} and decay.records[1].note == "all scores are equal"


@pytest.mark.parametrize("rows", [0, 32, 20], ids=["all zero", "half zero", "more than half zero"])
def test_degenerate_matrices_stay_out_of_the_others_minimum_and_maximum(rows):
    degenerate = gaussian(64, 64)
    degenerate[rows:] = 0
    decay = one_step(a=gaussian(64, 64), b=gaussian(64, 256), z=degenerate)
    assert decay.multipliers == {"a": pytest.approx(2 / 3), "b": pytest.approx(3.0), "z": 1.0}
    assert "zero" in decay.records[2].note


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"interval": 0}, "got 0"),
        ({"low": 3, "high": 1}, "low=3"),
        ({"rule": "x"}, "'x'"),
        ({"exclude": ["q"]}, "q"),
    ],
)
def test_impossible_settings_are_refused_at_once(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        setup(**options)


def test_a_model_in_which_nothing_takes_part_is_refused_with_reasons():
    model = nn.Sequential(nn.Linear(10, 10))
    with pytest.raises(ValueError, match=r"no weight matrix of Sequential can be adapted \(0: 10 eigenvalues"):
        alphadecay.AlphaDecay(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_ledger_rows_say_what_each_module_got():
    model, optimizer, decay = setup()
    decay.refresh()
    rows = refresh_rows(decay)
    assert [row["module"] for row in rows] == list(decay.multipliers)
    record = next(r for r in decay.records if r.name == "blocks.0.fc1")
    row = rows[1]
    assert (row["module"], row["role"], row["step"], row["score"]) == ("blocks.0.fc1", "fc1", 0, record.alpha)
    assert row["weight_decay"] == pytest.approx(0.1 * row["multiplier"])
    assert row["weight_norm"] == pytest.approx(model.blocks[0].fc1.weight.norm().item())


@pytest.mark.parametrize("metric", ["grad_norm", "grad_to_weight"])
def test_modules_are_scored_by_the_gradient_of_the_step(metric):
    model, optimizer, decay = setup(metric=metric)
    decay.refresh()
    assert set(decay.multipliers.values()) == {1.0}  # there is no gradient yet
    assert all("needs a gradient" in record.note for record in decay.records if "blocks" in record.name)
    take_steps(model, optimizer, 1)
    expected = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    for record in decay.records:
        if record.name in decay.scores:
            assert record.grad_norm == pytest.approx(expected[f"{record.name}.weight"], rel=1e-6)
            largest = record.spectral_norm**2 + 1e-8
            score = record.grad_norm / (largest if metric == "grad_to_weight" else 1)
            assert decay.scores[record.name] == pytest.approx(score)
    in_order = sorted(decay.scores, key=decay.scores.__getitem__)
    assert decay.multipliers[in_order[0]] == pytest.approx(2 / 3) and decay.multipliers[in_order[-1]] == HIGH


@pytest.mark.parametrize(
    "options", [{"fit": "goodness-of-fit"}, {"window": "farms"}, {"window": (32, 48)}, {"filter_zeros": True}], ids=str
)
def test_how_spectra_are_measured_is_what_analyze_would_do(options):
    model, optimizer, decay = setup(**options)
    decay.refresh()
    assert decay.records == alphadecay.analyze(model, **options)


def test_a_half_zero_matrix_is_left_out_where_the_published_alpha_spreads_nan():
    model, optimizer, decay = setup()
    with torch.no_grad():
        model.blocks[0].proj.weight[:40] = 0
    decay.refresh()
    assert decay.multipliers["blocks.0.proj"] == 1.0 and "blocks.0.proj" not in decay.scores
    assert all(2 / 3 <= multiplier <= HIGH for multiplier in decay.multipliers.values())
    assert HIGH in decay.multipliers.values()


@pytest.mark.parametrize("word", ["kind", "strategy"])
def test_a_subclass_may_call_its_strategy_kind_as_before(word):
    own = type("Own", (alphadecay.UniformDecay,), {word: "own"})
    _, optimizer, decay = setup(own)
    decay.refresh()
    assert own.kind == own.strategy == decay.kind == "own" and alphadecay.UniformDecay.kind == "uniform"
    assert {group["decay_kind"] for group in optimizer.param_groups} == {"own"}
