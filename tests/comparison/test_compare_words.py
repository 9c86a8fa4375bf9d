"""Verdicts follow from planted effects, and say in words what weakens them."""

import pytest
from fake_comparison import IMAGES, STRATEGIES, TEXT, Effects, fill, grid_of

from comparison.findings import find
from comparison.results import Run
from comparison.statistics import BETTER, ONE_SEED, SAME, WORSE
from comparison.verdict import verdict

ALIKE = {name: STRATEGIES[name] for name in ("uniform", "alphadecay", "alphadecay matched", "alphadecay shuffled")}
PAIR = [("alphadecay", "alphadecay shuffled")]


def found(folder, effects=None, grid=None, **ended):
    grid = grid or grid_of(folder)
    (finding,) = find(grid, fill(grid, folder, effects or Effects(), **ended))
    return finding, "\n".join(verdict(finding))


@pytest.mark.parametrize("domain", [IMAGES, TEXT])
def test_a_large_planted_effect_is_better_or_worse_in_the_metrics_direction(tmp_path, domain):
    for effect, name in ((3.0, BETTER), (-3.0, WORSE)):
        folder = tmp_path / name
        grid = grid_of(folder, domains={"some": domain})
        finding, text = found(folder, Effects({"alphadecay": effect}), grid)
        assert finding.with_baseline["alphadecay"].verdict == name
        assert f"{name.capitalize()} than uniform: alphadecay." in text
        assert ("No strategy is shown to be better" in text) == (name == WORSE)
    assert "No strategy is shown to be better" in text


def test_pure_noise_is_not_distinguishable_and_the_words_say_what_it_takes(tmp_path):
    finding, text = found(tmp_path, Effects(noise=1.0))
    comparison = finding.with_baseline["alphadecay"]
    assert comparison.verdict == SAME and finding.winners == []
    assert "Not distinguishable from uniform: alphadecay" in text and "with 3 seeds and 1 comparison" in text
    assert "with 3 seeds it may be 0.52 to 6.3 times as large" in text
    assert "Seeds needed to show differences of the observed size: alphadecay and uniform:" in text


def test_each_strategy_is_taken_at_its_best_point(tmp_path):
    for best in (0.1, 0.5, 2.0):
        folder = tmp_path / str(best)
        finding, text = found(folder, Effects(best_decay=best, noise=0.01))
        assert finding.baseline.best.weight_decay == best
        assert ("at the edge of the search" in text) == (best != 0.5)
        side = {0.1: "the smallest searched", 2.0: "the largest searched"}.get(best, "")
        assert side in text


def test_lower_is_better_where_it_is(tmp_path):
    grid = grid_of(tmp_path, domains={"text": TEXT})
    finding, _ = found(tmp_path, Effects(noise=0.01), grid)
    assert finding.baseline.best.weight_decay == 0.5
    means = [candidate.mean for candidate in finding.baseline.candidates]
    assert finding.baseline.best.mean == min(means)


def test_one_seed_says_nothing_on_differences(tmp_path):
    finding, text = found(tmp_path, Effects({"alphadecay": 9.0}), grid_of(tmp_path, seeds=[0]))
    assert finding.with_baseline["alphadecay"].verdict == ONE_SEED
    assert "Only one seed" in text and "At least two seeds are needed" in text and "Better than" not in text


def test_points_that_lack_seeds_are_not_chosen_and_said(tmp_path):
    name = "digits/alphadecay/weight_decay=0.5/seed1"
    finding, text = found(tmp_path, Effects(noise=0.01), diverged=[name])
    tuned = finding.of("alphadecay")
    assert tuned.best.weight_decay != 0.5 and tuned.best.complete and not tuned.complete
    assert "alphadecay: of 9 runs, 1 diverged." in text and "are left out when the best point is chosen" in text


def test_where_no_point_is_complete_what_is_there_is_taken_and_only_common_seeds_are_paired(tmp_path):
    names = [f"digits/alphadecay/weight_decay={decay}/seed2" for decay in (0.1, 0.5, 2.0)]
    finding, text = found(tmp_path, Effects(noise=0.01), left_out=names)
    assert finding.of("alphadecay").best.weight_decay == 0.5
    assert set(finding.with_baseline["alphadecay"].paired.differences) == {0, 1}
    assert "No point of its search has all seeds" in text and "3 waiting" in text


