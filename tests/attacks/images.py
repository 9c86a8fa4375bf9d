"""main.py: models that cannot be, images that are none, folders that cannot be written, and a strange environment."""

import os
from pathlib import Path

from attacks.attack import BAD_TENSORS, Attack, put

DRY = "--dry_run "
FOLDERS = "--data_set image_folder --data_path {here}/train --eval_data_path {here}/val --input_size 16 "
KEYWORDS = (
    "checkpoint_path={here}/evil.pt", "pretrained=True", "pretrained_cfg={}",
    "pretrained_cfg_overlay={'file':'{here}/evil.pt'}", "pretrained_strict=False",
    "num_classes=3", "img_size=8", "patch_size=0", "patch_size=-8",
    "num_heads=0", "num_heads=-1", "embed_dim=0", "embed_dim=65", "depth=-1",
    "depth=x", "mlp_ratio=none", "wings=2", "depth", "=2", "a.b=2",
    "depth=2=3", "depth=(1,",
)  # fmt: skip


def _images(here: Path, name: str = "broken.jpg", content: bytes = b"no image") -> None:
    for part in ("train", "val"):
        for label in ("a", "b"):
            put(here / part / label / name, content)


def _pipes(here: Path) -> None:
    _images(here)
    for part in ("train", "val"):
        os.mkfifo(here / part / "a" / "pipe.jpg")


def _devices(here: Path) -> None:
    _images(here)
    for part in ("train", "val"):
        (here / part / "a" / "zero.jpg").symlink_to("/dev/zero")


def _empty_class(here: Path) -> None:
    _images(here)
    (here / "val" / "c").mkdir()


def _other_class(here: Path) -> None:
    _images(here)
    put(here / "val" / "\x1b[2J" / "x.jpg", b"x")


def _folder_as_file(here: Path) -> None:
    put(here / "train", "a file")
    put(here / "val", "a file")


def _loop(here: Path) -> None:
    (here / "train").symlink_to("train")
    (here / "val").symlink_to("val")


ATTACKS = [
    *(Attack(f"keyword {word}", "main.py", DRY + f"--model_kwargs {word}", "--model")
      for word in KEYWORDS),
    Attack("a model of the hub", "main.py", DRY + "--model hf-hub:evil/model", "--model"),
    Attack("a model of a folder", "main.py", DRY + "--model local-dir:{here}", "--model"),
    Attack("a model by a path", "main.py", DRY + "--model ../../etc/passwd", "--model"),
    Attack("a crop of nothing", "main.py", DRY + "--crop_pct 1e-9", "--crop_pct"),
    Attack("a device without values", "main.py", DRY + "--device meta", "--device"),
    Attack("a GPU that is not there", "main.py", DRY + "--device cuda:99", "--device"),
    Attack("images larger than any", "main.py", DRY + "--input_size 100000000", "--input_size"),
    Attack("more classes than memory", "main.py", DRY + "--nb_classes 1000000000", "--nb_classes"),
    Attack("an odd share", "main.py", DRY + "--cutmix_minmax 2 3", "--cutmix_minmax"),
    Attack("an output folder that is a file", "main.py", "--output_dir {here}/file", "--output_dir",
           lambda here: put(here / "file", "")),
    Attack("an output folder below a file", "main.py", "--output_dir {here}/file/run", "--output_dir",
           lambda here: put(here / "file", "")),
    Attack("an output folder with a long name", "main.py", "--output_dir {here}/" + "n" * 300, "--output_dir"),
    Attack("a run of another in the folder", "main.py", "--output_dir {run}", "--output_dir"),
    Attack("a ledger that is binary", "main.py", DRY + "--decay replay --decay_ledger {here}/l", "/l",
           lambda here: put(here / "l", bytes(range(256)) * 4)),
    Attack("a ledger that is deep", "main.py", DRY + "--decay replay --decay_ledger {here}/l", "/l",
           lambda here: put(here / "l", "[" * 100_000 + "\n")),
    Attack("a ledger that is a folder", "main.py", DRY + "--decay replay --decay_ledger {here}", "--decay replay"),
    Attack("weights to evaluate that are nowhere", "main.py", "--eval --resume auto --output_dir {here}/nowhere",
             "--eval"),
    Attack("weights to evaluate of nothing", "main.py", "--eval", "--eval"),
    Attack("no folder of images", "main.py", FOLDERS, "no such folder"),
    Attack("files as folders", "main.py", FOLDERS, "is not a folder", _folder_as_file),
    Attack("folders that are links to themselves", "main.py", FOLDERS, "data_path", _loop),
    Attack("a class without images", "main.py", FOLDERS, "has no image", _empty_class),
    Attack("a class that steers the terminal", "main.py", FOLDERS, "the class folders differ", _other_class),
    Attack("images that are pipes", "main.py", FOLDERS + "--batch_size 2 --max_steps 1 --max_bad_images 9", "no image",
           _pipes, trains=True),
    Attack("images without an end", "main.py", FOLDERS + "--batch_size 2 --max_steps 1 --max_bad_images 9", "no image",
           _devices, trains=True),
    *(Attack(f"weights, safetensors: {kind}", "main.py", DRY + "--finetune {here}/w.safetensors", "--finetune",
             lambda here, content=content: put(here / "w.safetensors", content)) for kind,
             content in BAD_TENSORS.items()),
    *(Attack(f"weights, pickle: {kind}", "main.py", DRY + "--finetune {here}/w.pth", "--finetune",
             lambda here, content=content: put(here / "w.pth", content))
      for kind, content in (("empty", b""), ("text", b"x"), ("code", b"cos\nsystem\n(S'true'\ntR."),
                            ("protocol 2", b"\x80\x02cposix\nsystem\nq\x00U\x04trueq\x01\x85q\x02Rq\x03."))),
    Attack("weights that are a folder of nothing", "main.py", DRY + "--finetune {here}", "{here}"),
    *(Attack(f"environment {name}={value}", "main.py", DRY, name, environment=((name, value),),
)
      for name, value in (("RANK", "foo"), ("WORLD_SIZE", "2"), ("WORLD_SIZE", "foo"))),
]  # fmt: skip
