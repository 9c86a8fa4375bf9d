"""AlphaDecay attaches to every optimizer of torch and timm that takes weight decay, and changes nothing but that."""

import inspect
import warnings

import pytest
import timm.optim.kron
import torch
from recipes import block_model
from timm.optim import create_optimizer_v2, list_optimizers
from torch.optim import Optimizer

import alphadecay
from alphadecay.optimizer_copies import steps_one_by_one, weights_without_decay

TORCH = {
    name: value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
}
TAKES_DECAY = {name: cls for name, cls in TORCH.items() if "weight_decay" in inspect.signature(cls).parameters}
LEFT_OUT = {"bnb": "CUDA and the package bitsandbytes", "fused": "CUDA and the package apex"}  # prefix: what it needs
TIMM = [name for name in list_optimizers() if not name.startswith(tuple(LEFT_OUT))]
LOOKAHEAD = [f"lookahead_{name}" for name in ("adamw", "sgd", "lamb", "muon", "adahessian")]
# The norm of all gradients is a sum over parameters, in the order of the groups.
COUPLED = ("lamb", "clamb", "lookahead_lamb")
NAMES = [*TAKES_DECAY, *TIMM, *LOOKAHEAD]


@pytest.fixture(autouse=True)
def kron_is_not_compiled(monkeypatch):
    """Compiling takes minutes and changes no result."""
    monkeypatch.setattr(timm.optim.kron, "has_dynamo", False)


def built(name, source):
    """A model and an optimizer, from bare parameters or from groups that carry their decay."""
    model = block_model(depth=1)
    if name == "Muon":  # torch's takes matrices only
        for p in model.parameters():
            p.requires_grad_(p.ndim == 2)
    bare = [p for p in model.parameters() if p.requires_grad]
    parameters = bare if source == "bare parameters" else alphadecay.param_groups(model, 0.1)
    if name in TORCH:
        return model, TORCH[name](parameters, lr=1e-3, weight_decay=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "It is highly recommended to have 'opt_einsum'")  # kron, for speed
        # Full preconditioners take seconds a step where opt_einsum is missing.
        options = {"memory_save_mode": "all_diag"} if name.startswith("kron") else {}
        return model, create_optimizer_v2(parameters, opt=name, lr=1e-3, weight_decay=0.1, **options)


def train(model, optimizer, steps, closure=False):
    torch.manual_seed(0)
    for _ in range(steps):
        batch = torch.randn(8, 60)

        @torch.enable_grad()  # some step() calls it without
        def evaluate(batch=batch):
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            inner = getattr(optimizer, "_base_optimizer", optimizer)  # Lookahead's
            loss.backward(create_graph=getattr(inner, "is_second_order", False))
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
    for p in model.parameters():
        p.grad = None  # with create_graph, parameters and gradients hold each other
    return [p.detach().clone() for p in model.parameters()]


# Their steps depend on other groups, or they draw random numbers, or are wrapped, or need gradients of gradients.
WHOLE = ("lamb", "clamb", "kron", "lookahead", "adahessian")


@pytest.mark.parametrize("name", NAMES)
def test_a_step_on_a_copy_of_one_group_is_that_of_the_whole(name):
    model, optimizer = built(name, "groups")
    alphadecay.UniformDecay(model, optimizer)
    one_by_one = steps_one_by_one(optimizer)
    assert one_by_one == (not name.startswith(WHOLE))
    for step in range(3 * one_by_one):
        torch.manual_seed(step)
        for p in model.parameters():
            p.grad = 3 * torch.randn_like(p) if p.requires_grad else None
        if step < 2:
            optimizer.step()
    if one_by_one:
        groups = [group for group in optimizer.param_groups if len(group["params"]) == 1]
        alone, whole = (weights_without_decay(optimizer, groups, each) for each in (True, False))
        assert len(groups) >= 3 and all(map(torch.equal, alone, whole))


