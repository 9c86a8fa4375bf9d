"""Decay by name: globs and parts of names decide static multipliers, which compose with base and strategy."""

import copy
from fnmatch import fnmatchcase

import pytest
import timm
import torch
from recipes import block_model
from torch import nn

import alphadecay
from alphadecay.membership import UNDECAYED
from alphadecay.names import names_of


def decays(model, base=0.1, **by_name):
    """The decay of each trainable parameter, by its first name."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = alphadecay.param_groups(model, base, **by_name)
    assert all(g["weight_decay"] == g["base_weight_decay"] * g["static_multiplier"] for g in groups)
    assert len({g["decay_name"] for g in groups}) == len(groups)
    return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}


def expected(model, base, multipliers, only):
    """The same in plain Python, for a model without tied weights, from the decays of the usual rule."""
    found = decays(model, base)
    for name in found:
        if only:
            found[name] = base * any(part in name for part in only)
        for glob in reversed(list(multipliers)):
            if fnmatchcase(name, glob):
                found[name] = base * multipliers[glob]
    return found


RULES = {
    "multipliers": ({"blocks.0.*": 0.5, "*.bias": 2, "*norm*": 0.25}, ()),
    "only": ({}, ("norm", "fc1")),
    "both": ({"*.fc1.weight": 0, "head.*": 0.5}, ("blocks.1.", "head")),
    "the first glob counts": ({"*.bias": 0.5, "*": 3.0}, ()),
    "and not the last": ({"*": 3.0, "*.bias": 0.5}, ()),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("build", [block_model, lambda: timm.create_model("vit_tiny_patch16_224", depth=2)])
def test_every_parameter_has_the_decay_that_its_name_decides(build, rule):
    model, (multipliers, only) = build(), RULES[rule]
    multipliers = {
        glob: x for glob, x in multipliers.items() if any(fnmatchcase(n, glob) for n, _ in model.named_parameters())
    }
    assert decays(model, 0.1, multipliers=multipliers, only=only) == expected(model, 0.1, multipliers, only)


def test_a_norm_that_is_named_decays_and_a_matrix_that_is_not_named_does_not():
    found = decays(block_model(), only=["norm"])
    assert found["blocks.0.norm.weight"] == 0.1 and found["blocks.0.fc1.weight"] == 0


def test_without_names_the_groups_are_as_ever():
    model = block_model()
    plain, empty = alphadecay.param_groups(model, 0.1), alphadecay.param_groups(model, 0.1, multipliers={}, only=())
    assert [{**g, "params": [*map(id, g["params"])]} for g in plain] == [
        {**g, "params": [*map(id, g["params"])]} for g in empty
    ]
    assert [g["decay_name"] for g in plain][-2:] == ["(other)", "(no decay)"]


def test_groups_are_by_static_multiplier_and_matrices_keep_their_own():
    groups = alphadecay.param_groups(block_model(), 0.1, multipliers={"*.fc1.*": 0.1234567891, "blocks.0.*": 0})
    found = [(g["decay_name"], g["decay_group"], g["static_multiplier"]) for g in groups]
    assert found[1] == ("blocks.0.fc1", "module", 0.1234567891) and found[0] == ("blocks.0.proj", "module", 0.0)
    assert ("(other, x0.1234567891)", "rest", 0.1234567891) in found and found[-1] == ("(no decay)", "no decay", 0.0)


def compiled(model):
    """A wrapper as torch.compile's, without the seconds of its import."""
    wrapper = nn.Module()
    wrapper.add_module("_orig_mod", model)
    return wrapper


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled, lambda model: nn.Sequential(compiled(model))])
def test_names_have_no_parts_of_wrappers(wrap):
    model = block_model()
    first, wrapped = names_of(model), wrap(model)
    prefix = "0." if isinstance(wrapped, nn.Sequential) else ""
    assert names_of(wrapped) == {key: [prefix + name for name in names] for key, names in first.items()}


