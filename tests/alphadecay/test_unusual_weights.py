"""Weights that are sparse in their gradients, complex, without values, or convolutions in groups."""

import math

import numpy as np
import pytest
import torch
from by_hand import BASE, alpha_of, decay_on, eigenvalues, linear
from torch import nn

import alphadecay
from alphadecay.matrices import find_matrices
from alphadecay.sharing import power_sums
from alphadecay.skeletons import skeleton


def seeded(make):
    torch.manual_seed(0)
    return make()


# Gradients of embeddings that hold the rows that were looked up, and no others.


class Words(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.embedding = nn.Embedding(100, 64, sparse=sparse)
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 128)

    def forward(self, ids):
        return self.two(torch.relu(self.one(self.embedding(ids))))


def words_steps(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        ids = torch.randint(10, (4, 16), generator=torch.Generator().manual_seed(step))  # most of them several times
        (model(ids).square().mean() * 100).backward()
        yield model
        optimizer.step()


def words(sparse, kind, **options):
    model = seeded(lambda: Words(sparse))
    rest = [*model.one.parameters(), *model.two.parameters()]
    groups = [{"params": [model.embedding.weight], "weight_decay": 0.0}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=1e-2, weight_decay=BASE)
    return model, optimizer, kind(model, optimizer, **options)


def test_awd_sums_what_a_sparse_gradient_holds_several_times():
    model, optimizer, decay = words(True, alphadecay.AWD, scale=50.0)
    average = 0.0
    for _ in words_steps(model, optimizer, range(4)):
        assert model.embedding.weight.grad.is_sparse
        gradient = math.sqrt(sum(float(p.grad.to_dense().double().square().sum()) for p in model.parameters()))
        weight = math.sqrt(sum(float(p.detach().double().square().sum()) for p in model.parameters()))
        average = 0.1 * average + 0.9 * 50 * gradient / weight
    assert decay.step == 4
    assert decay_on(optimizer, model.one.weight) == pytest.approx(BASE * average, rel=1e-5)
    assert decay_on(optimizer, model.embedding.weight) == 0


@pytest.mark.parametrize("kind", [alphadecay.AWD, alphadecay.AlphaDecay, alphadecay.AdaDecay])
def test_sparse_gradients_lead_where_dense_ones_do(kind):
    trained = []
    for sparse in (True, False):
        model, optimizer, _ = words(sparse, kind)
        for _ in words_steps(model, optimizer, range(4)):
            pass
        trained.append(model)
    for ours, theirs in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# Weights without values.


def on_meta():
    with torch.device("meta"):
        return nn.ModuleDict({"first": nn.Linear(64, 64), "second": nn.Linear(64, 128)})


def test_weights_on_the_meta_device_cannot_be_analyzed_and_are_named():
    with pytest.raises(ValueError, match="first"):
        alphadecay.analyze(on_meta())


def test_nor_can_decay_follow_them():
    model = on_meta()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=BASE)
    with pytest.raises(ValueError, match="first"):
        alphadecay.AlphaDecay(model, optimizer).refresh()


# Complex weights.


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("columns", [64, 160])
def test_a_complex_weight_is_measured_by_its_singular_values(columns, dtype):
    layer = seeded(lambda: nn.Linear(columns, 64, dtype=dtype))
    (record,) = alphadecay.analyze(nn.ModuleDict({"m": layer}))
    spectrum = eigenvalues(layer.weight)
    assert record.alpha == pytest.approx(alpha_of(layer.weight), rel=1e-4) and not record.note
    assert record.spectral_norm == pytest.approx(math.sqrt(spectrum[-1]), rel=1e-5)
    assert record.frobenius_norm == pytest.approx(math.sqrt(spectrum.sum()), rel=1e-5)
    assert record.stable_rank == pytest.approx(spectrum.sum() / spectrum[-1], rel=1e-5)


def test_a_complex_weight_with_no_imaginary_part_is_measured_as_the_real_one():
    real, layer = seeded(lambda: nn.Linear(64, 96)), nn.Linear(64, 96, dtype=torch.complex64)
    layer.weight = nn.Parameter(real.weight.detach().to(torch.complex64))
    one, other = alphadecay.analyze(nn.ModuleDict({"real": real, "complex": layer}))
    assert other.alpha == pytest.approx(one.alpha, rel=1e-5)
    assert other.spectral_norm == pytest.approx(one.spectral_norm, rel=1e-5)


def test_complex_gradients_count_by_their_magnitudes():
    gradient = torch.tensor([[3 + 4j, 5j]])
    assert power_sums([gradient], 1).tolist() == pytest.approx([10.0])
    assert power_sums([gradient, gradient.abs()], 2).tolist() == pytest.approx([50.0, 50.0])