def test_nothing_finished_is_said_and_breaks_nothing(tmp_path):
    grid = grid_of(tmp_path)
    finding, text = found(tmp_path, grid=grid, left_out=[spec.name for spec in grid.specs])
    assert "so there is nothing to compare with" in text and finding.baseline.best is None


def test_a_baseline_that_failed_everywhere_is_said(tmp_path):
    grid = grid_of(tmp_path)
    _, text = found(tmp_path, grid=grid, failed=[c.name for c in grid.specs if c.strategy == "uniform"])
    assert "No run of the baseline, uniform, has finished" in text and "9 failed" in text


@pytest.mark.slow
def test_an_advantage_that_remains_under_its_controls_is_told_from_one_that_does_not(tmp_path):
    for name, effects, sentences in (
        ("stays", {"alphadecay": 3.0, "alphadecay matched": 3.0},
         ("over uniform remains; alphadecay matched is better", "alphadecay is better than alphadecay shuffled")),
        ("goes", {"alphadecay": 3.0, "alphadecay shuffled": 3.0},
         ("is not shown to remain: alphadecay matched", "is not shown to matter")),
        ("turns", {"alphadecay": 3.0, "alphadecay matched": -3.0}, ("becomes a disadvantage",)),
        ("none", {}, ("is not shown to have an advantage over uniform that could remain",)),
    ):  # fmt: skip
        folder = tmp_path / name
        grid = grid_of(folder, ALIKE, seeds=range(5), contrasts=PAIR)
        _, text = found(folder, Effects(effects), grid)
        assert all(sentence in text for sentence in sentences), text
        assert "alphadecay and alphadecay matched" not in text  # were not compared directly


@pytest.mark.parametrize(("shuffled", "told"), [(3.3, True), (4.1, False)])
def test_a_control_that_decays_less_in_total_is_no_proof_of_where_decay_should_go(
    tmp_path, monkeypatch, shuffled, told
):
    decays = {"alphadecay": 4.2, "alphadecay shuffled": shuffled}
    monkeypatch.setattr(Run, "mean_decay", property(lambda run: decays.get(run.spec.strategy, 1.0)))
    _, text = found(tmp_path, Effects({"alphadecay": 3.0}), grid_of(tmp_path, ALIKE, seeds=range(5), contrasts=PAIR))
    assert "alphadecay is better than alphadecay shuffled" in text
    assert ("Their mean applied decays differ too, 4.2 and 3.3, which may be the reason." in text) == told


def test_the_family_is_every_strategy_with_the_baseline_and_the_contrasts_once(tmp_path):
    pairs = [*PAIR, ("uniform", "alphadecay")]
    finding, _ = found(tmp_path, grid=grid_of(tmp_path, ALIKE, contrasts=pairs))
    names = [(c.paired.first, c.paired.second) for c in finding.comparisons]
    assert names == [(name, "uniform") for name in ALIKE if name != "uniform"] + PAIR
    assert {c.family for c in finding.comparisons} == {4}


def test_a_winner_with_more_decay_in_total_may_owe_it_to_that(tmp_path):
    _, text = found(tmp_path, Effects({"alphadecay": 3.0}))
    assert "a larger total decay could explain the difference" in text
    assert "uniform was searched up to 2 and was best at 0.5" in text
    narrow = {**IMAGES, "search": {"weight_decay": [0.1, 0.5]}}
    _, text = found(tmp_path / "b", Effects({"alphadecay": 3.0}), grid_of(tmp_path / "b", domains={"digits": narrow}))
    assert "uniform was searched only up to 0.5" in text


def test_a_constant_difference_is_no_evidence_and_said(tmp_path):
    grid = grid_of(tmp_path, {"uniform": {}, "alphadecay": {"decay": "alphadecay"}})
    finding, text = found(tmp_path, Effects({"alphadecay": 1.0}, noise=0.0), grid)
    assert finding.with_baseline["alphadecay"].verdict == SAME
    assert "differ by the same amount in every seed" in text


def test_equal_base_decays_are_compared_point_by_point(tmp_path):
    finding, _ = found(tmp_path, grid=grid_of(tmp_path, STRATEGIES))
    assert [(e.candidate.strategy, e.candidate.weight_decay) for e in finding.equal] == [
        (name, decay) for name in STRATEGIES if name not in ("none", "uniform") for decay in (0.1, 0.5, 2.0)
    ]
    assert all(e.candidate.name == e.baseline.name and e.paired.count == 3 for e in finding.equal)