def test_a_tied_parameter_has_all_its_names():
    model = nn.ModuleDict({"wte": nn.Embedding(60, 60), "lm_head": nn.Linear(60, 60), "fc": nn.Linear(60, 60)})
    model["lm_head"].weight = model["wte"].weight
    assert decays(model, only=["lm_head.weight"])["wte.weight"] == 0.1
    assert decays(model, multipliers={"lm_head.*": 0.5})["wte.weight"] == 0.05


def test_parts_of_a_split_qkv_have_names_of_their_own():
    model = alphadecay.split_qkv(timm.create_model("vit_tiny_patch16_224", depth=1))
    groups = alphadecay.param_groups(model, 0.1, multipliers={"*.attn.q.weight": 0.5}, only=["attn.v.weight"])
    statics = {g["decay_name"]: g["static_multiplier"] for g in groups}
    assert [statics[f"blocks.0.attn.{part}"] for part in "qkv"] == [0.5, 0, 1]


def test_lazy_parameters_are_named():
    model = nn.Sequential(nn.LazyLinear(64), nn.Linear(64, 64))
    assert decays(model, multipliers={"0.weight": 0.5})["0.weight"] == 0.05


BAD = [
    ({"multipliers": {"*.mpl.*": 0.5}}, r"multipliers: '\*\.mpl\.\*' matches no parameter of Sequential"),
    ({"multipliers": {"": 0.5}}, "multipliers: '' matches no parameter"),
    ({"multipliers": {"*": -0.5}}, r"multipliers: '\*' has -0.5"),
    ({"multipliers": {"*": float("nan")}}, "has nan"),
    ({"multipliers": {"*": float("inf")}}, "has inf"),
    ({"multipliers": {"*": "2"}}, "has '2'"),
    ({"multipliers": {"*": True}}, "has True"),
    ({"multipliers": {3: 1.0}}, "multipliers: 3 matches no parameter"),
    ({"multipliers": [("*", 1.0)]}, "give a mapping"),
    ({"only": ["atn"]}, "only: 'atn' occurs in no name of a parameter of Sequential"),
    ({"only": ["fc1", ""]}, "only: '' occurs in no name"),
    ({"only": "fc1"}, "only='fc1': give a list"),
    ({"only": [1]}, "only: 1 occurs in no name"),
    ({"only": 1}, "only=1: give a list"),
]  # fmt: skip


@pytest.mark.parametrize(("by_name", "message"), BAD)
def test_an_impossible_name_or_number_is_named(by_name, message):
    with pytest.raises(ValueError, match=message):
        alphadecay.param_groups(block_model(), 0.1, **by_name)


def stepped(decay, model, steps=1):
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(8, 60)).square().mean().backward()
        decay.optimizer.step()
        decay.optimizer.zero_grad()


def schedule(strategy=alphadecay.AlphaDecay, by_name=None, **options):
    model = block_model()
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1, **(by_name or {})), lr=1e-3)
    return model, strategy(model, optimizer, **options)


STRATEGIES = [alphadecay.UniformDecay, alphadecay.AlphaDecay, alphadecay.AdaDecay, alphadecay.AWD]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_decay_is_base_x_static_x_adaptive_multiplier(strategy):
    by_name = {"multipliers": {"*.fc1.*": 0.5, "blocks.1.proj.*": 0}, "only": ["blocks", "head"]}
    model, decay = schedule(strategy, by_name)
    stepped(decay, model, 2)
    for group in decay.optimizer.param_groups:
        expected = 0.1 * group["static_multiplier"] * group["decay_multiplier"]
        assert group["weight_decay"] == expected, group["decay_name"]
        if strategy is not alphadecay.AWD and group["decay_group"] != "module":
            assert group["decay_multiplier"] == 1
    by_module = {g["decay_name"]: g["weight_decay"] for g in decay.own_groups}
    assert by_module["blocks.1.proj"] == 0 < by_module["blocks.0.fc1"]


