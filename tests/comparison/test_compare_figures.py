"""Figures of a comparison show the runs' figures, legibly, with few or many strategies, seeds and points."""

import numpy as np
import pytest
from fake_comparison import IMAGES, STRATEGIES, TEXT, Effects, fill, grid_of
from panels import overlapping, panels

from comparison.figures import metric_by_decay, outcome, slugs
from comparison.findings import find
from comparison.looks import clipped_limits, looks_of
from comparison.time_figures import (
    adaptive,
    curve,
    decay_and_norms,
    decay_by_role,
    learning_curves,
    lines_of,
    modules_over_time,
    score_name,
)

PAIR = [("alphadecay", "alphadecay shuffled")]


def setting_of(folder, effects=None, **grid):
    grid = grid_of(folder, **grid)
    (finding,) = find(grid, fill(grid, folder, effects or Effects()))
    return finding, looks_of(tuned.strategy for tuned in finding.tuned)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return setting_of(tmp_path_factory.mktemp("images"), strategies=STRATEGIES, contrasts=PAIR)


def drawn(finding, looks):
    figures = [draw(finding, looks) for draw in (outcome, metric_by_decay, learning_curves, decay_and_norms)]
    roles = decay_by_role(finding, looks)
    return [*figures, *([roles] if roles else []), *(modules_over_time(tuned) for tuned in adaptive(finding))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "grid",
    [
        {"strategies": STRATEGIES, "contrasts": PAIR},
        {"strategies": STRATEGIES, "domains": {"text": TEXT}, "seeds": [0]},
        {"domains": {"digits": {**IMAGES, "search": {}}}, "seeds": [0]},
    ],
)
@pytest.mark.parametrize("depth", [1, 24])
def test_nothing_is_written_on_top_of_something_else(tmp_path, grid, depth):
    figures = drawn(*setting_of(tmp_path, Effects(depth=depth), **grid))
    assert [overlapping(figure) for figure in figures] == [[]] * len(figures)
    assert all(figure.get_size_inches()[0] <= 6.9 for figure in figures)


def test_an_outcome_has_every_seed_the_mean_and_both_intervals(images):
    finding, looks = images
    left, right = panels(outcome(finding, looks))
    uniform = finding.baseline
    assert any(np.array_equal(line.get_xdata(), list(uniform.best.values.values())) for line in left.lines)
    assert any(list(line.get_xdata()) == [uniform.best.mean] * 2 for line in left.lines)
    shown = [tuple(line.get_xdata()) for line in right.lines]
    for comparison in finding.comparisons:
        paired = comparison.paired
        assert {tuple(paired.interval), tuple(paired.bootstrap), (paired.mean,)} <= set(shown)
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels[-1] == "alphadecay\n- alphadecay shuffled" and labels[0] == "none\nbase decay 0"


def test_a_star_is_for_the_edge_of_the_search(tmp_path):
    finding, looks = setting_of(tmp_path, Effects(best_decay=2.0, noise=0.01))
    labels = [text.get_text() for text in outcome(finding, looks).axes[0].get_yticklabels()]
    assert all(label.endswith("base decay 2 *") for label in labels)


def test_no_decay_has_a_place_of_its_own_left_of_all_others(images):
    finding, looks = images
    for ax in panels(metric_by_decay(finding, looks)):
        labels = dict(zip(ax.get_xticks(), [text.get_text() for text in ax.get_xticklabels()], strict=True))
        assert labels[min(labels)] == "0"
        marked = {line.get_marker(): line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1}
        assert marked[looks["none"].marker] == min(marked.values()) < 0.1


def test_a_strategy_looks_the_same_in_every_figure(images):
    finding, looks = images
    assert len({(look.colour, str(look.dash), look.marker) for look in looks.values()}) == len(looks)
    top = panels(learning_curves(finding, looks))[0]
    assert [line.get_color() for line in top.lines] == [look.colour for look in looks.values()]
    assert len({look.colour for look in looks.values()}) == len(looks)
    assert len({(look.colour, str(look.dash)) for look in looks_of(map(str, range(30))).values()}) == 30


def test_learning_curves_are_means_over_seeds_and_differences_are_paired(images):
    finding, looks = images
    _, metric, _, difference = panels(learning_curves(finding, looks))
    runs = {name: finding.of(name).best.finished for name in ("uniform", "alphadecay")}
    means = {n: np.mean([list(curve(run, "acc1").values()) for run in each], axis=0) for n, each in runs.items()}
    index = list(looks).index("alphadecay")
    np.testing.assert_allclose(metric.lines[index].get_ydata(), means["alphadecay"])
    lines = [line.get_ydata() for line in difference.lines]
    assert any(len(y) == 6 and np.allclose(y, means["alphadecay"] - means["uniform"]) for y in lines)


def test_only_strategies_with_decays_by_module_have_figures_of_them(images):
    finding, _ = images
    assert [tuned.strategy for tuned in adaptive(finding)] == [
        "adadecay", "alphadecay", "alphadecay matched", "alphadecay shuffled",
    ]  # fmt: skip
    assert score_name(finding.of("alphadecay")) == "alpha" and score_name(finding.of("adadecay")) == "gradient norm"


def test_modules_are_drawn_by_role_and_depth_as_means_over_seeds(images):
    finding, _ = images
    tuned = finding.of("alphadecay")
    axes = panels(modules_over_time(tuned))
    assert [ax.get_title() for ax in axes[:4]] == ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    lines = lines_of(tuned.best.finished, "score")["mlp.fc1"]
    rows = [row for run in tuned.best.finished for row in run.decay_log if row["module"] == "blocks.2.mlp.fc1"]
    assert dict(lines[2])[250] == pytest.approx(np.mean([row["score"] for row in rows if row["step"] == 250]))
    np.testing.assert_allclose(axes[2].lines[2].get_ydata(), [value for _, value in lines[2]])


def test_a_comparison_without_adaptive_decay_has_no_figure_of_roles(tmp_path):
    finding, looks = setting_of(tmp_path, strategies={name: STRATEGIES[name] for name in ("none", "uniform", "awd")})
    assert adaptive(finding) == [] and decay_by_role(finding, looks) is None


def test_an_axis_leaves_out_what_is_far_off_on_the_bad_side_alone():
    most = [(-1.0, 1.0), (-0.5, 0.8), (0.0, 0.9)]
    assert (
        clipped_limits(most, 0.0, True) is None
        and clipped_limits([], 0.0, True) is None
        and clipped_limits([(0.0, 0.0)], 0.0, True) is None
    )
    low, high = clipped_limits([*most, (-90.0, -80.0)], 0.0, True)
    assert -2 < low < -1 and 1 < high < 2
    assert (
        clipped_limits([*most, (-90.0, -80.0)], 0.0, False) is None
        and clipped_limits([*most, (80.0, 90.0)], 0.0, True) is None
    )


def test_names_of_files_differ_where_names_do():
    assert slugs(["a b", "a-b", "A b", "<>"]) == {"a b": "a-b", "a-b": "a-b-2", "A b": "a-b-3", "<>": "setting"}


def test_a_strategy_without_a_colour_takes_a_free_one(monkeypatch):
    from runtime.strategies import STRATEGIES, Strategy

    own = looks_of([*STRATEGIES])
    monkeypatch.setitem(STRATEGIES, "new", Strategy("New"))
    looks = looks_of([*STRATEGIES])
    assert all(looks[name] == look for name, look in own.items())
    assert looks["new"].colour not in {look.colour for look in own.values()}
