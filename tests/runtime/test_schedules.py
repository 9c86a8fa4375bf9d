"""The schedules of learning rate and base decay, the timescale of decay, and the explicit L2 term."""

import math

import pytest
import torch
from torch import nn

import alphadecay
from llama.options import LanguageDecayOptions, LanguageOptimizerOptions
from llama.options import read_options as read_text
from runtime.decay_options import DecayOptions
from runtime.errors import UserError
from runtime.run_options import OptimizerOptions
from runtime.schedules import Schedules, schedules_of
from runtime.steps import add_l2
from runtime.timescale import readable, timescale_line, timescale_of, with_timescale
from vision.options import read_options

STEPS, WARMUP, PEAK, LOWEST = 40, 10, 0.3, 0.03


def made(**values):
    """Schedules of 40 steps, 10 of them warm-up, from 0.3 to 0.03, with base decay from 0.2 to 0.05."""
    return Schedules(STEPS, WARMUP, PEAK, LOWEST, 0.2, 0.05, **values)


def rates(schedules):
    return [schedules.lr_at(step) for step in range(STEPS)]


def decays(schedules):
    return [schedules.weight_decay_at(step) for step in range(STEPS)]


def test_the_learning_rate_warms_up_from_a_share_of_the_peak_or_from_the_rate_that_is_given():
    assert rates(made())[:WARMUP] == [PEAK * (step + 1) / WARMUP for step in range(WARMUP)]
    assert rates(made(warmup_lr=0.0))[:WARMUP] == [PEAK * step / WARMUP for step in range(WARMUP)]
    assert rates(made(warmup_lr=0.1))[:3] == pytest.approx([0.1, 0.12, 0.14])
    assert made(warmup_lr=0.1).lr_at(WARMUP) == pytest.approx(PEAK)


def test_a_longer_cosine_is_the_same_cosine_cut_off():
    longer = Schedules(100, WARMUP, PEAK, LOWEST, 0.2, 0.05)
    assert rates(made(cosine_steps=100)) == rates(longer)
    shorter = rates(made(cosine_steps=20))
    assert shorter[19:] == [LOWEST] * 21 and shorter[18] > LOWEST


def test_linear_falls_by_equal_amounts_to_the_lowest_rate_at_the_last_step():
    values = rates(made(shape="linear"))[WARMUP:]
    falls = [first - second for first, second in zip(values, values[1:], strict=False)]
    assert (values[0], values[-1]) == (PEAK, pytest.approx(LOWEST)) and falls == pytest.approx([falls[0]] * len(falls))


def test_constant_keeps_the_peak():
    assert rates(made(shape="constant"))[WARMUP:] == [PEAK] * (STEPS - WARMUP)


def test_wsd_is_constant_and_then_falls_by_equal_amounts_over_its_share_of_all_steps():
    values = rates(made(shape="wsd", cooldown=0.25))
    assert values[WARMUP:30] == [PEAK] * 20
    fall = (PEAK - LOWEST) / 10
    assert values[30:] == pytest.approx([PEAK - fall * (step + 1) for step in range(10)])


def test_wsd_with_a_cooldown_of_everything_falls_from_the_end_of_warm_up():
    values = rates(made(shape="wsd", cooldown=1.0))
    assert values[WARMUP] < PEAK and values[-1] == pytest.approx(LOWEST) and values[:WARMUP] == rates(made())[:WARMUP]


def test_a_cosine_that_ends_right_after_warm_up_stays_at_the_lowest_rate():
    assert [Schedules(5, 2, 1.0, 0.1, 0.0, 0.0, cosine_steps=3).lr_at(step) for step in range(2, 5)] == [1.0, 0.1, 0.1]
    assert [Schedules(3, 0, 1.0, 0.1, 0.0, 0.0, cosine_steps=1).lr_at(step) for step in range(3)] == [1.0, 0.1, 0.1]


def test_a_share_of_the_steps_is_not_one_short_by_rounding():
    assert [Schedules(100, 0, 1.0, 0.1, 0.0, 0.0, "drop", drop_at=0.29).lr_at(step) for step in (28, 29)] == [1.0, 0.1]


@pytest.mark.parametrize(("share", "step"), [(0.5, 20), (0.51, 20), (0.999, 39)])
def test_drop_has_exactly_the_peak_before_the_drop_and_exactly_the_lowest_rate_from_it_on(share, step):
    schedules = made(shape="drop", decay_shape="drop", drop_at=share)
    assert rates(schedules)[WARMUP:] == [PEAK] * (step - WARMUP) + [LOWEST] * (STEPS - step)
    assert decays(schedules) == [0.2] * step + [0.05] * (STEPS - step)