@pytest.mark.parametrize("options", [{}, {"cautious": True}], ids=["decoupled", "cautious"])
def test_a_static_multiplier_is_the_same_as_another_base_decay(options):
    model, decay = schedule(by_name={"multipliers": {"*": 0.5}}, **options)
    other = block_model()
    groups = alphadecay.param_groups(other, 0.05, norm_bias=True)
    theirs = alphadecay.AlphaDecay(other, torch.optim.AdamW(groups, lr=1e-3), **options)
    stepped(decay, model, 3)
    stepped(theirs, other, 3)
    assert all(torch.equal(ours, their) for ours, their in zip(model.parameters(), other.parameters(), strict=True))


def test_a_matrix_that_is_not_decayed_is_skipped_and_changes_no_other_multiplier():
    model, decay = schedule(by_name={"multipliers": {"blocks.0.fc1.weight": 0}})
    stepped(decay, model)
    record = next(r for r in decay.records if r.name == "blocks.0.fc1")
    assert record.note == UNDECAYED and record.alpha is None
    _, excluded = schedule(exclude=["blocks.0.fc1"])
    stepped(excluded, excluded.model)
    same = {name: m for name, m in decay.multipliers.items() if name != "blocks.0.fc1"}
    assert same == {name: m for name, m in excluded.multipliers.items() if name != "blocks.0.fc1"}
    assert min(same.values()) == pytest.approx(2 / 3) and max(same.values()) == 3


@pytest.mark.parametrize("control", [None, "shuffle"])
def test_a_matched_budget_has_the_total_decay_of_uniform_decay_with_the_same_static_multipliers(control):
    by_name = {"multipliers": {"*.fc1.weight": 0.3, "blocks.0.proj.*": 0, "blocks.1.*": 2}}

    def total(strategy, **options):
        model, decay = schedule(strategy, by_name, **options)
        stepped(decay, model)
        return sum(g["weight_decay"] * g["params"][0].numel() for g in decay.own_groups), decay

    matched, decay = total(alphadecay.AlphaDecay, budget="matched", control=control)
    assert matched == pytest.approx(total(alphadecay.UniformDecay)[0], rel=1e-12)
    assert len(set(decay.multipliers.values())) > 2 and "mean by parameters 1)" in repr(decay)


def test_a_matched_budget_is_bitwise_as_before_where_all_static_multipliers_are_1():
    model, decay = schedule(budget="matched")
    stepped(decay, model)
    sizes = {r.name: r.parameters for r in decay.records if r.name in decay.scores}
    assert all(isinstance(size, int) for size in sizes.values())
    expected = alphadecay.assign(decay.scores, budget="matched", sizes=sizes)
    assert {name: decay.multipliers[name] for name in expected} == expected


def test_without_any_decayed_matrix_the_strategy_says_that_it_has_no_effect():
    with pytest.warns(UserWarning, match="AlphaDecay has no effect: the static multiplier of every matrix"):
        model, decay = schedule(by_name={"only": ["norm"]})
    stepped(decay, model)
    assert set(decay.multipliers.values()) == {1.0}
    model, decay = schedule(alphadecay.UniformDecay, {"only": ["norm"]})  # says nothing
    stepped(decay, model)


def test_a_state_resumes_with_the_same_static_multipliers():
    by_name = {"multipliers": {"*.fc1.*": 0.5, "blocks.1.proj.*": 0}}
    model, decay = schedule(by_name=by_name, interval=2)
    stepped(decay, model, 3)
    saved, weights = copy.deepcopy(decay.optimizer.state_dict()), copy.deepcopy(model.state_dict())
    stepped(decay, model, 3)
    other, again = schedule(by_name=by_name, interval=2)
    other.load_state_dict(weights)
    again.optimizer.load_state_dict(saved)
    stepped(again, other, 3)
    assert all(torch.equal(ours, their) for ours, their in zip(model.parameters(), other.parameters(), strict=True))
    _, unnamed = schedule(interval=2)
    with pytest.raises(ValueError, match="was saved where"):
        unnamed.optimizer.load_state_dict(saved)


