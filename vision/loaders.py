"""Loaders whose batches depend on no worker, and which survive images that cannot be read."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from tqdm import tqdm

from datasets import BadImage, Batch, DataOptions, FolderImages, ImageData
from runtime.errors import UserError, printable
from runtime.preemption import outlive_signals
from runtime.seeding import seeded
from vision.transforms import Transform, eval_transform, train_transform

Key = tuple[int, int, int]  # epoch, position in the epoch, index of the image
# image (None: not to be had), label, files that could not be read, files that had to be converted
Sample = tuple[torch.Tensor | None, int, list[str], list[str]]
NAMED_CONVERTED = 20  # a whole folder of 16-bit images need not be listed


class SeededImages(Dataset):
    """Transformed images by (epoch, position, index); the augmentation depends on seed, epoch and position alone.

    An image that cannot be read gives way to the next one that can.
    """

    def __init__(self, images: Any, transform: Transform, seed: int, max_bad: int) -> None:
        self.images, self.transform, self.seed, self.max_bad = images, transform, seed, max_bad

    def __getitem__(self, key: Key) -> Sample:
        epoch, position, index = key
        bad: list[str] = []
        while len(bad) <= min(self.max_bad, len(self.images)):
            try:
                image, label = self.images[(index + len(bad)) % len(self.images)]
            except BadImage as error:
                bad.append(str(error))
                continue
            with seeded(self.seed, epoch, position):
                return self.transform(image), label, bad, converted(image)
        return None, 0, bad, []


class PlainImages(Dataset):
    """Transformed images by index, for evaluation; one that cannot be read is left out, not replaced."""

    def __init__(self, images: Any, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, label = self.images[index]
        except BadImage as error:
            return None, 0, [str(error)], []
        return self.transform(image), label, [], converted(image)


def converted(image: Any) -> list[str]:
    """What `image_folders.read_image` noted about an image."""
    note = image.info.get("converted")
    return [note] if note else []


def collate(samples: Sequence[Sample]) -> tuple[Batch | None, list[str], list[str]]:
    """A batch of the images there are, what could not be read, and what had to be converted."""
    bad = [each for _, _, messages, _ in samples for each in messages]
    changed = [each for _, _, _, messages in samples for each in messages]
    there = [(image, label) for image, label, _, _ in samples if image is not None]
    return (default_collate(there) if there else None), bad, changed


class BadImages:
    """Counts the files that cannot be read, names each once, and ends the run when they are too many.

    Files that had to be converted are counted and named too, but do no harm.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen: set[str] = set()
        self.converted: set[str] = set()

    def note(self, messages: Sequence[str], changed: Sequence[str] = ()) -> None:
        """Take note of files; raise UserError beyond the limit."""
        _name_new(changed, self.converted, "converted", NAMED_CONVERTED)
        _name_new(messages, self.seen, "skipped", self.most + 1)
        if len(self.seen) > self.most:
            last = messages[-1]
            message = f"--max_bad_images {self.most}: {len(self.seen)} images cannot be read, the last {last}"
            raise UserError(message, here_only=True)


def _name_new(messages: Sequence[str], seen: set[str], what: str, names: int) -> None:
    """Name files that were not seen before, but not more than so many."""
    for message in messages:
        if message not in seen:  # path and reason: a path alone may hold the colon behind it
            seen.add(message)
            if len(seen) <= names:
                tqdm.write(f"warning: {what} image {len(seen)}: {printable(message)}", file=sys.stderr)
            if len(seen) == names and what == "converted":
                tqdm.write("warning: further converted images are only counted", file=sys.stderr)


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys for one rank: each epoch a permutation, no image twice, the last partial batch dropped.

    The images of a global batch depend on the seed, the epoch and their positions, not on how many ranks share
    them. Set `epoch` and `first_batch` before iterating; an epoch can start anywhere.
    """

    def __init__(self, images: int, batch_size: int, accumulate: int, rank: int, ranks: int, seed: int) -> None:
        self.images, self.batch_size, self.rank, self.ranks, self.seed = images, batch_size, rank, ranks, seed
        self.steps = images // (batch_size * accumulate * ranks)  # optimizer steps an epoch
        self.batches = self.steps * accumulate  # micro-batches a rank and epoch
        self.images_a_step = batch_size * accumulate * ranks
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return self.batches - self.first_batch

    def __iter__(self) -> Iterator[list[Key]]:
        return self.keys(self.epoch, self.first_batch, self.batches)

    def keys(self, epoch: int, first: int, last: int) -> Iterator[list[Key]]:
        """The keys of the batches from `first` up to, not including, `last` of an epoch."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.images)
        for batch in range(first, last):
            start = (batch * self.ranks + self.rank) * self.batch_size
            yield [(epoch, place, int(order[place])) for place in range(start, start + self.batch_size)]