def test_the_base_decay_has_one_formula_per_schedule():
    linear = [0.2 + (0.05 - 0.2) * step / (STEPS - 1) for step in range(STEPS)]
    cosine = [0.05 + 0.15 * (1 + math.cos(math.pi * step / (STEPS - 1))) / 2 for step in range(STEPS)]
    assert decays(made(decay_shape="linear")) == pytest.approx(linear)
    assert decays(made()) == pytest.approx(cosine)
    assert decays(made(decay_shape="constant")) == [0.2] * STEPS
    assert decays(made(decay_shape="corrected")) == pytest.approx([0.2 * lr / PEAK for lr in rates(made())])
    assert decays(made(decay_shape="independent")) == [0.2 / PEAK] * STEPS


def test_independent_decay_shrinks_weights_by_the_same_share_at_every_peak():
    """Per step, learning rate x decay is base x rate / peak, whatever the peak."""
    for peak in (1e-4, 1.0):
        schedules = Schedules(STEPS, WARMUP, peak, 0.0, 0.2, 0.2, decay_shape="independent")
        assert schedules.lr_at(WARMUP) * schedules.weight_decay_at(WARMUP) == pytest.approx(0.2)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "wsd", "drop"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 5), (5, 0)])
def test_every_shape_stays_between_its_ends_however_short_the_run(shape, steps, warmup):
    schedules = Schedules(steps, warmup, PEAK, LOWEST, 0.2, 0.05, shape=shape, decay_shape="linear")
    for step in range(steps):
        assert 0 < schedules.lr_at(step) <= PEAK + 1e-15 and 0.05 <= schedules.weight_decay_at(step) <= 0.2 + 1e-15


def test_options_reach_the_schedules():
    options = LanguageOptimizerOptions(lr=0.3, sched="wsd", cooldown=0.5, warmup_lr=0.0)
    schedules = schedules_of(options, LanguageDecayOptions(weight_decay_sched="independent"), 40, 10)
    assert (schedules.shape, schedules.cooldown, schedules.min_lr) == ("wsd", 0.5, pytest.approx(0.03))
    assert (schedules.warmup_lr, schedules.decay_shape, schedules.drop_at) == (0.0, "independent", 0.5)


def test_a_cosine_that_would_end_in_warm_up_is_refused():
    with pytest.raises(UserError, match="--cosine_steps 10: ends within the 10 steps of warm-up"):
        schedules_of(LanguageOptimizerOptions(cosine_steps=10), LanguageDecayOptions(), 40, 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--drop_at", "0.5"], "--drop_at 0.5: needs --sched drop or --weight_decay_sched drop"),
        (["--sched", "drop", "--drop_at", "1"], "--drop_at 1: must be below 1"),
        (["--sched", "drop", "--drop_at", "0"], "--drop_at 0.0: must be above 0"),
        (["--sched", "linear", "--cosine_steps", "9"], "--cosine_steps 9: goes with --sched cosine, not linear"),
        (["--cooldown", "0.1"], "--cooldown 0.1: goes with --sched wsd, not cosine"),
        (["--sched", "constant", "--min_lr", "1e-5"], "--min_lr 1e-05: --sched constant does not read it"),
        (["--warmup_lr", "1"], "--warmup_lr 1: above --lr"),
        (
            ["--weight_decay_sched", "constant", "--weight_decay_end", "0.1"],
            "--weight_decay_end 0.1: --weight_decay_sched constant does not read it",
        ),
        (["--weight_decay_sched", "linear"], "--weight_decay_sched linear: needs --weight_decay_end"),
        (["--l2", "1e-3", "--weight_decay", "0.1"], "--weight_decay 0.1: not together with --l2 0.001"),
        (["--l2", "1e-3", "--decay", "alphadecay"], "--l2 0.001: adds the same term for all weights"),
        (["--l2", "1e-3", "--decay_timescale", "3"], "--l2 0.001: replaces decay; leave --decay_timescale out"),
        (["--decay_timescale", "3", "--weight_decay", "0.1"], "--weight_decay 0.1: not together with --decay_timesc"),
        (["--decay_timescale", "3", "--weight_decay_end", "1"], "--weight_decay_end 1: not together with --decay_tim"),
        (["--adamw_lr", "0.1"], "--adamw_lr 0.1: goes with --optimizer torch:Muon, not"),
        (["--optimizer", "torch:SGD", "--momentum", "0.8"], "--momentum 0.8: torch's own optimizers get it from"),
    ],
)
def test_options_that_nothing_would_read_are_refused_in_both_programs(words, message):
    for read, data in ((read_options, ["--data_set", "digits"]), (read_text, ["--dataset", "stdlib"])):
        with pytest.raises(UserError) as error:
            read([*data, *words])
        assert str(error.value).startswith(message)