def test_a_state_of_other_parameters_under_the_same_labels_is_refused():
    _, decay = schedule(by_name={"only": ["blocks.0.norm", "proj"]})
    saved = copy.deepcopy(decay.optimizer.state_dict())
    _, other = schedule(by_name={"only": ["blocks.1.norm", "proj"]})
    assert [len(g["params"]) for g in saved["param_groups"]] == [len(g["params"]) for g in other.optimizer.param_groups]
    with pytest.raises(ValueError, match="'\\(other\\)' of this optimizer state holds other parameters"):
        other.optimizer.load_state_dict(saved)


@pytest.mark.parametrize("takes_over", [True, False])
def test_static_multipliers_of_a_loaded_state_count_unless_the_schedule_takes_over(takes_over):
    model, decay = schedule(by_name={"multipliers": {"*.fc1.weight": 0.5, "*.fc2.weight": 0}})
    stepped(decay, model)
    model, other = schedule(by_name={"multipliers": {"*.fc1.weight": 2}})
    other.takes_over = takes_over
    other.optimizer.load_state_dict(copy.deepcopy(decay.optimizer.state_dict()))
    stepped(other, model)
    statics = {g["decay_name"]: g["static_multiplier"] for g in other.own_groups}
    expected = (2, 1) if takes_over else (0.5, 0)
    assert (statics["blocks.0.fc1"], statics["blocks.0.fc2"]) == expected
    assert ("blocks.0.fc2" in other.scores) == takes_over  # refreshed at once: another matrix is adapted


def test_a_replay_takes_static_multipliers_from_its_own_groups(tmp_path):
    by_name = {"multipliers": {"*.fc1.*": 0.5, "blocks.1.proj.*": 0}}
    model, decay = schedule(by_name=by_name, interval=2)
    decay.log_to(tmp_path / "decay.jsonl")
    stepped(decay, model, 5)
    other, again = schedule(alphadecay.Replay, by_name, ledger=tmp_path / "decay.jsonl")
    stepped(again, other, 5)
    assert all(torch.equal(ours, their) for ours, their in zip(model.parameters(), other.parameters(), strict=True))


def test_groups_added_later_keep_the_static_multipliers_of_their_names():
    model, decay = schedule(by_name={"multipliers": {"*.fc1.*": 0.5}})
    stepped(decay, model)
    model.add_module("more", nn.Sequential(nn.Linear(50, 64), nn.Linear(64, 50)))
    for group in alphadecay.param_groups(model.more, 0.1, multipliers={"0.*": 0.25, "1.bias": 3}):
        decay.optimizer.add_param_group(
            group | {"decay_name": f"more.{group['decay_name']}".replace("more.(", "(more, ")}
        )
    stepped(decay, model, 1)
    by_name = {g["decay_name"]: g for g in decay.optimizer.param_groups}
    assert by_name["more.0"]["weight_decay"] == 0.1 * 0.25 * decay.multipliers["more.0"]
    assert by_name["(more, other, x3)"]["weight_decay"] == 0.1 * 3


def test_groups_that_no_names_made_are_not_changed():
    model = block_model()
    decay = alphadecay.AlphaDecay(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))
    stepped(decay, model)
    assert {g["static_multiplier"] for g in decay.optimizer.param_groups} == {1.0}


def test_the_row_for_all_modules_is_that_of_a_static_multiplier_of_1(tmp_path):
    model, decay = schedule(alphadecay.AWD, {"multipliers": {"blocks.0.*": 0.5}})
    decay.log_to(tmp_path / "decay.jsonl")
    stepped(decay, model)
    row = alphadecay.replay.read_decay_log(tmp_path / "decay.jsonl")[0]["(all)"]
    assert row["weight_decay"] == 0.1 * row["multiplier"]
