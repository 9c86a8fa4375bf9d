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
from runtime.processes import Ranks
from runtime.tables import say
from vision_options import DataOptions

Rgb = tuple[float, float, float]


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
