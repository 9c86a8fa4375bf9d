"""What goes wrong without an error is said once: no decay to multiply, two writers, one score far off the others."""

import copy

import pytest
import torch
from by_hand import BASE, HIGH, LOW, backward, decay_on, take_steps
from recipes import block_model, gaussian, model_of

import alphadecay


def setup(kind=alphadecay.AlphaDecay, weight_decay=BASE, **options):
    model = block_model(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=weight_decay)
    return model, optimizer, kind(model, optimizer, **options)


KINDS = [alphadecay.AlphaDecay, alphadecay.AdaDecay, alphadecay.AWD]


@pytest.mark.parametrize("kind", KINDS)
def test_multiples_of_no_decay_are_warned_of_once(kind):
    model, optimizer, _ = setup(kind, weight_decay=0.0)
    with pytest.warns(UserWarning, match="decay"):
        take_steps(model, optimizer, [0])
    take_steps(model, optimizer, range(1, 4))  # any further warning is an error


def test_a_closure_is_warned_of_too():
    model, optimizer, _ = setup(weight_decay=0.0)
    with pytest.warns(UserWarning, match="decay"):
        optimizer.step(lambda: backward(model, 0))


def test_uniform_decay_may_be_none():
    model, optimizer, _ = setup(alphadecay.UniformDecay, weight_decay=0.0)
    take_steps(model, optimizer, range(3))


def test_one_group_with_decay_is_enough():
    model = block_model(1)
    groups = [{"params": [*model.blocks.parameters()]}, {"params": [*model.head.parameters()], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=BASE)
    alphadecay.AlphaDecay(model, optimizer)
    take_steps(model, optimizer, range(2))


@pytest.mark.parametrize("kind", [*KINDS, alphadecay.UniformDecay])
def test_a_decay_that_someone_else_writes_is_warned_of_once_and_written_over(kind):
    model, optimizer, decay = setup(kind)
    take_steps(model, optimizer, range(2))
    expected = [group["weight_decay"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.5
    with pytest.warns(UserWarning, match="weight_decay"):
        take_steps(model, optimizer, [2])
    if kind is not alphadecay.AWD:  # whose decays change at every step
        assert [group["weight_decay"] for group in optimizer.param_groups] == expected
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.5
    take_steps(model, optimizer, [3])  # once is enough
    assert all(group["weight_decay"] != 0.5 for group in optimizer.param_groups) and decay.step == 4


@pytest.mark.parametrize("options", [{}, {"cautious": True}, {"interval": 3, "lag": 1}])
def test_schedules_of_the_base_loaded_states_and_detaching_are_no_writing_over(options):
    model, optimizer, decay = setup(**options)
    for step in range(5):
        for group in optimizer.param_groups:
            group["base_weight_decay"] *= 0.9
        take_steps(model, optimizer, [step])
    state = copy.deepcopy(optimizer.state_dict())
    again, optimizer, decay = setup(**options)
    again.load_state_dict(model.state_dict())
    take_steps(again, optimizer, [4])
    optimizer.load_state_dict(state)
    take_steps(again, optimizer, [5])
    decay.detach()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.5
    take_steps(again, optimizer, [6])
    assert decay_on(optimizer, again.head.weight) == 0.5


def all_but_orthogonal(side):
    """Singular values within a thousandth of each other: a tail so short that alpha is in the hundreds."""
    left, _ = torch.linalg.qr(gaussian(side, side, seed=98))
    right, _ = torch.linalg.qr(gaussian(side, side, seed=99))
    return left @ torch.diag(torch.linspace(1, 1.001, side)) @ right


def test_one_score_that_leaves_all_others_at_a_bound_is_warned_of_once_by_name():
    weights = {f"m{i}": gaussian(64, 64, seed=i) for i in range(9)} | {"outlier": all_but_orthogonal(64)}
    model = model_of(**weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, weight_decay=BASE)
    decay = alphadecay.AlphaDecay(model, optimizer, 1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.warns(UserWarning, match="outlier"):
        optimizer.step()
    assert decay.multipliers.pop("outlier") == pytest.approx(HIGH)
    assert list(decay.multipliers.values())[:9] == pytest.approx([LOW] * 9, rel=1e-2)
    optimizer.step()  # refreshes again, and says nothing


def test_scores_of_common_spread_are_not_warned_of():
    model = model_of(**{f"m{i}": gaussian(64, 64 * (1 + i % 3), seed=i) for i in range(9)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, weight_decay=BASE)
    alphadecay.AlphaDecay(model, optimizer).refresh()
