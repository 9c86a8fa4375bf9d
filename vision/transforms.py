"""Transforms from a Pillow image to a tensor: timm's, as the trainings of ConvNeXt and DeiT use them."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform
from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize

from datasets import DataOptions, ImageData
from runtime.errors import UserError

Transform = Callable[[Image.Image], torch.Tensor]
SMALL = 32  # pixels; images up to this size are not cropped


def train_transform(options: DataOptions, data: ImageData) -> Transform:
    """timm's training transform. Images of up to 32 pixels are shifted a little instead of randomly cropped.

    Raises:
        UserError: If timm does not understand the augmentation policy.
    """
    policy = None if options.aa in ("", "none") else options.aa
    if policy and re.search(r"[A-Za-z]\d{4}", policy):
        raise UserError(f"--aa {policy}: has a number above 999")
    try:
        transform = create_transform(
            input_size=options.input_size,
            is_training=True,
            hflip=0.5 if data.horizontal_flip else 0.0,
            color_jitter=options.color_jitter or None,  # type: ignore[arg-type]  # None: no jitter
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
    if options.input_size <= SMALL:  # a crop of so few pixels would show almost nothing
        transform.transforms[0] = resize_and_shift(options.input_size)
    for operation in augment_operations(transform):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    return transform


def resize_and_shift(size: int) -> Compose:
    """Resize to this size in pixels, pad by an eighth on each side (CIFAR's 4 of 32), and crop at a random place."""
    return Compose([Resize(size, InterpolationMode.BICUBIC), RandomCrop(size, padding=size // 8)])


def eval_transform(options: DataOptions, data: ImageData) -> Transform:
    """timm's evaluation transform: resize, centre crop, normalise; small images are not cropped."""
    crop = options.crop_pct or (1.0 if options.input_size <= SMALL else 224 / 256)
    return create_transform(options.input_size, interpolation="bicubic", mean=data.mean, std=data.std, crop_pct=crop)


def augment_operations(transform: Any) -> Iterator[Any]:
    """The single operations of timm's RandAugment, AutoAugment or AugMix in a transform."""
    for step in getattr(transform, "transforms", ()):
        operations = getattr(step, "ops", None) or [op for policy in getattr(step, "policy", ()) for op in policy]
        yield from (operation for operation in operations if hasattr(operation, "aug_fn"))


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's posterize, but never with 0 bits per channel: Pillow 13 refuses that, older versions drew black."""
    return image if bits >= 8 else ImageOps.posterize(image, max(bits, 1))
