"""Laws of the way from scores to multipliers."""

import math
import random

import pytest

from alphadecay import assign
from alphadecay.assign import CONTROLS, RULES

SCORES = {"a": 2.1, "b": 3.0, "c": 2.4, "d": 5.0}
BLOCKS = {"a": "0", "b": "0", "c": "1", "d": "1"}
ROLES = {"a": "q", "b": "fc", "c": "q", "d": "fc"}
SIZES = {"a": 10, "b": 40, "c": 10, "d": 40}


def random_scores(seed, count=20):
    draw = random.Random(seed)
    return {f"m{i}": draw.uniform(1.5, 6) for i in range(count)}


def test_linear_by_hand():
    assert assign({"a": 2.0, "b": 3.0, "c": 4.0}, low=0.5, high=2.5) == {"a": 0.5, "b": 1.5, "c": 2.5}


@pytest.mark.parametrize("seed", range(5))
def test_linear_stays_within_its_bounds_and_reaches_them(seed):
    multipliers = assign(random_scores(seed)).values()
    assert min(multipliers) == 2 / 3 and max(multipliers) == 3.0


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "sigmoid"])
@pytest.mark.parametrize("seed", range(3))
def test_heavier_tails_never_get_more_decay(seed, rule):
    scores = random_scores(seed)
    multipliers = assign(scores, rule=rule)
    in_order = [multipliers[name] for name in sorted(scores, key=scores.__getitem__)]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scores", [{"a": 2.5}, {"a": 2.5, "b": 2.5}], ids=["one", "equal"])
def test_one_score_and_equal_scores_keep_the_base_unlike_the_published_program(scores, rule):
    assert assign(scores, rule=rule, blocks=BLOCKS) == dict.fromkeys(scores, 1.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_matched_mean_is_one(seed, rule):
    scores = random_scores(seed)
    sizes = {name: 10 + i for i, name in enumerate(scores)}
    blocks = {name: str(i % 4) for i, name in enumerate(scores)}
    multipliers = assign(scores, rule=rule, budget="matched", sizes=sizes, blocks=blocks)
    assert sum(sizes[n] * m for n, m in multipliers.items()) / sum(sizes.values()) == pytest.approx(1)


@pytest.mark.parametrize("control", CONTROLS)
def test_matched_mean_is_one_under_every_control(control):
    sizes = {"a": 10, "b": 40, "c": 30, "d": 20}
    multipliers = assign(SCORES, control=control, budget="matched", sizes=sizes, roles=ROLES)
    assert sum(sizes[n] * m for n, m in multipliers.items()) / 100 == pytest.approx(1)


def test_invert_mirrors_the_scores():
    assert assign(SCORES, control="invert")["a"] == pytest.approx(assign(SCORES)["d"])
    assert assign(SCORES, control="invert")["d"] == pytest.approx(assign(SCORES)["a"])


def test_shuffle_deals_the_same_multipliers_by_one_permutation():
    scores, later = random_scores(0), random_scores(1)
    plain, dealt, dealt_later = (
        assign(scores),
        assign(scores, control="shuffle"),
        assign(later, control="shuffle"),
    )
    assert sorted(plain.values()) == sorted(dealt.values()) and plain != dealt
    source = {name: next(s for s in plain if plain[s] == dealt[name]) for name in scores}
    assert all(assign(later)[source[name]] == dealt_later[name] for name in later)
    assert assign(scores, control="shuffle", seed=1) != dealt


def test_by_type_gives_each_role_its_mean():
    plain, typed = assign(SCORES), assign(SCORES, control="by-type", roles=ROLES)
    assert typed["a"] == typed["c"] == pytest.approx((plain["a"] + plain["c"]) / 2)


BAD = {
    "low=3": ({}, {"low": 3, "high": 1}),
    "low=-1": ({}, {"low": -1}),
    "'cubic'": ({}, {"rule": "cubic"}),
    "'double'": ({}, {"budget": "double"}),
    "'none'": ({}, {"control": "none"}),
    "score of b is nan": ({"b": math.nan}, {}),
    "score of b is inf": ({"b": math.inf}, {}),
    "needs blocks": ({}, {"rule": "sigmoid"}),
    "needs roles": ({}, {"control": "by-type"}),
    "needs sizes": ({}, {"budget": "matched"}),
    "roles lacks d": ({}, {"control": "by-type", "roles": {"a": "", "b": "", "c": ""}}),
    "that of b is -1": ({"b": -1.0}, {"rule": "sqrt"}),
    "that of b is 0.25": ({"b": 0.25}, {"rule": "log2"}),
}


@pytest.mark.parametrize(("message", "case"), BAD.items(), ids=BAD)
def test_bad_input_is_named(message, case):
    changed, options = case
    with pytest.raises(ValueError, match=message):
        assign(SCORES | changed, **options)


def test_a_negative_multiplier_is_an_error_where_the_published_one_is_growth():
    with pytest.raises(ValueError, match="rule 'log2' needs scores of at least 1; that of b is 0.5"):
        assign({"a": 2.0, "b": 0.5}, rule="log2")


def test_nan_is_an_error_where_the_published_one_spreads():
    with pytest.raises(ValueError, match="the score of b is nan"):
        assign({"a": 2.0, "b": math.nan, "c": 3.0})


def test_no_scores_is_an_error():
    with pytest.raises(ValueError, match="no scores"):
        assign({})
