"""Several processes: the same records, decays and bits on all, and each does its share of the work."""

import pytest
from ranks import on_ranks

from alphadecay.sharing import owners_of, turns_of


def test_the_costliest_goes_to_the_rank_with_least_to_do_of_those_that_hold_it():
    same = {"a": 5.0, "b": 3.0, "c": 3.0, "d": 1.0}
    assert owners_of([same, same]) == {"a": 0, "b": 1, "c": 1, "d": 0}
    late = {"a": 1.0, "b": 1.0, "c": 2.0}
    assert owners_of([late, late]) == {"c": 0, "a": 1, "b": 1}
    assert owners_of([{"a": 1.0}, {"b": 9.0, "c": 9.0}]) == {"b": 1, "c": 1, "a": 0}
    assert turns_of({"a": 0, "b": 1, "c": 1}, 3) == [[(0, "a"), (1, "b")], [(1, "c")]]
    assert turns_of({}, 2) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ranks"), [("data_parallel", 2), ("fully_sharded", 2), ("hybrid_sharded", 4)])
def test_every_rank_ends_with_the_records_and_decays_of_one_process(kind, ranks, tmp_path):
    (alone,) = on_ranks("alone", 1, tmp_path)
    found = on_ranks(kind, ranks, tmp_path)
    assert all(each == found[0] for each in found)
    assert found[0]["multipliers"] == pytest.approx(alone["multipliers"], rel=1e-4)
    assert [r["name"] for r in found[0]["records"]] == [r["name"] for r in alone["records"]]
    assert found[0]["sum"] == pytest.approx(alone["sum"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["each_step_copies", "each_step_shards"])
def test_kinds_that_act_at_every_step_give_the_weights_of_one_process(kind, tmp_path):
    (alone,) = on_ranks("each_step_alone", 1, tmp_path)
    found = on_ranks(kind, 2, tmp_path)
    assert found[0] == found[1]
    for name, expected in alone.items():
        assert found[0][name]["multipliers"] == pytest.approx(expected["multipliers"], rel=1e-4)
        assert found[0][name]["norms"] == pytest.approx(expected["norms"], rel=1e-5)


@pytest.mark.slow
def test_gradients_of_shards_are_scored_as_whole_ones(tmp_path):
    (alone,) = on_ranks("by_gradient_alone", 1, tmp_path)
    found = on_ranks("fully_sharded_by_gradient", 2, tmp_path)
    assert found[0] == found[1] and found[0]["scores"] == pytest.approx(alone["scores"], rel=1e-4)


@pytest.mark.slow
def test_ranks_that_hold_other_modules_are_ranked_together(tmp_path):
    (whole,) = on_ranks("pipeline_whole", 1, tmp_path)
    first, second = on_ranks("pipeline", 2, tmp_path)
    assert first["scores"] == second["scores"] and len(first["multipliers"]) == len(second["multipliers"]) == 6
    both = on_ranks("pipeline_whole", 2, tmp_path)[0]["multipliers"]
    assert first["multipliers"] | second["multipliers"] == {name: both[name] for name in both}
    assert len(whole["multipliers"]) == 6


@pytest.mark.slow
def test_a_compiled_model_has_the_same_names_and_decays(tmp_path):
    found = on_ranks("compiled", 2, tmp_path)
    assert found[0] == found[1] and "blocks.0.proj" in found[0]["multipliers"]


@pytest.mark.slow
def test_a_weight_that_is_not_finite_on_one_rank_ends_all(tmp_path):
    found = on_ranks("not_finite_on_one", 2, tmp_path)
    assert all("blocks.2.fc1 (256, 64): the weight holds values that are not finite" in r["error"] for r in found)


@pytest.mark.proof
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_slowest_rank_does_its_share_and_at_most_a_tenth_more(ranks, tmp_path):
    found = on_ranks("work", ranks, tmp_path)
    assert sum(each["share"] for each in found) == pytest.approx(1)
    assert max(each["share"] for each in found) <= 1 / ranks + 0.1
    assert max(each["time"] for each in found) <= 1 / ranks + 0.1
