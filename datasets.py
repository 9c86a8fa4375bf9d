"""Images: the options for them, and where they come from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100

from image_folders import FolderImages, check_same_classes, scan
from runtime.errors import UserError
from runtime.options import option
from runtime.processes import Ranks
from runtime.tables import say

DATA_SETS = ("IMNET", "image_folder", "CIFAR10", "CIFAR100", "digits")
INTERPOLATIONS = ("bicubic", "bilinear", "random")
REMODES = ("pixel", "rand", "const")
MIXUP_MODES = ("batch", "pair", "elem")
Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class DataOptions:
    """Images and how they are augmented."""

    data_set: str = option("IMNET", "where images come from", choices=DATA_SETS)
    data_path: str = option(
        "", "IMNET: folder with train/<class>/ and val/<class>/; image_folder: <class>/; CIFAR: root"
    )
    eval_data_path: str = option("", "image_folder: folder of the validation images, <class>/")
    nb_classes: int | None = option(None, "number of classes, checked against the data", minimum=2)
    max_bad_images: int = option(100, "images that may be unreadable before the run ends", minimum=0)
    input_size: int = option(224, "side of the square image in pixels", minimum=8, maximum=16384, fixed="augmentation")
    batch_size: int = option(64, "images a process and micro-step", minimum=1, fixed="batch_size")
    num_workers: int = option(10, "loader processes, at most one a CPU; does not affect results", minimum=0)
    crop_pct: float | None = option(
        None, "share of the image's side that evaluation sees", minimum=0.1, maximum=1, fixed="augmentation"
    )
    train_interpolation: str = option("bicubic", "resizing in training", choices=INTERPOLATIONS, fixed="augmentation")
    color_jitter: float = option(
        0.4, "strength of colour jitter, 0 for none; unused with --aa", minimum=0, fixed="augmentation"
    )
    aa: str = option("rand-m9-mstd0.5-inc1", "AutoAugment policy in timm's notation, or none", fixed="augmentation")
    reprob: float = option(
        0.25, "probability that a part of an image is erased", minimum=0, maximum=1, fixed="augmentation"
    )
    remode: str = option("pixel", "what fills an erased part", choices=REMODES, fixed="augmentation")
    recount: int = option(1, "erased parts an image, at most", minimum=1, fixed="augmentation")
    mixup: float = option(0.8, "alpha of mixup, 0 for none", minimum=0, fixed="augmentation")
    cutmix: float = option(1.0, "alpha of cutmix, 0 for none", minimum=0, fixed="augmentation")
    cutmix_minmax: tuple[float, ...] = option(
        (), "smallest and largest share that cutmix cuts; overrides --cutmix", fixed="augmentation"
    )
    mixup_prob: float = option(1.0, "probability that a batch is mixed", minimum=0, maximum=1, fixed="augmentation")
    mixup_switch_prob: float = option(
        0.5, "probability of cutmix where both are on", minimum=0, maximum=1, fixed="augmentation"
    )
    mixup_mode: str = option(
        "batch", "what is mixed alike: a batch, a pair, an image", choices=MIXUP_MODES, fixed="augmentation"
    )
    smoothing: float = option(0.1, "label smoothing", minimum=0, maximum=1, fixed="augmentation")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in training."""
        return bool(self.mixup or self.cutmix or self.cutmix_minmax)

    CHECKS = (
        (
            lambda o: o.batch_size % 2 == 0 or not o.mixes,
            "--batch_size {batch_size}: mixup and cutmix pair images and need an even batch; or --mixup 0 --cutmix 0",
        ),
        (
            lambda o: len(o.cutmix_minmax) in (0, 2) and all(0 <= s <= 1 for s in o.cutmix_minmax),
            "--cutmix_minmax {cutmix_minmax}: expected two shares between 0 and 1",
        ),
        (
            lambda o: o.data_set == "digits" or o.data_path,
            "--data_set {data_set}: needs --data_path",
        ),
        (
            lambda o: (o.data_set == "image_folder") == bool(o.eval_data_path),
            "--eval_data_path {eval_data_path}: goes with --data_set image_folder, which needs it; not {data_set}",
        ),
    )


@dataclass(frozen=True)
class ImageData:
    """Training and validation images with what a model and a transform must know of them."""

    train: Dataset | None  # None: only evaluated
    validation: Dataset
    class_names: tuple[str, ...]
    mean: Rgb  # of the pixels in [0, 1], a channel
    std: Rgb
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


def open_images(options: DataOptions, ranks: Ranks, train: bool = True) -> ImageData:
    """The images that the options name; without `train` only those that validate.

    Raises:
        UserError: If they cannot be had, or --nb_classes contradicts them.
    """
    data = OPENERS[options.data_set](options, ranks, train)
    if options.nb_classes not in (None, data.classes):
        raise UserError(f"--nb_classes {options.nb_classes}: the data have {data.classes} classes")
    return data


def _open_imagenet(options: DataOptions, ranks: Ranks, train: bool) -> ImageData:
    root = Path(options.data_path)
    return _open_folders(root / "train" if train else None, root / "val", "--data_path", ranks)


def _open_image_folder(options: DataOptions, ranks: Ranks, train: bool) -> ImageData:
    trains = Path(options.data_path) if train else None
    return _open_folders(trains, Path(options.eval_data_path), "--eval_data_path", ranks)


def _open_folders(train: Path | None, validation: Path, validation_option: str, ranks: Ranks) -> ImageData:
    """Class folders of photographs, normalised as ImageNet is."""
    validates = scan(validation, validation_option)
    trains = scan(train, "--data_path") if train else None
    if trains:
        check_same_classes(trains, validates)
    for folders in (trains, validates):
        if folders and folders.others and ranks.is_main:
            files = f"{len(folders.others)} files are no images by their names, such as {folders.others[0]}"
            say(f"{folders.root}: {files}")
    images = FolderImages(trains) if trains else None
    return ImageData(
        images,
        FolderImages(validates),
        validates.class_names,
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
        mirrors=True,
    )


def _open_cifar(options: DataOptions, ranks: Ranks, train: bool) -> ImageData:
    """torchvision's CIFAR, from local files; the main process downloads them where they are missing."""
    kind: type[CIFAR10] = CIFAR10 if options.data_set == "CIFAR10" else CIFAR100
    outcome = ""
    if ranks.is_main:
        try:
            kind(options.data_path, train=False, download=True)
        except Exception as error:  # a missing network, a full disk, a broken archive
            outcome = str(error) or type(error).__name__
    if failure := ranks.gather(outcome)[0]:
        raise UserError(
            f"--data_path {options.data_path}: {options.data_set} is not there, nor to be downloaded: {failure}"
        )
    parts = [kind(options.data_path, train=train) for train in (True, False)]
    return ImageData(
        parts[0], parts[1], tuple(parts[0].classes), (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), mirrors=True
    )


def _open_digits(options: DataOptions, ranks: Ranks, train: bool) -> ImageData:
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


OPENERS: dict[str, Callable[[DataOptions, Ranks, bool], ImageData]] = {
    "IMNET": _open_imagenet,
    "image_folder": _open_image_folder,
    "CIFAR10": _open_cifar,
    "CIFAR100": _open_cifar,
    "digits": _open_digits,
}