def test_complex_weights_are_ranked_among_real_ones():
    model = seeded(
        lambda: nn.ModuleDict(
            {"a": nn.Linear(64, 64, dtype=torch.complex64), "b": nn.Linear(64, 64), "c": nn.Linear(64, 128)}
        )
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=BASE)
    decay = alphadecay.AlphaDecay(model, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    expected = linear({name: alpha_of(layer.weight) for name, layer in model.items()})
    optimizer.step()
    assert decay.multipliers == pytest.approx(expected, rel=1e-3)


# Convolutions in groups: no input channel of one group meets an output channel of another.

SHAPES = {
    "as wide": ((64, 64, 3), {"groups": 4}),
    "wider": ((32, 64, 3), {"groups": 2}),
    "narrower": ((96, 48, 3), {"groups": 3}),
    "of one position": ((128, 128, 1), {"groups": 2}),
    "oblong": ((64, 64, (1, 5)), {"groups": 8}),
    "whole": ((64, 64, 3), {"groups": 1}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_grouped_convolution_is_fitted_to_the_pooled_spectrum_of_its_groups_and_positions(shape):
    sizes, options = SHAPES[shape]
    layer, groups = seeded(lambda: nn.Conv2d(*sizes, **options)), options["groups"]
    (record,) = alphadecay.analyze(nn.ModuleDict({"m": layer}))
    spectrum = eigenvalues(layer.weight, groups)
    blocks = groups * layer.kernel_size[0] * layer.kernel_size[1]
    assert len(spectrum) == blocks * min(layer.out_channels, layer.in_channels) // groups
    assert record.eigenvalue_count == len(spectrum) and not record.note
    assert record.alpha == pytest.approx(alpha_of(layer.weight, groups), rel=1e-4)
    assert record.spectral_norm == pytest.approx(math.sqrt(spectrum[-1]), rel=1e-5)
    assert record.frobenius_norm == pytest.approx(math.sqrt(spectrum.sum()), rel=1e-5)


@pytest.mark.parametrize("out", [64, 128])
def test_depthwise_convolutions_have_no_matrices(out):
    (record,) = alphadecay.analyze(nn.ModuleDict({"m": nn.Conv2d(64, out, 3, groups=64)}))
    assert "depthwise" in record.note and record.alpha is None


def test_grouped_convolutions_are_ranked_and_depthwise_ones_keep_their_base_decay():
    model = seeded(
        lambda: nn.ModuleDict(
            {
                "grouped": nn.Conv2d(64, 64, 3, groups=4),
                "whole": nn.Conv2d(64, 64, 3),
                "linear": nn.Linear(64, 256),
                "depthwise": nn.Conv2d(64, 64, 3, groups=64),
            }
        )
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=BASE)
    decay = alphadecay.AlphaDecay(model, optimizer)
    names = ["grouped", "whole", "linear"]
    expected = linear({name: alpha_of(model[name].weight, getattr(model[name], "groups", 1)) for name in names})
    decay.refresh()
    for name in names:
        assert decay_on(optimizer, model[name].weight) == pytest.approx(BASE * expected[name], rel=1e-3)
    assert decay_on(optimizer, model["depthwise"].weight) == BASE


def test_groups_with_equal_kernels_have_the_alpha_of_one_of_them():
    one, four = seeded(lambda: nn.Conv2d(16, 16, 3)), nn.Conv2d(64, 64, 3, groups=4)
    with torch.no_grad():
        four.weight.copy_(one.weight.repeat(4, 1, 1, 1))
    single, grouped = alphadecay.analyze(nn.ModuleDict({"one": one, "four": four}))
    assert grouped.spectral_norm == pytest.approx(single.spectral_norm, rel=1e-5)
    repeated = np.repeat(eigenvalues(one.weight), 4)
    tail = repeated[len(repeated) // 2 :]
    assert grouped.alpha == pytest.approx(1 + len(tail) / np.log(tail / tail[0]).sum(), rel=1e-4)


def test_groups_that_a_file_does_not_tell_take_no_part_and_say_so():
    shapes = {"1.conv1": (64, 64, 1, 1), "1.conv2": (64, 2, 3, 3), "1.conv3": (64, 64, 3, 3)}
    matrices = find_matrices(skeleton({f"layer.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}))
    reasons = {matrix.name.removeprefix("layer."): matrix.reason for matrix in matrices}
    assert reasons.pop("1.conv2.weight") == "grouped convolution whose number of groups is not in the file"
    assert reasons == {"1.conv1": "", "1.conv3": ""}
