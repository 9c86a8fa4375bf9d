"""Loaders whose batches do not depend on the number of workers, and which skip images that cannot be read."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
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
# image, shape (3, height, width) (None: unreadable), label, messages on unreadable files and on converted files
Sample = tuple[torch.Tensor | None, int, list[str], list[str]]
NAMED_CONVERTED = 20  # further ones are only counted: a whole folder of 16-bit images need not be listed


class SeededImages(Dataset):
    """Transformed images by (epoch, position, index). The augmentation depends only on seed, epoch and position.

    An image that cannot be read is replaced by the next one that can.
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
                return self.transform(image), label, bad, conversion_notes(image)
        return None, 0, bad, []


class PlainImages(Dataset):
    """Transformed images by index, for evaluation. An image that cannot be read is left out, not replaced."""

    def __init__(self, images: Any, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, label = self.images[index]
        except BadImage as error:
            return None, 0, [str(error)], []
        return self.transform(image), label, [], conversion_notes(image)


def conversion_notes(image: Any) -> list[str]:
    """The message of `datasets.read_image` on how it converted an image; empty if it did not."""
    note = image.info.get("converted")
    return [note] if note else []


def collate(samples: Sequence[Sample]) -> tuple[Batch | None, list[str], list[str]]:
    """A batch of the readable images (None if there are none), and messages on unreadable and converted files."""
    bad = [message for _, _, messages, _ in samples for message in messages]
    changed = [message for _, _, _, messages in samples for message in messages]
    readable = [(image, label) for image, label, _, _ in samples if image is not None]
    return (default_collate(readable) if readable else None), bad, changed


class BadImages:
    """Counts the files that cannot be read, names each once, and ends the run if there are more than `limit`.

    Converted files are counted and named too, but never end the run.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: set[str] = set()
        self.converted: set[str] = set()

    def note(self, messages: Sequence[str], changed: Sequence[str] = ()) -> None:
        """Count files; raise UserError if more than `limit` cannot be read."""
        _name_new(changed, self.converted, "converted", NAMED_CONVERTED)
        _name_new(messages, self.seen, "skipped", self.limit + 1)
        if len(self.seen) > self.limit:
            last = messages[-1]
            message = f"--max_bad_images {self.limit}: {len(self.seen)} images cannot be read, the last {last}"
            raise UserError(message)


def _name_new(messages: Sequence[str], seen: set[str], action: str, limit: int) -> None:
    """Name files that were not seen before, up to `limit` of them."""
    for message in messages:
        if message not in seen:  # the whole message: a path may contain a colon itself
            seen.add(message)
            if len(seen) <= limit:
                tqdm.write(f"warning: {action} image {len(seen)}: {printable(message)}", file=sys.stderr)
            if len(seen) == limit and action == "converted":
                tqdm.write("warning: further converted images are only counted", file=sys.stderr)


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys for one rank. An epoch is a permutation: no image comes twice; the last partial batch is dropped.

    The images of a global batch depend on the seed, the epoch and their positions, not on the number of ranks. Set
    `epoch` and `first_batch` before iterating: an epoch can start at any batch.
    """

    def __init__(self, images: int, batch_size: int, accumulate: int, rank: int, ranks: int, seed: int) -> None:
        self.images, self.batch_size, self.rank, self.ranks, self.seed = images, batch_size, rank, ranks, seed
        self.steps = images // (batch_size * accumulate * ranks)  # optimizer steps per epoch
        self.batches = self.steps * accumulate  # micro-batches per rank and epoch
        self.images_per_step = batch_size * accumulate * ranks
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return self.batches - self.first_batch

    def __iter__(self) -> Iterator[list[Key]]:
        return self.keys(self.epoch, self.first_batch, self.batches)

    def keys(self, epoch: int, first: int, last: int) -> Iterator[list[Key]]:
        """The keys of an epoch's batches from number `first` up to number `last`, which is excluded."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.images)
        for batch in range(first, last):
            start = (batch * self.ranks + self.rank) * self.batch_size
            yield [(epoch, position, int(order[position])) for position in range(start, start + self.batch_size)]


class TrainLoader:
    """Loads the training batches of any epoch, starting with any batch."""

    def __init__(self, images: SeededImages, loader: DataLoader, batches: EpochBatches, bad: BadImages) -> None:
        self.images, self.loader, self.batches, self.bad = images, loader, batches, bad

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return self.batches.steps

    def close(self) -> None:
        """End the loader processes now; if garbage collection ended them, each would take 5 seconds."""
        del self.loader

    def name_of(self, key: Key) -> str:
        """The file of an image, or its index if the images have no files."""
        source = self.images.images
        return source.path(key[2]) if isinstance(source, FolderImages) else str(key[2])

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Load the batches of an epoch, starting with number `first_batch`."""
        self.batches.epoch, self.batches.first_batch = epoch, first_batch
        for batch, bad, changed in self.loader:
            self.bad.note(bad, changed)
            if batch is None:
                raise UserError(f"--data_path: no image of a batch can be read, the last {bad[-1]}")
            yield batch

    def batches_of_step(self, step: int, accumulate: int) -> tuple[list[Batch], list[list[Key]]]:
        """Load the micro-batches of an optimizer step again, in this process; also return the keys of their images."""
        epoch, done = divmod(step, self.steps)
        keys = list(self.batches.keys(epoch, done * accumulate, (done + 1) * accumulate))
        batches = [collate([self.images[key] for key in batch])[0] for batch in keys]
        return [batch for batch in batches if batch is not None], keys


class EvalLoader:
    """Loads this rank's share of the validation images: every image is on exactly one rank.

    `max_batches` is the largest number of batches on any rank.
    """

    def __init__(self, loader: DataLoader, bad: BadImages, max_batches: int) -> None:
        self.loader, self.bad, self.max_batches = loader, bad, max_batches

    def __iter__(self) -> Iterator[Batch]:
        for batch, bad, changed in self.loader:
            self.bad.note(bad, changed)
            if batch is not None:
                yield batch

    def close(self) -> None:
        """End the loader processes now; if garbage collection ended them, each would take 5 seconds."""
        del self.loader


def train_loader(
    options: DataOptions, data: ImageData, *, accumulate: int, rank: int, ranks: int, seed: int, pin_memory: bool
) -> TrainLoader:
    """Build the loader of this rank's training batches.

    Raises:
        UserError: If there are fewer images than one global batch needs.
    """
    count = len(data.train)  # type: ignore[arg-type]
    batches = EpochBatches(count, options.batch_size, accumulate, rank, ranks, seed)
    if batches.steps == 0:
        factors = f" x {ranks} processes x {accumulate} micro-steps" if ranks * accumulate > 1 else ""
        raise UserError(f"--batch_size {options.batch_size}{factors}: larger than the {count} training images")
    images = SeededImages(data.train, train_transform(options, data), seed, options.max_bad_images)
    loader: DataLoader = DataLoader(images, batch_sampler=batches, **_loader_arguments(options, pin_memory))
    return TrainLoader(images, loader, batches, BadImages(options.max_bad_images))


def eval_loader(options: DataOptions, data: ImageData, *, rank: int, ranks: int, pin_memory: bool) -> EvalLoader:
    """Build the loader of this rank's validation images."""
    images = PlainImages(data.validation, eval_transform(options, data))
    share = range(rank, len(images), ranks)
    size = options.batch_size * 2  # twice as many: no gradients are in memory
    loader: DataLoader = DataLoader(images, batch_size=size, sampler=share, **_loader_arguments(options, pin_memory))
    max_batches = math.ceil(math.ceil(len(images) / ranks) / size)
    return EvalLoader(loader, BadImages(options.max_bad_images), max_batches)


def _loader_arguments(options: DataOptions, pin_memory: bool) -> dict[str, Any]:
    workers = usable_workers(options.num_workers)
    return {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "collate_fn": collate,
        "worker_init_fn": partial(outlive_signals, trainer=os.getpid()),
        "generator": torch.Generator(),  # separate, so that worker seeds are not drawn from the training's generator
    }


def usable_workers(wanted: int) -> int:
    """The wanted number of loader processes, but at most this process' share of the CPUs of its node's processes."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(wanted, max(1, len(os.sched_getaffinity(0)) // processes))
