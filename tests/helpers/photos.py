"""Small class folders of ImageNet's shape, and files that are no images."""

from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, size: tuple[int, int] = (40, 32), hue: int = 0) -> Image.Image:
    """A picture of smooth colours, different for each seed; its class shows in the hue."""
    random = np.random.default_rng((seed, hue))
    coarse = random.integers(0, 120, (4, 4, 3), dtype=np.uint8)
    coarse[..., hue % 3] += 100
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def class_folders(root: Path, classes: int = 3, images: int = 8) -> Path:
    """ROOT/<class>/<image>.jpg."""
    for label in range(classes):
        folder = root / f"n{label:04d}"
        folder.mkdir(parents=True)
        for i in range(images):
            photo(i, hue=label).save(folder / f"{i:03d}.JPEG")
    return root


def imagenet(root: Path, classes: int = 3, train: int = 8, val: int = 2) -> Path:
    """ROOT/train/<class>/ and ROOT/val/<class>/."""
    class_folders(root / "train", classes, train)
    class_folders(root / "val", classes, val)
    return root


def write_bomb(path: Path) -> None:
    """A tiny file that says it is a picture of 30,000 x 30,000 pixels."""
    Image.new("1", (30000, 30000)).save(path, "PNG")


def bad_files(folder: Path) -> list[Path]:
    """One file of each kind that gives no image."""
    good = folder / "good.jpg"
    photo(0, (200, 200)).save(good)
    data = good.read_bytes()
    contents = {"text.jpg": b"no image at all", "empty.png": b"", "cut.jpg": data[: len(data) // 2]}
    paths = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        paths.append(folder / name)
    good.unlink()
    write_bomb(folder / "bomb.png")
    (folder / "vanished.jpg").symlink_to(folder / "nowhere.jpg")
    return [*paths, folder / "bomb.png", folder / "vanished.jpg"]


def odd_files(folder: Path) -> list[Path]:
    """One file of each kind that is an image, but not 8-bit RGB."""
    picture = photo(1)
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(grey).save(folder / "deep.png")
    picture.save(folder / "animated.gif", save_all=True, append_images=[photo(2), photo(3)])
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("LA").save(folder / "grey-alpha.png")
    picture.convert("P").save(folder / "palette.png", transparency=b"\x00\x80\xff")
    picture.convert("1").save(folder / "bits.png")
    return sorted(folder.iterdir())
