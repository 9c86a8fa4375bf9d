"""Images per second of our training loader compared with a DataLoader of torchvision's folder and timm's transform.

    python -m benchmarks.loader --data FOLDER [--workers N] [--rounds R] [--json OUT]

FOLDER contains <class>/<image>. Both sides have the same augmentation (the defaults of main.py: RandAugment, random
erasing, bicubic, 224 pixels), shuffle, keep their workers between epochs, and take turns in one process. The
photographs are repeated within an epoch, so that its start and end take little of the time. Ratios are our speed
divided by the plain one: above 1 ours is faster.

The plain side has our only patch of timm's transform: its posterize asks Pillow for 0 bits in about one of a thousand
images, which Pillow 13 refuses with a ValueError.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, auto_augment, create_transform
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder

from benchmarks.paired import interval, parser_of, ratios, row, take_turns, verdict, write_json
from datasets import DataOptions, open_images
from runtime.processes import Ranks
from runtime.tables import say, table
from vision.loaders import train_loader, usable_workers
from vision.transforms import augment_operations, posterize


def main() -> None:
    """Measure, print a table, and write JSON if --json is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", required=True, help="folder of class folders of photographs")
    parser.add_argument("--workers", type=int, default=2, help="loader processes, at most one per CPU")
    parser.add_argument("--batch_size", type=int, default=32, help="images per batch")
    parser.add_argument("--images", type=int, default=640, help="images per side and round, about")
    parser.add_argument("--rounds", type=int, default=15, help="paired measurements")
    args = parser.parse_args()
    options = DataOptions(
        data_set="image_folder", data_path=args.data, eval_data_path=args.data,
        batch_size=args.batch_size, num_workers=usable_workers(args.workers),
    )  # fmt: skip
    result = measure(options, args.images, args.rounds)
    say(f"{result['images']} images per round, batches of {options.batch_size}, {options.num_workers} workers")
    rows = [row(side, result[side]) for side in ("ours", "plain")] + [row("ours / plain", result["ratios"])]
    say(table(["images/s; ratio", "min", "median", "max"], rows))
    say(verdict("ours / plain", result["ratios"]))
    write_json(args.json, result)


def measure(options: DataOptions, images: int, rounds: int) -> dict[str, Any]:
    """Images per second of both sides, and their ratios pair by pair."""
    ours, plain = our_epochs(options, images), plain_epochs(options, images)
    speeds = take_turns({"ours": lambda: speed(ours()), "plain": lambda: speed(plain())}, rounds)
    quotients = ratios(speeds["ours"], speeds["plain"])
    return {
        "images": images // options.batch_size * options.batch_size,
        "batch_size": options.batch_size,
        "workers": options.num_workers,
        **speeds,
        "ratios": quotients,
        "interval": interval(quotients),
    }


def our_epochs(options: DataOptions, images: int) -> Callable[[], Iterable[Any]]:
    """Our loader as main.py builds it; each call gives the next epoch."""
    data = open_images(options, Ranks(0, 1, torch.device("cpu")))
    data = replace(data, train=repeated(data.train, images))
    loader = train_loader(options, data, accumulate=1, rank=0, ranks=1, seed=0, pin_memory=False)
    numbers = itertools.count()
    return lambda: loader.epoch(next(numbers))


def plain_epochs(options: DataOptions, images: int) -> Callable[[], Iterable[Any]]:
    """A loader of only torchvision and timm; each call gives the next epoch."""
    transform: Any = create_transform(
        input_size=options.input_size,
        is_training=True,
        auto_augment=options.aa,
        interpolation=options.train_interpolation,
        re_prob=options.reprob,
        re_mode=options.remode,
        re_count=options.recount,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )
    for operation in augment_operations(transform):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    loader: DataLoader = DataLoader(
        repeated(ImageFolder(options.data_path, transform), images),
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.num_workers,
        persistent_workers=options.num_workers > 0,
    )
    return lambda: loader


def repeated(data: Any, images: int) -> Dataset:
    """The data, repeated up to this number of images."""
    whole: Dataset = ConcatDataset([data] * math.ceil(images / len(data)))
    return Subset(whole, range(images))


def speed(batches: Iterable[Any]) -> float:
    """Images per second of an epoch, including its start."""
    began = time.perf_counter()
    images = sum(len(labels) for _, labels in batches)
    return images / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