def test_l2_replaces_the_base_decay():
    assert read_text(["--dataset", "stdlib", "--l2", "1e-3"]).decay.weight_decay == 0  # whose preset has 0.1


def built(optimizer="adamw", **values):
    weight = nn.Linear(4, 4)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kinds[optimizer](weight.parameters(), lr=0.1, weight_decay=0.2, **values)


def test_the_timescale_is_one_over_rate_times_decay_and_for_sgd_less_by_its_momentum():
    schedules = made()
    peak = schedules.lr * schedules.weight_decay_at(WARMUP)
    assert timescale_of(built(), schedules) == pytest.approx(1 / peak)
    assert timescale_of(built("sgd", momentum=0.9), schedules) == pytest.approx(0.1 / peak)
    assert timescale_of(built("sgd", momentum=0.9, dampening=0.9), schedules) == pytest.approx(1 / peak)
    assert timescale_of(built("sgd", dampening=0.5), schedules) == pytest.approx(1 / peak)  # torch ignores it
    assert timescale_of(built("sgd", momentum=0.9, dampening=1.0), schedules) == math.inf
    assert timescale_of(built("adam"), schedules) is None
    assert timescale_of(built("adam"), Schedules(40, 10, 0.3, 0.03, 0.0, 0.0)) == math.inf


def test_a_constant_weight_decays_to_its_share_after_one_timescale():
    """The law that names it: with no gradient, AdamW leaves 1 / e of a weight after 1 / (lr x decay) steps."""
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.1)
    for _ in range(1000):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert weight.mean().item() == pytest.approx(math.exp(-1), rel=1e-3)


@pytest.mark.parametrize("shape", ["cosine", "corrected", "independent"])
def test_a_timescale_sets_the_base_decay_that_has_it(shape):
    options = DecayOptions(decay_timescale=8.0, weight_decay_sched=shape)
    optimizer_options = OptimizerOptions(optimizer="adamw", lr=0.05)
    decay = with_timescale(options, optimizer_options, steps_per_unit=10)
    schedules = schedules_of(optimizer_options, decay, 400, 0)
    assert timescale_of(built(), schedules) == pytest.approx(80)
    assert timescale_line(built(), schedules, "adamw", "epochs", 10).endswith("80 steps = 8 epochs")
    assert with_timescale(DecayOptions(), optimizer_options, 10) == DecayOptions()


def test_the_line_of_the_timescale_says_why_there_is_none():
    assert "adam divides decay by the size" in timescale_line(built("adam"), made(), "adam", "epochs", 10)
    assert "its base is 0" in timescale_line(built(), Schedules(9, 0, 0.3, 0.03, 0.0, 0.0), "adamw", "epochs", 10)
    assert [readable(amount) for amount in (0.012345, 12.3456, 1234567.8)] == ["0.0123", "12.3", "1,234,568"]


def model_with_gradients(norm_bias=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 8)).double()
    groups = alphadecay.param_groups(model, 0.0, norm_bias=norm_bias)
    model(torch.randn(5, 64, dtype=torch.float64)).square().mean().backward()
    return model, groups


@pytest.mark.parametrize("norm_bias", [False, True])
def test_l2_is_the_gradient_of_the_sum_of_squared_decayed_weights(norm_bias):
    model, groups = model_with_gradients(norm_bias)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    add_l2(torch.optim.SGD(groups, lr=0.1), 1e-2)
    decayed = [name for name, p in model.named_parameters() if norm_bias or p.ndim > 1]
    penalty = 1e-2 * sum(p.square().sum() for name, p in model.named_parameters() if name in decayed)
    expected = dict(zip(decayed, torch.autograd.grad(penalty, [model.get_parameter(n) for n in decayed]), strict=True))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, before[name] + expected.get(name, 0), rtol=1e-13, atol=0)


@pytest.mark.parametrize("largest", [None, 1e-2])
def test_l2_equals_coupled_decay_of_twice_its_size_unless_the_gradient_is_clipped(largest):
    after = []
    for l2, decay in ((1e-2, 0.0), (0.0, 2e-2)):
        model, groups = model_with_gradients(norm_bias=True)
        optimizer = torch.optim.Adam([{**group, "weight_decay": decay} for group in groups], lr=1e-2)
        if l2:
            add_l2(optimizer, l2)
        if largest:
            nn.utils.clip_grad_norm_(model.parameters(), largest)
        optimizer.step()
        after.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    difference = (after[0] - after[1]).abs().max().item()
    assert difference > 1e-6 if largest else difference < 1e-15