class TrainLoader:
    """Training batches of any epoch, from any batch on."""

    def __init__(self, images: SeededImages, loader: DataLoader, batches: EpochBatches, bad: BadImages) -> None:
        self.images, self.loader, self.batches, self.bad = images, loader, batches, bad

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return self.batches.steps

    def close(self) -> None:
        """End the loader processes now; left to garbage collection, each would take 5 seconds."""
        del self.loader

    def name_of(self, key: Key) -> str:
        """An image's file or, where images have none, its index."""
        source = self.images.images
        return source.path(key[2]) if isinstance(source, FolderImages) else str(key[2])

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_batch` on."""
        self.batches.epoch, self.batches.first_batch = epoch, first_batch
        for batch, bad, changed in self.loader:
            self.bad.note(bad, changed)
            if batch is None:
                raise UserError(f"--data_path: no image of a batch can be read, the last {bad[-1]}", here_only=True)
            yield batch

    def again(self, step: int, accumulate: int) -> tuple[list[Batch], list[list[Key]]]:
        """The micro-batches of an optimizer step and the keys of their images, loaded in this process."""
        epoch, done = divmod(step, self.steps)
        keys = list(self.batches.keys(epoch, done * accumulate, (done + 1) * accumulate))
        batches = [collate([self.images[key] for key in batch])[0] for batch in keys]
        return [batch for batch in batches if batch is not None], keys


class EvalLoader:
    """This rank's share of the validation images: every image is on exactly one rank.

    `most_batches` is the number of batches of the rank that has the most.
    """

    def __init__(self, loader: DataLoader, bad: BadImages, most_batches: int) -> None:
        self.loader, self.bad, self.most_batches = loader, bad, most_batches

    def __iter__(self) -> Iterator[Batch]:
        for batch, bad, changed in self.loader:
            self.bad.note(bad, changed)
            if batch is not None:
                yield batch

    def close(self) -> None:
        """End the loader processes now; left to garbage collection, each would take 5 seconds."""
        del self.loader


def train_loader(
    options: DataOptions, data: ImageData, *, accumulate: int, rank: int, ranks: int, seed: int, pin_memory: bool
) -> TrainLoader:
    """The loader of this rank's training batches.

    Raises:
        UserError: If the images do not fill one global batch.
    """
    count = len(data.train)  # type: ignore[arg-type]
    batches = EpochBatches(count, options.batch_size, accumulate, rank, ranks, seed)
    if batches.steps == 0:
        together = f" x {ranks} processes x {accumulate} micro-steps" if ranks * accumulate > 1 else ""
        raise UserError(f"--batch_size {options.batch_size}{together}: larger than the {count} training images")
    images = SeededImages(data.train, train_transform(options, data), seed, options.max_bad_images)
    loader: DataLoader = DataLoader(images, batch_sampler=batches, **_loading(options, pin_memory))
    return TrainLoader(images, loader, batches, BadImages(options.max_bad_images))


def eval_loader(options: DataOptions, data: ImageData, *, rank: int, ranks: int, pin_memory: bool) -> EvalLoader:
    """The loader of this rank's validation images."""
    images = PlainImages(data.validation, eval_transform(options, data))
    share = range(rank, len(images), ranks)
    size = options.batch_size * 2  # no gradients to hold
    loader: DataLoader = DataLoader(images, batch_size=size, sampler=share, **_loading(options, pin_memory))
    most = math.ceil(math.ceil(len(images) / ranks) / size)
    return EvalLoader(loader, BadImages(options.max_bad_images), most)


def _loading(options: DataOptions, pin_memory: bool) -> dict[str, Any]:
    workers = usable_workers(options.num_workers)
    return {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "collate_fn": collate,
        "worker_init_fn": outlive_signals,
        "generator": torch.Generator(),  # its own: worker seeds are not drawn from the training's generator
    }


def usable_workers(wanted: int) -> int:
    """The wanted number of loader processes, at most one for each CPU this process may use."""
    return min(wanted, len(os.sched_getaffinity(0)))
