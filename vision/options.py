"""The options of the image trainer, main.py. Imports neither torch nor any other slow module."""

import ast
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime.command import read_command
from runtime.decay_options import DecayOptions
from runtime.errors import UserError
from runtime.options import option
from runtime.run_options import SHARED_CHECKS, EmaOptions, OptimizerOptions, RunOptions

DESCRIPTION = """Train and evaluate a timm model whose weight decay adapts to each module.

  python main.py --data_set digits --decay alphadecay --output_dir runs/first
  python main.py --eval --resume runs/first
  torchrun --nproc_per_node=2 main.py ..."""
DATA_SETS = ("IMNET", "image_folder", "CIFAR10", "CIFAR100", "digits")  # the keys of datasets.OPENERS
INTERPOLATIONS = ("bicubic", "bilinear", "random")
REMODES = ("pixel", "rand", "const")
MIXUP_MODES = ("batch", "pair", "elem")
# Keywords that --model_kwargs must not set, because config.json and grid files can contain it too: those that load
# files, and those that other options set.
FORBIDDEN_KEYWORDS = {
    "checkpoint_path": "loads a file; give --finetune",
    "cache_dir": "names a folder of downloads",
    "pretrained": "loads weights; give --pretrained or --finetune",
    "num_classes": "the data set determines the number of classes",
    "img_size": "give --input_size",
    "drop_path_rate": "give --drop_path",
    "features_only": "removes the classifier",
    "scriptable": "is not for training",
    "exportable": "is not for training",
}


def parse_keywords(words: tuple[str, ...]) -> dict[str, Any]:
    """Turn KEY=VALUE words into keyword arguments. A value that is not a Python literal is text."""
    keywords: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--model_kwargs {word}: expected KEY=VALUE")
        if reason := FORBIDDEN_KEYWORDS.get("pretrained" if key.startswith("pretrained") else key):
            raise UserError(f"--model_kwargs {word}: {reason}")
        try:
            keywords[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            keywords[key] = text
        if isinstance(keywords[key], int) and keywords[key] < 0:
            raise UserError(f"--model_kwargs {word}: must be at least 0")
    return keywords


@dataclass(frozen=True)
class DataOptions:
    """Images and how they are augmented."""

    TITLE = "Data"
    FIXED = "augmentation"
    data_set: str = option("IMNET", "where images come from", choices=DATA_SETS, fixed="")
    data_path: str = option(
        "",
        "IMNET: folder with train/<class>/ and val/<class>/; image_folder: folder with <class>/; CIFAR: root folder",
        metavar="FOLDER",
        fixed="",
    )
    eval_data_path: str = option(
        "", "image_folder: folder of the validation images, with <class>/", metavar="FOLDER", fixed=""
    )
    nb_classes: int | None = option(None, "number of classes, checked against the data", minimum=2, fixed="")
    max_bad_images: int = option(100, "unreadable images that are skipped; one more ends the run", minimum=0, fixed="")
    input_size: int = option(224, "side of the square image in pixels", minimum=8, maximum=16384)
    batch_size: int = option(64, "images per process and micro-step", minimum=1, fixed="batch_size")
    num_workers: int = option(10, "loader processes, at most one per CPU; does not affect results", minimum=0, fixed="")
    crop_pct: float | None = option(None, "share of the image's side that evaluation sees", minimum=0.1, maximum=1)
    train_interpolation: str = option("bicubic", "resizing in training", choices=INTERPOLATIONS)
    color_jitter: float = option(0.4, "strength of colour jitter, 0 for none; ignored if --aa is a policy", minimum=0)
    aa: str = option("rand-m9-mstd0.5-inc1", "AutoAugment policy in timm's notation, or none", metavar="POLICY")
    reprob: float = option(0.25, "probability that a part of an image is erased", minimum=0, maximum=1)
    remode: str = option("pixel", "what fills an erased part", choices=REMODES)
    recount: int = option(1, "erased parts per image, at most", minimum=1, maximum=100)
    mixup: float = option(0.8, "alpha of mixup, 0 for none", minimum=0)
    cutmix: float = option(1.0, "alpha of cutmix, 0 for none", minimum=0)
    cutmix_minmax: tuple[float, ...] = option((), "smallest and largest share that cutmix cuts; overrides --cutmix")
    mixup_prob: float = option(1.0, "probability that a batch is mixed", minimum=0, maximum=1)
    mixup_switch_prob: float = option(0.5, "probability of cutmix if both are on", minimum=0, maximum=1)
    mixup_mode: str = option(
        "batch", "what is mixed in the same ratio: a batch, a pair, or each image on its own", choices=MIXUP_MODES
    )
    smoothing: float = option(0.1, "label smoothing", minimum=0, maximum=1)

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
            lambda o: (
                not o.cutmix_minmax or (len(o.cutmix_minmax) == 2 and 0 <= o.cutmix_minmax[0] < o.cutmix_minmax[1] <= 1)
            ),
            "--cutmix_minmax {cutmix_minmax}: expected two shares between 0 and 1, the smaller one first",
        ),
        (
            lambda o: o.data_set == "digits" or o.data_path,
            "--data_set {data_set}: needs --data_path FOLDER with the images",
        ),
        (
            lambda o: o.data_set != "image_folder" or o.eval_data_path,
            "--data_set image_folder: needs --eval_data_path FOLDER too, with the validation images",
        ),
        (
            lambda o: o.data_set == "image_folder" or not o.eval_data_path,
            "--eval_data_path {eval_data_path}: goes with --data_set image_folder, not {data_set}",
        ),
    )


