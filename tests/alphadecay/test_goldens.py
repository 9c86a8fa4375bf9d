"""Parity with the published program."""

import json
from pathlib import Path

import pytest
from recipes import draw, model_of

import alphadecay
from alphadecay.spectra import eigenvalues
from alphadecay.tails import fit_median

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "published_estimator.json").read_text())
RULES = {"tb_linear_map": "linear", "tb_sqrt": "sqrt", "tb_log2": "log2", "layerwise_sigmoid": "sigmoid"}


def label(golden):
    return "-".join(str(value) for value in golden["recipe"].values())


def analyzed(golden):
    return alphadecay.analyze(model_of(m=draw(**golden["recipe"])), min_eigenvalues=1)[0]


@pytest.mark.parametrize("golden", GOLDEN["matrices"], ids=label)
def test_measures_are_the_published_ones(golden):
    record = analyzed(golden)
    assert record.eigenvalue_count == golden["eigs_num"]
    assert record.alpha == pytest.approx(golden["alpha_median"], rel=1e-4)
    assert record.alpha_hat == pytest.approx(golden["alphahat"], rel=1e-4)
    assert record.frobenius_norm**2 == pytest.approx(golden["fnorm"], rel=1e-4)
    assert record.spectral_norm**2 == pytest.approx(golden["spectral_norm"], rel=1e-4)
    assert record.stable_rank == pytest.approx(golden["stable_rank"], rel=1e-4)
    assert record.entropy == pytest.approx(golden["entropy"], rel=1e-4)


@pytest.mark.parametrize("golden", GOLDEN["matrices"], ids=label)
def test_xmin_pos_moves_the_cut_as_published(golden):
    eigs = eigenvalues(draw(**golden["recipe"]))
    for xmin_pos in ("1.5", "3", "4"):
        expected = golden[f"alpha_median_xmin_pos_{xmin_pos}"]
        assert fit_median(eigs, float(xmin_pos)).alpha == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fit", ["goodness-of-fit", "fix-finger"])
@pytest.mark.parametrize("golden", GOLDEN["matrices"], ids=label)
def test_searched_tails_are_the_published_ones(golden, fit):
    record = alphadecay.analyze(model_of(m=draw(**golden["recipe"])), fit=fit, min_eigenvalues=1)[0]
    assert record.alpha == pytest.approx(golden[f"alpha_{fit.replace('-', '_')}"], rel=1e-3)


@pytest.mark.parametrize("golden", GOLDEN["assignments"], ids=lambda g: f"{g['assign']}-{len(g['names'])}")
def test_assignments_are_the_published_ones(golden):
    scores = dict(zip(golden["names"], golden["scores"], strict=True))
    multipliers = alphadecay.assign(
        scores,
        rule=RULES[golden["assign"]],
        low=golden["min_ratio"],
        high=golden["max_ratio"],
        blocks={name: name.split(".")[2] for name in scores},
    )
    decays = [golden["base"] * multiplier for multiplier in multipliers.values()]
    assert decays == pytest.approx(golden["weight_decay"], rel=1e-6)