# Gradients of gradients are what Adahessian is made of; torch warns of every loop that asks for them.
@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True:UserWarning")
@pytest.mark.parametrize("source", ["bare parameters", "groups"])
@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_computes_what_it_did_and_its_decay_is_what_was_assigned(name, source):
    steps = 7 if name in LOOKAHEAD else 2  # Lookahead looks back every 6 steps
    alone = train(*built(name, source), steps)
    model, optimizer = built(name, source)
    uniform = alphadecay.UniformDecay(model, optimizer)
    tolerance = 1e-5 if name.startswith(COUPLED) else 0.0
    for ours, theirs in zip(train(model, optimizer, steps), alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert uniform.step == steps

    model, optimizer = built(name, source)
    decay = alphadecay.AlphaDecay(model, optimizer)
    adapted = train(model, optimizer, steps)
    for group in optimizer.param_groups:
        expected = 0.1 * group["static_multiplier"] * decay.multipliers.get(group["decay_name"], 1.0)
        assert group["weight_decay"] == pytest.approx(expected)
    changed = {
        n for (n, _), a, b in zip(model.named_parameters(), adapted, alone, strict=True) if not torch.equal(a, b)
    }
    assert {f"{n}.weight" for n, multiplier in decay.multipliers.items() if abs(multiplier - 1) > 0.1} <= changed

    model, optimizer = built(name, source)
    alphadecay.AlphaDecay(model, optimizer)
    for ours, theirs in zip(train(model, optimizer, steps, closure=True), adapted, strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_left_out_cannot_work_here():
    for name in set(list_optimizers()) - set(TIMM):
        with pytest.raises((AssertionError, ImportError)):  # else add it to the test above
            built(name, "bare parameters")


@pytest.mark.parametrize("name", sorted(set(TORCH) - set(TAKES_DECAY)))
def test_an_optimizer_that_takes_no_decay_is_named(name):
    model = block_model()
    with pytest.raises(ValueError, match=f"{name} has no weight_decay in its groups: it does not support it"):
        alphadecay.AlphaDecay(model, TORCH[name](list(model.parameters()), lr=0.1))


def test_what_is_no_optimizer_is_named():
    with pytest.raises(ValueError, match="object is not a torch optimizer"):
        alphadecay.AlphaDecay(block_model(), object())


@pytest.mark.parametrize("name", ["AdamW", "SGD", "lion", "kron", "adahessian"])
@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True:UserWarning")
def test_attaching_in_the_middle_of_training_keeps_the_optimizers_state(name):
    model, optimizer = built(name, "bare parameters")
    train(model, optimizer, 2)
    without = train(model, optimizer, 2)
    model, optimizer = built(name, "bare parameters")
    train(model, optimizer, 2)
    alphadecay.UniformDecay(model, optimizer)
    for ours, theirs in zip(train(model, optimizer, 2), without, strict=True):
        assert torch.equal(ours, theirs)


def test_timms_groups_keep_their_other_keys():
    model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=96, num_heads=2)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5)
    before = {id(p): (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    alphadecay.AlphaDecay(model, optimizer).refresh()
    after = {id(p): (g["lr_scale"], g["base_weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert after == before and len({scale for scale, _ in after.values()}) > 2


def test_timms_fallback_of_muon_is_kept():
    model = block_model()
    optimizer = create_optimizer_v2(model, opt="muon", lr=1e-3, weight_decay=0.1, fallback_list=["*fc1*"])
    alphadecay.AlphaDecay(model, optimizer)
    fallback = {g["decay_name"] for g in optimizer.param_groups if g.get("use_fallback")}
    assert {"blocks.0.fc1", "blocks.1.fc1"} <= fallback and "blocks.0.fc2" not in fallback
    train(model, optimizer, 1)


def test_names_of_parameters_are_split_with_them():
    model = block_model()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3, weight_decay=0.1)
    alphadecay.AlphaDecay(model, optimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        assert group["param_names"] == [names[id(p)] for p in group["params"]]
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_learning_rate_that_is_a_tensor_is_not_shared():
    model = block_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3), weight_decay=0.1)
    alphadecay.AlphaDecay(model, optimizer)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    assert all(float(group["lr"]) == pytest.approx(5e-4) for group in optimizer.param_groups)


def test_random_draws_keep_the_order_of_parameters():
    model, optimizer = built("adahessian", "bare parameters")
    before = [id(p) for p in model.parameters()]
    alphadecay.AlphaDecay(model, optimizer)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == before
    names = [group["decay_name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names) and "(rest of group 0, part 2)" in names


def test_an_optimizer_that_regroups_parameters_over_ranks_is_refused():
    class ZeroRedundancyOptimizer(torch.optim.AdamW):
        pass

    model = block_model()
    with pytest.raises(ValueError, match="ZeroRedundancyOptimizer keeps groups of its own"):
        alphadecay.AlphaDecay(model, ZeroRedundancyOptimizer(model.parameters()))
