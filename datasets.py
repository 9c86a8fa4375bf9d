"""Images: where they come from, how they are transformed, and loaders whose batches depend on no worker."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import RandomCrop

from runtime.errors import UserError
from runtime.options import option
from runtime.seeding import seeded

DATA_SETS = ("digits",)
INTERPOLATIONS = ("bicubic", "bilinear", "random")
REMODES = ("pixel", "rand", "const")

Key = tuple[int, int, int]  # epoch, position in the epoch, index of the image


@dataclass(frozen=True)
class DataOptions:
    """Images and how they are augmented."""

    data_set: str = option("digits", "where images come from", choices=DATA_SETS)
    input_size: int = option(224, "side of the square image in pixels", minimum=8)
    batch_size: int = option(64, "images a process and micro-step", minimum=1)
    num_workers: int = option(10, "loader processes, at most one a CPU; does not affect results", minimum=0)
    crop_pct: float | None = option(None, "share of the image's side that evaluation sees", above=0, maximum=1)
    train_interpolation: str = option("bicubic", "resizing in training", choices=INTERPOLATIONS)
    color_jitter: float = option(0.4, "strength of colour jitter, 0 for none; unused with --aa", minimum=0)
    aa: str = option("rand-m9-mstd0.5-inc1", "AutoAugment policy in timm's notation, or none")
    reprob: float = option(0.25, "probability that a part of an image is erased", minimum=0, maximum=1)
    remode: str = option("pixel", "what fills an erased part", choices=REMODES)
    recount: int = option(1, "erased parts an image, at most", minimum=1)
    mixup: float = option(0.8, "alpha of mixup, 0 for none", minimum=0)
    cutmix: float = option(1.0, "alpha of cutmix, 0 for none", minimum=0)
    mixup_prob: float = option(1.0, "probability that a batch is mixed", minimum=0, maximum=1)
    mixup_switch_prob: float = option(0.5, "probability of cutmix where both are on", minimum=0, maximum=1)
    smoothing: float = option(0.1, "label smoothing", minimum=0, maximum=1)

    CHECKS = (
        (
            lambda o: o.batch_size % 2 == 0 or not (o.mixup or o.cutmix),
            "--batch_size {batch_size}: mixup and cutmix pair images and need an even batch; or --mixup 0 --cutmix 0",
        ),
    )


@dataclass(frozen=True)
class ImageData:
    """Training and validation images with what a model and a transform must know of them."""

    train: Dataset
    validation: Dataset
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]  # of the pixels in [0, 1], a channel
    std: tuple[float, float, float]
    mirrors: bool  # whether an image seen in a mirror still belongs to its class

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


class LabelledImages(Dataset):
    """Pillow images in memory with their labels."""

    def __init__(self, images: list[Image.Image], labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], self.labels[index]


def open_images(options: DataOptions) -> ImageData:
    """The images that the options name.

    Raises:
        UserError: If they cannot be had.
    """
    return OPENERS[options.data_set](options)


def _open_digits(options: DataOptions) -> ImageData:
    """UCI handwritten digits: every fifth image of each class validates (1,433 train, 364 validate)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("--data_set digits: needs scikit-learn; pip install '.[digits]'") from None
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 to 16
    validates = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        validates[np.flatnonzero(labels == digit)[::5]] = True
    parts = []
    for members in (~validates, validates):
        shown = [Image.fromarray(p).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB") for p in pixels[members]]
        parts.append(LabelledImages(shown, labels[members].tolist()))
    names, grey = tuple(map(str, range(10))), (0.305, 0.305, 0.305)
    return ImageData(parts[0], parts[1], names, mean=grey, std=(0.348, 0.348, 0.348), mirrors=False)


OPENERS: dict[str, Callable[[DataOptions], ImageData]] = {"digits": _open_digits}


def train_transform(options: DataOptions, data: ImageData) -> Callable[[Image.Image], torch.Tensor]:
    """timm's training transform; up to 32 pixels a padded random crop takes the place of the resized one."""
    policy = None if options.aa in ("", "none") else options.aa
    try:
        transform = create_transform(
            input_size=options.input_size,
            is_training=True,
            hflip=0.5 if data.mirrors else 0.0,
            color_jitter=options.color_jitter or None,  # type: ignore[arg-type]  # timm takes None for none
            auto_augment=policy,
            interpolation=options.train_interpolation,
            re_prob=options.reprob,
            re_mode=options.remode,
            re_count=options.recount,
            mean=data.mean,
            std=data.std,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(f"--aa {options.aa}: timm does not understand this policy ({error})") from None
    if options.input_size <= 32:  # cutting an eighth of so few pixels out would leave nothing to see
        transform.transforms[0] = RandomCrop(options.input_size, padding=4)
    return transform


def eval_transform(options: DataOptions, data: ImageData) -> Callable[[Image.Image], torch.Tensor]:
    """timm's evaluation transform: resize, centre crop, normalise; small images are not cropped."""
    crop = options.crop_pct or (1.0 if options.input_size <= 32 else 224 / 256)
    return create_transform(options.input_size, interpolation="bicubic", mean=data.mean, std=data.std, crop_pct=crop)


class SeededImages(Dataset):
    """Transformed images by (epoch, position, index); the augmentation depends on seed, epoch and position alone."""

    def __init__(self, images: Any, transform: Callable[[Image.Image], torch.Tensor], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int]:
        epoch, position, index = key
        image, label = self.images[index]
        with seeded(self.seed, epoch, position):
            return self.transform(image), label


class PlainImages(Dataset):
    """Transformed images by index, for evaluation."""

    def __init__(self, images: Any, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys for one rank: each epoch its own permutation, no image twice, the last partial batch dropped.

    The images of a global batch depend on the seed, the epoch and their positions, not on how many ranks share
    them. Set `epoch` and `first_batch` before iterating; an epoch can start anywhere.
    """

    def __init__(self, images: int, batch_size: int, accumulate: int, rank: int, ranks: int, seed: int) -> None:
        self.images, self.batch_size, self.rank, self.ranks, self.seed = images, batch_size, rank, ranks, seed
        self.steps = images // (batch_size * accumulate * ranks)  # optimizer steps an epoch
        self.batches = self.steps * accumulate  # micro-batches a rank and epoch
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return self.batches - self.first_batch

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.images).tolist()
        for batch in range(self.first_batch, self.batches):
            start = (batch * self.ranks + self.rank) * self.batch_size
            yield [(self.epoch, place, order[place]) for place in range(start, start + self.batch_size)]

    @property
    def images_a_step(self) -> int:
        """Images of one optimizer step, all ranks and micro-steps together."""
        return self.batch_size * self.ranks * (self.batches // self.steps)


class TrainLoader:
    """Training batches of any epoch, from any batch on."""

    def __init__(self, images: SeededImages, batches: EpochBatches, workers: int, pin_memory: bool) -> None:
        self.batches = batches
        self.loader = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # its own: worker seeds are not drawn from the training's generator
        )

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return self.batches.steps

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch from `first_batch` on."""
        self.batches.epoch, self.batches.first_batch = epoch, first_batch
        return iter(self.loader)


def train_loader(
    options: DataOptions,
    data: ImageData,
    *,
    accumulate: int,
    rank: int,
    ranks: int,
    seed: int,
    pin_memory: bool,
) -> TrainLoader:
    """The loader of this rank's training batches.

    Raises:
        UserError: If the images do not fill one global batch.
    """
    images = SeededImages(data.train, train_transform(options, data), seed)
    count = len(data.train)  # type: ignore[arg-type]
    batches = EpochBatches(count, options.batch_size, accumulate, rank, ranks, seed)
    if batches.steps == 0:
        together = f" x {ranks} processes x {accumulate} micro-steps" if ranks * accumulate > 1 else ""
        raise UserError(f"--batch_size {options.batch_size}{together}: larger than the {count} training images")
    return TrainLoader(images, batches, usable_workers(options.num_workers), pin_memory)


def eval_loader(options: DataOptions, data: ImageData, *, rank: int, ranks: int, pin_memory: bool) -> DataLoader:
    """This rank's share of the validation images: every image is on exactly one rank."""
    images = PlainImages(data.validation, eval_transform(options, data))
    return DataLoader(
        images,
        batch_size=options.batch_size * 2,  # no gradients to hold
        sampler=range(rank, len(images), ranks),
        num_workers=usable_workers(options.num_workers),
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def usable_workers(wanted: int) -> int:
    """The wanted number of loader processes, at most one for each CPU this process may use."""
    return min(wanted, len(os.sched_getaffinity(0)))
