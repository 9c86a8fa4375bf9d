"""Figures show what they are given, legibly: numbers in cells, nothing on top of something else."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from panels import overlapping, panels
from torch import nn

import alphadecay
from alphadecay.analysis import SpectrumRecord
from alphadecay.figures.alpha import alpha_by_depth, alpha_by_role, alpha_change
from alphadecay.figures.decay import decay_by_depth, decay_over_time
from alphadecay.figures.spectra import by_role, spectra_by_role, spectra_of_role
from alphadecay.records import spectra_of

ROLES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")


def ledger(steps, scored=True, depth=2, decay=0.05):
    return [
        {"step": step, "module": f"{i}.{role}", "role": role, "score": 2 + i + step / 100 if scored else None,
         "multiplier": 1.0, "weight_decay": decay * (1 + i)}
        for step in steps for i in range(depth) for role in ROLES
    ]  # fmt: skip


def one_for_all(steps):
    return [
        {"step": step, "module": "(all)", "role": "", "score": None, "multiplier": 1.0, "weight_decay": 1e-5 + step}
        for step in steps
    ]


def records(depth, alpha=3.0):
    return [
        SpectrumRecord(f"layers.{i}.{role}", role, (64, 64), 4096, 64, alpha=alpha + j / 10 + i / 100)
        for i in range(depth)
        for j, role in enumerate(ROLES)
    ]


def test_what_lies_on_top_of_something_else_is_found():
    figure = Figure()
    ax = figure.subplots()
    for place in (0.5, 0.51):
        ax.text(place, 0.5, f"text {place}")
    assert overlapping(figure) == [("text 0.5", "text 0.51")]


class Blocks(nn.Module):
    def __init__(self, depth):
        super().__init__()
        torch.manual_seed(0)
        block = {"fc1": nn.Linear(64, 128), "fc2": nn.Linear(128, 64)}
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {"mlp": nn.ModuleDict({k: nn.Linear(v.in_features, v.out_features) for k, v in block.items()})}
            )
            for _ in range(depth)
        )


def test_both_means_are_drawn_by_role_over_time():
    figure = decay_over_time(ledger([0, 50, 100]), "grad_norm")
    scores, decays = panels(figure)
    assert (scores.get_ylabel(), decays.get_ylabel()) == ("grad norm", "weight decay")
    assert [line.get_label() for line in scores.lines] == list(ROLES)
    np.testing.assert_allclose(scores.lines[0].get_data(), ([0, 50, 100], [2.5, 3.0, 3.5]))
    np.testing.assert_allclose(decays.lines[0].get_ydata(), [0.075] * 3)
    assert all(a.get_color() == b.get_color() for a, b in zip(scores.lines, decays.lines, strict=True))


def test_a_kind_without_scores_has_no_empty_panel():
    for figure in (decay_over_time(ledger([0, 1], scored=False)), decay_by_depth(ledger([0], scored=False))):
        assert len(panels(figure)) == 1 and not any("alpha" in ax.get_ylabel() for ax in figure.axes)


def test_one_decay_for_all_modules_is_one_line_of_few_points_that_ends_where_it_ends():
    (ax,) = panels(decay_over_time(one_for_all(range(9001))))
    (line,) = ax.lines
    assert line.get_label() == "all modules" and line.get_marker() == "None"
    assert len(line.get_xdata()) <= 402 and (line.get_xdata()[0], line.get_xdata()[-1]) == (0, 9000)


def test_cells_hold_the_ledgers_last_numbers():
    scores, decays = panels(decay_by_depth(ledger([0, 50], depth=3, decay=1e-6)))
    assert [text.get_text() for text in scores.texts[:: len(ROLES)]] == ["2.50", "3.50", "4.50"]
    assert [text.get_text() for text in decays.texts[:: len(ROLES)]] == ["1.00", "2.00", "3.00"]
    assert any("10^{-6}" in ax.get_ylabel() for ax in decays.figure.axes)


def test_a_module_without_alpha_has_an_empty_cell_and_the_stem_none():
    found = records(3)
    found[len(ROLES)] = SpectrumRecord("layers.1.attn.q", "attn.q", (64, 64), 4096, 64, note="all weights are zero")
    stem = SpectrumRecord("stem", "attn.q", (64, 64), 4096, 64, note="stem")
    (ax,) = panels(alpha_by_depth([stem, *found]))
    drawn = {(round(text.get_position()[1]), round(text.get_position()[0])) for text in ax.texts}
    assert drawn == {(i, j) for i in range(3) for j in range(len(ROLES))} - {(1, 0)}


def test_a_change_is_the_difference_and_its_colours_are_centred_at_0():
    (ax,) = panels(alpha_change(records(2, alpha=3.0), records(2, alpha=3.25), "seed 1"))
    assert {text.get_text() for text in ax.texts} == {"-0.25"}
    (image,) = ax.get_images()
    assert image.norm.vmin == -image.norm.vmax


def test_means_of_roles_stand_beside_each_other():
    (ax,) = panels(alpha_by_role({"a": records(2), "b": records(2, alpha=4.0)}))
    first, second = (line.get_ydata() for line in ax.lines if line.get_marker() in "Ds")
    np.testing.assert_allclose(first, 3.005 + np.arange(7) / 10)
    np.testing.assert_allclose(second - first, 1.0)


def test_spectra_are_the_measured_ones_and_pages_hold_24():
    model = Blocks(25)
    nn.init.zeros_(model.layers[3].mlp.fc1.weight)
    found = alphadecay.analyze(model)
    spectra = spectra_of(found)
    assert [record for record, _ in spectra] == found
    for record, eigs in spectra:
        assert len(eigs) == record.eigenvalue_count and eigs[-1] == pytest.approx(record.spectral_norm**2)
    first, second = spectra_of_role(by_role(spectra)["mlp.fc1"])
    assert len(panels(first)) == 24 and len(panels(second)) == 1
    zero = panels(first)[3]
    assert zero.get_title() == "layers.3" and [text.get_text() for text in zero.texts] == ["all weights are zero"]
    record = found[0]
    assert panels(first)[0].get_title() == rf"layers.0: {record.alpha:.2f} $\pm$ {record.alpha_error:.2f}"
    assert list(panels(first)[0].lines[1].get_xdata()) == [record.xmin, record.xmin]


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 24])
def test_nothing_is_written_on_top_of_something_else(depth):
    found = alphadecay.analyze(Blocks(depth))
    spectra = spectra_of(found)
    figures = [
        spectra_by_role(spectra), spectra_of_role(by_role(spectra)["mlp.fc1"])[0], alpha_by_depth(records(depth)),
        alpha_by_depth(found), alpha_by_role({"a": found, "b": found}), decay_over_time(ledger([0, 1], depth=depth)),
        decay_by_depth(ledger([0], depth=depth)),
    ]  # fmt: skip
    assert [overlapping(figure) for figure in figures] == [[]] * len(figures)
    assert all(figure.get_size_inches()[0] <= 6.9 for figure in figures)
