"""The fingerprint of images: it does not depend on their folder, and differs if the images differ."""

import hashlib
import json
import os
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10

from datasets import FolderImages, ImageData, LabelledImages, open_regular

READ_FILES = 64  # files per part whose contents are hashed; hashing all of ImageNet would take longer than many runs


def fingerprint(data: ImageData) -> str:
    """Hexadecimal SHA-256 of the training and validation images.

    For class folders it covers the classes, the order of the files, every file's path below the root and label, and
    the contents of up to 64 evenly spaced files per part. For images in memory it covers all pixels and labels.
    """
    digest = hashlib.sha256()
    _add(digest, json.dumps([data.class_names, data.mean, data.std, data.horizontal_flip]).encode())
    for images in (data.train, data.validation):
        _add_images(digest, images)
    return digest.hexdigest()


def _add_images(digest: Any, images: Any) -> None:
    if isinstance(images, FolderImages):
        # Names are padded to the longest one; without that width (in `dtype.str`) other names could give these bytes.
        for part in (images.names.dtype.str.encode(), images.names.tobytes(), images.labels.tobytes()):
            _add(digest, part)
        for index in np.linspace(0, len(images) - 1, min(len(images), READ_FILES)).round().astype(int):
            _add(digest, _content(os.path.join(images.root, images.names[index])))
    elif isinstance(images, LabelledImages):
        for image in images.images:
            _add(digest, repr((image.mode, image.size)).encode() + image.tobytes())
        _add(digest, json.dumps(images.labels).encode())
    elif isinstance(images, CIFAR10):  # CIFAR100 is a subclass
        _add(digest, images.data.tobytes())
        _add(digest, json.dumps([int(label) for label in images.targets]).encode())
    elif images is not None:
        raise TypeError(f"no fingerprint for {type(images).__name__}")


def _add(digest: Any, part: bytes) -> None:
    """Hash the length of a part before its content, so that different parts never give the same bytes."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _content(path: bytes) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError:  # training skips such files too
        return b"missing"
