"""Images: fixed splits, every image once, and randomness that no worker decides."""

import random

import numpy as np
import pytest
import torch

from datasets import DataOptions, open_images
from runtime.processes import Ranks
from runtime.seeding import random_state, restore_random_state, seeded
from vision.loaders import EpochBatches, eval_loader, train_loader
from vision.transforms import eval_transform, train_transform

OPTIONS = DataOptions(data_set="digits", input_size=32, batch_size=100, num_workers=0, aa="none")
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def digits():
    return open_images(OPTIONS, ALONE)


def test_digits_are_split_once_and_for_all_with_every_class_in_proportion(digits):
    assert (len(digits.train), len(digits.validation)) == (1433, 364)
    share = np.bincount(digits.validation.labels) / (
        np.bincount(digits.train.labels) + np.bincount(digits.validation.labels)
    )
    assert (abs(share - 0.2) < 0.01).all()
    pixels = [image.tobytes() for part in (digits.train, digits.validation) for image in part.images]
    assert len(set(pixels)) > 1780  # the data hold a few doubles


def test_digits_are_real_images_and_look_like_their_labels(digits):
    image, label = digits.train[0]
    assert image.size == (32, 32) and image.mode == "RGB" and label in range(10)
    means = {
        d: np.mean(
            [np.asarray(i) for i, k in zip(digits.train.images, digits.train.labels, strict=True) if k == d],
            axis=0,
        )
        for d in (0, 1)
    }
    assert means[0][16, 16, 0] < means[1][16, 16, 0]  # a zero is hollow, a one is not


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_image_comes_twice_an_epoch_and_only_the_last_partial_batch_is_dropped(ranks, accumulate):
    keys = [
        key for rank in range(ranks) for batch in EpochBatches(100, 8, accumulate, rank, ranks, seed=0) for key in batch
    ]
    indices = [index for _, _, index in keys]
    assert len(indices) == len(set(indices)) == 100 // (8 * accumulate * ranks) * (8 * accumulate * ranks)


def test_two_ranks_see_the_global_batches_of_one():
    one = list(EpochBatches(100, 16, 1, 0, 1, seed=3))
    two = [list(EpochBatches(100, 8, 1, rank, 2, seed=3)) for rank in range(2)]
    assert [a + b for a, b in zip(*two, strict=True)] == one


def order(seed, epoch):
    batches = EpochBatches(100, 10, 1, 0, 1, seed)
    batches.epoch = epoch
    return [index for batch in batches for _, _, index in batch]


def test_seed_and_epoch_change_the_order():
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)


def batches_of(digits, workers, epoch=1, first_batch=0, seed=5):
    options = DataOptions(data_set="digits", input_size=32, batch_size=100, num_workers=workers, aa="none", reprob=0.5)
    loader = train_loader(options, digits, accumulate=1, rank=0, ranks=1, seed=seed, pin_memory=False)
    return list(loader.epoch(epoch, first_batch))


def test_batches_depend_on_neither_workers_nor_the_batch_an_epoch_starts_from(digits):
    whole = batches_of(digits, 0)
    for other, start in ((batches_of(digits, 2), 0), (batches_of(digits, 1, first_batch=9), 9)):
        for (images, labels), (images2, labels2) in zip(whole[start:], other, strict=True):
            assert torch.equal(images, images2) and torch.equal(labels, labels2)


def test_augmentation_changes_with_epoch_and_seed(digits):
    first = batches_of(digits, 0)[0][0]
    assert not torch.equal(first, batches_of(digits, 0, epoch=2)[0][0])
    assert not torch.equal(first, batches_of(digits, 0, seed=6)[0][0])


def test_each_place_of_an_epoch_is_augmented_by_numbers_of_its_own(digits):
    images = train_loader(OPTIONS, digits, accumulate=1, rank=0, ranks=1, seed=0, pin_memory=False).images
    seen = [images[(0, place, 3)][0] for place in range(8)]
    assert all(torch.equal(images[(0, place, 3)][0], each) for place, each in enumerate(seen))
    seen += [images[(1, place, 3)][0] for place in range(8)]
    assert len({each.numpy().tobytes() for each in seen}) == 16


def test_loading_leaves_the_random_state_alone(digits):
    states = [(random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())]
    batches_of(digits, 0)
    states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))
    assert states[0] == states[1]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_each_image_on_exactly_one_rank(digits, ranks):
    loaders = [eval_loader(OPTIONS, digits, rank=rank, ranks=ranks, pin_memory=False) for rank in range(ranks)]
    assert sum(len(labels) for loader in loaders for _, labels in loader) == len(digits.validation)


def test_pixels_are_normalised(digits):
    images = torch.cat([images for images, _ in eval_loader(OPTIONS, digits, rank=0, ranks=1, pin_memory=False)])
    assert abs(images.mean()) < 0.05 and abs(images.std() - 1) < 0.05


def is_shift_of(seen, whole, most):
    """Whether an image is another one shifted by at most so many pixels, its edges filled with black."""
    size = whole.shape[-1]
    black = ((0 - 0.305) / 0.348) * torch.ones(3, size + 2 * most, size + 2 * most)
    black[:, most : most + size, most : most + size] = whole
    places = [(y, x) for y in range(2 * most + 1) for x in range(2 * most + 1)]
    return any(torch.allclose(black[:, y : y + size, x : x + size], seen, atol=1e-5) for y, x in places)


@pytest.mark.parametrize("size", [16, 32])
def test_small_images_are_trained_on_whole_at_whatever_size_they_are_asked_for(digits, size):
    options = DataOptions(data_set="digits", input_size=size, aa="none", color_jitter=0.0, reprob=0.0)
    trains, validates = train_transform(options, digits), eval_transform(options, digits)
    image = digits.train[3][0]
    torch.manual_seed(0)
    assert all(is_shift_of(trains(image), validates(image), size // 8) for _ in range(20))


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_seeded_draws_repeat_and_leave_no_trace():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(1, 2, 3):
        inside = draw()
    assert draw() == expected
    with seeded(1, 2, 3):
        assert draw() == inside
    with seeded(1, 2, 4):
        assert draw() != inside


def test_random_states_are_restored():
    state = random_state()
    first = draw()
    restore_random_state(state)
    assert draw() == first
