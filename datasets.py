"""Images with their labels: class folders, CIFAR, and digits."""

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100

from runtime.errors import UserError, first_line
from runtime.files import open_regular
from runtime.processes import Ranks
from runtime.tables import say
from vision.options import DataOptions

Batch = tuple[Tensor, Tensor]  # images (batch, channels, height, width), labels (batch,)

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


class BadImage(Exception):
    """A file that cannot be read as an image; the message is its path and the reason."""


@dataclass(frozen=True)
class ClassFolders:
    """The files under ROOT/<class>/."""

    root: Path
    class_names: tuple[str, ...]  # sorted; a class' label is its index
    files: list[tuple[str, int]]  # path below the root, label
    others: list[str]  # files whose endings are not those of images


class FolderImages(Dataset):
    """RGB images of class folders with their labels; reading one may raise BadImage."""

    def __init__(self, folders: ClassFolders) -> None:
        self.root = os.fsencode(folders.root)
        # Arrays, not lists: loader processes share memory with this one as long as no reference count in it changes.
        self.names = np.array([os.fsencode(name) for name, _ in folders.files])
        self.labels = np.array([label for _, label in folders.files], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.path(index)), int(self.labels[index])

    def path(self, index: int) -> str:
        """The file of an image."""
        return os.fsdecode(os.path.join(self.root, self.names[index]))