@dataclass(frozen=True)
class ModelOptions:
    """The timm model."""

    TITLE = "Model"
    model: str = option("deit_tiny_patch16_224", "name of a timm model", fixed="model")
    pretrained: bool = option(False, "start from timm's pretrained weights")
    finetune: str = option(
        "", "start from these weights: safetensors, a .pth state dict, or a checkpoint of a run", metavar="FILE"
    )
    compile: bool = option(False, "compile the model with torch.compile", fixed="precision")
    channels_last: bool = option(
        False, "store images and convolution weights in channels-last memory format", fixed="precision"
    )
    drop_path: float = option(0.0, "stochastic depth rate", minimum=0, maximum=0.99, fixed="model")
    model_kwargs: tuple[str, ...] = option(
        (), "arguments of the model, such as embed_dim=96 depth=4", metavar="KEY=VALUE", fixed="model"
    )
    split_qkv: bool = option(
        False, "give q, k and v of fused attention projections their own spectra and decays", fixed="model"
    )

    CHECKS = (
        (
            lambda o: not (o.pretrained and o.finetune),
            "--finetune {finetune}: not together with --pretrained, which names other weights",
        ),
        (lambda o: parse_keywords(o.model_kwargs) is not None, ""),  # it raises its own messages
    )


@dataclass(frozen=True)
class VisionOptimizerOptions(OptimizerOptions):
    """The optimizer and its learning rate, counted in epochs."""

    warmup_steps: int = option(-1, "optimizer steps of warm-up; if 0 or more, replaces --warmup_epochs")
    epochs: int = option(120, "epochs of the schedules", minimum=1)
    warmup_epochs: int = option(20, "epochs of linear warm-up of the learning rate", minimum=0)
    layer_decay: float = option(
        1.0, "each layer's learning rate is this times the next layer's", above=0, maximum=1, fixed="optimizer"
    )
    update_freq: int = option(
        1, "micro-steps per optimizer step, whose gradients are accumulated", minimum=1, fixed="batch_size"
    )


OPTION_CLASSES = (DataOptions, ModelOptions, VisionOptimizerOptions, DecayOptions, EmaOptions, RunOptions)
CHECKS = (
    *SHARED_CHECKS,
    (
        lambda o: not o.eval or o.resume or o.pretrained or o.finetune,
        "--eval: needs weights to evaluate: --resume RUN_FOLDER or CHECKPOINT, --finetune PATH, or --pretrained",
    ),
)


@dataclass(frozen=True)
class Options:
    """All options of a run, by group."""

    data: DataOptions
    model: ModelOptions
    optimizer: VisionOptimizerOptions
    decay: DecayOptions
    ema: EmaOptions
    run: RunOptions

    def flat(self) -> dict[str, Any]:
        """Every option by name, as in config.json."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}


def read_options(argv: Sequence[str]) -> Options:
    """Read a command line; other options come from --config, or from the run that --resume names."""
    return Options(*read_command(OPTION_CLASSES, argv, CHECKS, DESCRIPTION))
