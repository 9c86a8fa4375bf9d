"""The fingerprint of images: the same wherever they lie, another one if they are others."""

import hashlib
import json
import os
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10

from datasets import FolderImages, ImageData, LabelledImages, open_regular

READ_FILES = 64  # contents of so many files of each part; all of ImageNet would take longer than many a run


def fingerprint(data: ImageData) -> str:
    """Hexadecimal SHA-256 of what training and validation images are.

    Of class folders: the classes, every file's name below its root, label and place, and the contents of up to 64
    evenly spaced files of each part. Of images in memory: all pixels and labels.
    """
    digest = hashlib.sha256()
    _add(digest, json.dumps([data.class_names, data.mean, data.std, data.mirrors]).encode())
    for images in (data.train, data.validation):
        _add_images(digest, images)
    return digest.hexdigest()


def _add_images(digest: Any, images: Any) -> None:
    if isinstance(images, FolderImages):
        # Padded to the width of the longest name: without the width other names could give the same bytes.
        for part in (images.names.dtype.str.encode(), images.names.tobytes(), images.labels.tobytes()):
            _add(digest, part)
        for index in np.linspace(0, len(images) - 1, min(len(images), READ_FILES)).round().astype(int):
            _add(digest, _content(os.path.join(images.root, images.names[index])))
    elif isinstance(images, LabelledImages):
        for image in images.images:
            _add(digest, repr((image.mode, image.size)).encode() + image.tobytes())
        _add(digest, json.dumps(images.labels).encode())
    elif isinstance(images, CIFAR10):  # CIFAR100 is one too
        _add(digest, images.data.tobytes())
        _add(digest, json.dumps([int(label) for label in images.targets]).encode())
    elif images is not None:
        raise TypeError(f"no fingerprint for {type(images).__name__}")


def _add(digest: Any, part: bytes) -> None:
    """Length before content, so that no two sequences of parts run together to the same bytes."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _content(path: bytes) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError:  # training survives such files too
        return b"missing"