def read_image(path: str) -> Image.Image:
    """Read an image file as 8-bit RGB; of an animation, the first frame.

    If the conversion loses something, `info["converted"]` of the image has the path and what is lost.

    Raises:
        BadImage: If the file is gone, empty, truncated, not an image, or so large that it may be an attack.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_regular(path) as file, Image.open(file) as image:
                loss = what_is_lost(image)
                rgb = as_rgb(image)
                rgb.info = {"converted": f"{path}: {loss}"} if loss else {}
                return rgb
    except UnidentifiedImageError as error:
        raise BadImage(f"{path}: is not an image that Pillow can read") from error
    except Exception as error:  # Pillow's decoders raise errors of any kind on broken files
        raise BadImage(f"{path}: {first_line(error)}") from error


def what_is_lost(image: Image.Image) -> str:
    """A message on what 8-bit RGB cannot keep of an image; empty for the usual formats."""
    if getattr(image, "is_animated", False):
        return "an animation, of which only the first frame is used"
    if image.mode == "CMYK":
        return "CMYK, converted to RGB"
    if image.mode.startswith("I") or image.mode == "F":
        return f"more than 8 bits per pixel (mode {image.mode}), scaled down"
    return ""


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to 8-bit RGB; 16-bit grey levels are scaled down, not cut off."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        largest = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 255.0 if values.max() <= 255 else 65535.0
        return Image.fromarray((values.clip(0, largest) * (255 / largest)).round().astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def scan(root: Path, option: str) -> ClassFolders:
    """Find the images under ROOT/<class>/, also in subfolders.

    Args:
        root: The folder with one folder per class.
        option: The command-line option that named it, for messages.

    Raises:
        UserError: If the folder is missing, cannot be read or has no class folders, or a class folder has no image.
    """
    if not root.is_dir():
        raise UserError(f"{option} {root}: {'is not a folder' if root.exists() else 'no such folder'}")
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        with ThreadPoolExecutor(16) as threads:  # file systems answer many requests at once
            paths_by_class = list(threads.map(lambda name: _files_below(root / name, root), names))
    except OSError as error:
        raise UserError(f"{option} {root}: cannot be read: {error}") from error
    if not names:
        raise UserError(f"{option} {root}: has no class folders (expected {root}/<class>/<image>)")
    files, others = [], []
    for label, (name, paths) in enumerate(zip(names, paths_by_class, strict=True)):
        images = [path for path in paths if path.lower().endswith(ENDINGS)]
        if not images:
            raise UserError(f"{option} {root}: class folder {name} has no image")
        files += [(path, label) for path in images]
        others += [path for path in paths if not path.lower().endswith(ENDINGS)]
    return ClassFolders(root, tuple(names), files, others)


def _files_below(folder: Path, root: Path) -> list[str]:
    """Sorted paths, relative to root, of all files below a folder that are not hidden. Links to folders are followed.

    A link to one of its own parent folders is not followed: its images would be found again without end.
    """

    def raise_error(error: OSError) -> None:
        raise error

    def identity(path: str) -> tuple[int, int]:
        status = os.stat(path)
        return status.st_dev, status.st_ino

    paths, parents = [], {str(folder): {identity(str(folder))}}  # parents: identities of a folder and those around it
    for current, folders, files in os.walk(str(folder), onerror=raise_error, followlinks=True):
        identities = {name: identity(os.path.join(current, name)) for name in sorted(folders)}
        folders[:] = [name for name in identities if identities[name] not in parents[current]]
        parents |= {os.path.join(current, name): parents[current] | {identities[name]} for name in folders}
        del parents[current]
        relative = os.path.relpath(current, root)
        paths += [os.path.join(relative, name) for name in sorted(files) if not name.startswith(".")]
    return paths


def check_same_classes(train: ClassFolders, validation: ClassFolders) -> None:
    """Raise UserError if training and validation folders have different classes."""
    missing, extra = (
        sorted(set(a.class_names) - set(b.class_names)) for a, b in ((train, validation), (validation, train))
    )
    if missing or extra:
        parts = [f"{words} {_few(names)}" for words, names in (("lacks", missing), ("has in addition", extra)) if names]
        raise UserError(f"the class folders differ: {validation.root} {', and '.join(parts)} ({train.root})")


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class ImageData:
    """Training and validation images, and what models and transforms must know about them."""

    train: Dataset | None  # None if the run only evaluates
    validation: Dataset
    class_names: tuple[str, ...]
    mean: Rgb  # of pixels in [0, 1], per channel
    std: Rgb
    horizontal_flip: bool  # whether training may flip images: a flipped one still belongs to its class

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
    """Open the images that the options name; without `train`, only the validation images.

    Raises:
        UserError: If they cannot be opened, or --nb_classes contradicts them.
    """
    data = OPENERS[options.data_set](options, ranks, train)
    if options.nb_classes not in (None, data.classes):
        raise UserError(f"--nb_classes {options.nb_classes}: the data have {data.classes} classes")
    return data


def _open_imagenet(options: DataOptions, ranks: Ranks, train: bool) -> ImageData:
    root = Path(options.data_path)
    return _open_folders(root / "train" if train else None, root / "val", "--data_path", ranks)


def _open_image_folder(options: DataOptions, ranks: Ranks, train: bool) -> ImageData:
    train_root = Path(options.data_path) if train else None
    return _open_folders(train_root, Path(options.eval_data_path), "--eval_data_path", ranks)


def _open_folders(train: Path | None, validation: Path, validation_option: str, ranks: Ranks) -> ImageData:
    """Open class folders of photographs, normalised like ImageNet."""
    validation_folders = scan(validation, validation_option)
    train_folders = scan(train, "--data_path") if train else None
    if train_folders:
        check_same_classes(train_folders, validation_folders)
    for folders in (train_folders, validation_folders):
        if folders and folders.others and ranks.is_main:
            ignored = f"{len(folders.others)} files without an image's ending, such as {folders.others[0]}"
            say(f"{folders.root}: ignored {ignored}")
    return ImageData(
        FolderImages(train_folders) if train_folders else None,
        FolderImages(validation_folders),
        validation_folders.class_names,
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
        horizontal_flip=True,
    )


def _open_cifar(options: DataOptions, ranks: Ranks, train: bool) -> ImageData:
    """Open torchvision's CIFAR from local files; the main process downloads them if they are missing."""
    data_class: type[CIFAR10] = CIFAR10 if options.data_set == "CIFAR10" else CIFAR100
    problem = ""
    if ranks.is_main:
        try:
            data_class(options.data_path, train=False, download=True)
        except Exception as error:  # a missing network, a full disk, a broken archive
            problem = str(error) or type(error).__name__
    if failure := ranks.gather(problem)[0]:
        raise UserError(
            f"--data_path {options.data_path}: {options.data_set} is not there and cannot be downloaded: {failure}"
        )
    parts = [data_class(options.data_path, train=train) for train in (True, False)]
    return ImageData(
        parts[0], parts[1], tuple(parts[0].classes), (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), horizontal_flip=True
    )


def _open_digits(options: DataOptions, ranks: Ranks, train: bool) -> ImageData:
    """Open UCI's handwritten digits: 1,433 for training, and every fifth one of each class, 364, for validation."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("--data_set digits: needs scikit-learn; pip install '.[digits]'") from None
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 to 16
    is_validation = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        is_validation[np.flatnonzero(labels == digit)[::5]] = True
    parts = []
    for members in (~is_validation, is_validation):
        small = map(Image.fromarray, pixels[members])
        pictures = [image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB") for image in small]
        parts.append(LabelledImages(pictures, labels[members].tolist()))
    names, grey = tuple(map(str, range(10))), (0.305, 0.305, 0.305)
    return ImageData(parts[0], parts[1], names, mean=grey, std=(0.348, 0.348, 0.348), horizontal_flip=False)


# A new one also needs its name in vision.options.DATA_SETS and, if its class is new, a case in vision/fingerprints.py.
OPENERS: dict[str, Callable[[DataOptions, Ranks, bool], ImageData]] = {
    "IMNET": _open_imagenet,
    "image_folder": _open_image_folder,
    "CIFAR10": _open_cifar,
    "CIFAR100": _open_cifar,
    "digits": _open_digits,
}
