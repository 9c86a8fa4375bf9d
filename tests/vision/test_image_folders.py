"""Images of every kind are read or named; folders that cannot be right are refused."""

import os

import numpy as np
import pytest
import torch
from photos import bad_files, class_folders, imagenet, odd_files, photo
from PIL import Image
from timm.data import create_transform

from datasets import BadImage, DataOptions, FolderImages, open_images, read_image, scan
from runtime.errors import UserError
from runtime.processes import Ranks
from vision.loaders import eval_loader, train_loader
from vision.transforms import augment_operations, train_transform

ALONE = Ranks(0, 1, torch.device("cpu"))


def test_folders_are_read_in_order_with_the_class_as_label(tmp_path):
    folders = scan(class_folders(tmp_path, classes=3, images=4), "--data_path")
    images = FolderImages(folders)
    assert folders.class_names == ("n0000", "n0001", "n0002") and len(images) == 12
    assert [label for _, label in images] == [0] * 4 + [1] * 4 + [2] * 4
    assert np.array_equal(np.asarray(images[5][0]), np.asarray(Image.open(tmp_path / "n0001" / "001.JPEG")))


def test_subfolders_count_and_hidden_and_other_files_do_not(tmp_path):
    class_folders(tmp_path, classes=2, images=1)
    (tmp_path / "n0000" / "deeper").mkdir()
    photo(7).save(tmp_path / "n0000" / "deeper" / "näher.png")
    (tmp_path / "n0001" / "notes.txt").write_text("")
    (tmp_path / "n0001" / ".hidden.png").write_text("")
    (tmp_path / ".cache").mkdir()
    folders = scan(tmp_path, "--data_path")
    assert len(folders.files) == 3 and folders.others == ["n0001/notes.txt"]
    assert FolderImages(folders)[1][0].size == (40, 32)


def test_links_that_lead_in_circles_add_no_image_and_others_are_followed(tmp_path):
    class_folders(tmp_path / "data", classes=2, images=2)
    inside, other = tmp_path / "data" / "n0000", tmp_path / "data" / "n0001"
    for name in ("here", "again"):
        (inside / name).symlink_to(".")
    (tmp_path / "more").mkdir()
    photo(7).save(tmp_path / "more" / "one.png")
    (inside / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "back").symlink_to(inside)
    (other / "more").symlink_to(tmp_path / "more")
    files = [name for name, _ in scan(tmp_path / "data", "--data_path").files]
    own = ["n0000/000.JPEG", "n0000/001.JPEG", "n0000/more/one.png", "n0001/000.JPEG", "n0001/001.JPEG"]
    assert sorted(set(files) - {f for f in files if "back" in f}) == [*own, "n0001/more/one.png"]
    assert sorted(f for f in files if "back" in f) == [f"n0001/more/back/00{i}.JPEG" for i in (0, 1)]


def test_every_odd_image_is_read_as_8_bit_rgb(tmp_path):
    for path in odd_files(tmp_path):
        image = read_image(str(path))
        assert (image.mode, image.size) == ("RGB", (40, 32)), path


def test_what_had_to_be_converted_is_counted_and_named_once_but_does_no_harm(tmp_path, capsys):
    root = imagenet(tmp_path)
    odd_files(root / "val" / "n0001")
    _, validate = loaders(root, most=0)
    assert sum(len(labels) for _ in range(2) for _, labels in validate) == 2 * (6 + 7)
    said = capsys.readouterr().err
    for name, words in (("cmyk.jpg", "CMYK"), ("deep.png", "more than 8 bits"), ("animated.gif", "first frame")):
        assert said.count(f"{name}: ") == 1 and words in said
    assert len(validate.bad.converted) == 3 and not validate.bad.seen


def test_16_bit_grey_levels_are_scaled_not_cut_off(tmp_path):
    odd_files(tmp_path)
    expected = np.asarray(photo(1).convert("L"))
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "deep.png")))[..., 0], expected)


def test_every_bad_file_is_named_with_the_reason(tmp_path):
    for path in bad_files(tmp_path):
        with pytest.raises(BadImage, match=f"^{path}: .+"):
            read_image(str(path))


def loaders(root, workers=0, most=100, batch_size=8, seed=0):
    options = DataOptions(
        data_path=str(root), input_size=32, batch_size=batch_size, num_workers=workers, max_bad_images=most, aa="none"
    )
    data = open_images(options, ALONE)
    made = train_loader(options, data, accumulate=1, rank=0, ranks=1, seed=seed, pin_memory=False)
    return made, eval_loader(options, data, rank=0, ranks=1, pin_memory=False)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_in_training_left_out_of_evaluation_and_named_once(tmp_path, workers, capsys):
    root = imagenet(tmp_path)
    bad = [str(path) for part in ("train", "val") for path in bad_files(root / part / "n0001")]
    train, validate = loaders(root, workers)
    for epoch in (0, 1):
        batches = list(train.epoch(epoch))
        assert len(batches) == (24 + 5) // 8 and all(len(labels) == 8 for _, labels in batches)
    assert sum(len(labels) for _ in range(2) for _, labels in validate) == 2 * 6
    said = capsys.readouterr().err
    seen = [path for path in bad if f"{path}: " in said]
    assert set(bad[5:]) <= set(seen) and all(said.count(f"{path}: ") == 1 for path in seen)
    assert len(train.bad.seen) + len(validate.bad.seen) == len(seen)


def test_what_replaces_a_bad_image_does_not_depend_on_workers(tmp_path):
    root = imagenet(tmp_path)
    bad_files(root / "train" / "n0000")
    for (one, _), (other, _) in zip(loaders(root)[0].epoch(0), loaders(root, workers=2)[0].epoch(0), strict=True):
        assert torch.equal(one, other)


def test_too_many_bad_images_end_the_run(tmp_path):
    root = imagenet(tmp_path)
    bad_files(root / "val" / "n0001")
    with pytest.raises(UserError, match="--max_bad_images 4: 5 images cannot be read, the last .*n0001"):
        list(loaders(root, most=4)[1])


def test_a_file_that_vanishes_during_training_is_survived(tmp_path):
    root = imagenet(tmp_path)
    train, _ = loaders(root)
    assert len(list(train.epoch(0))) == 3
    for path in (root / "train" / "n0002").iterdir():
        path.unlink()
    assert len(list(train.epoch(1))) == 3 and len(train.bad.seen) == 8


def test_when_every_image_is_bad_the_run_ends(tmp_path):
    root = imagenet(tmp_path)
    train, _ = loaders(root, most=5)
    for path in (root / "train").rglob("*.JPEG"):
        path.unlink()
    with pytest.raises(UserError, match="--max_bad_images 5"):
        list(train.epoch(0))


def broken(root, how):
    """Damage the folders; returns the option values."""
    imagenet(root)
    train, val = root / "train", root / "val"
    actions = {
        "no such": lambda: os.rename(train, root / "other"),
        "is not a folder": lambda: (os.rename(val, root / "other"), val.write_text("")),
        "has no class folders": lambda: [os.rename(train / n, root / n) for n in os.listdir(train)],
        "class folder n0001 has no image": lambda: [p.unlink() for p in (train / "n0001").iterdir()],
        "has in addition other": lambda: os.rename(val / "n0001", val / "other"),
        "lacks n0002": lambda: os.rename(val / "n0002", root / "n0002"),
    }
    actions[how]()


@pytest.mark.parametrize(
    "how",
    ["no such", "is not a folder", "has no class folders", "class folder n0001 has no image", "has in addition other",
     "lacks n0002"],
)  # fmt: skip
def test_folders_that_cannot_be_right_are_refused(tmp_path, how):
    broken(tmp_path, how)
    with pytest.raises(UserError, match=how):
        loaders(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    imagenet(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("datasets.os.scandir", refuse)
    with pytest.raises(UserError, match="--data_path .*: cannot be read: .*Permission denied"):
        loaders(tmp_path)


def test_classes_must_be_as_many_as_said(tmp_path):
    options = DataOptions(data_path=str(imagenet(tmp_path)), nb_classes=5)
    with pytest.raises(UserError, match="--nb_classes 5: the data have 3 classes"):
        open_images(options, ALONE)


def test_evaluation_alone_needs_no_training_images(tmp_path):
    class_folders(tmp_path / "val")
    data = open_images(DataOptions(data_path=str(tmp_path)), ALONE, train=False)
    assert data.train is None and len(data.validation) == 24


def test_cifar_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        rows = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = open_images(DataOptions(data_set="CIFAR10", data_path=str(tmp_path)), ALONE)
    assert (len(data.train), len(data.validation), data.classes) == (20, 4, 10)
    assert data.train[0][0].size == (32, 32)


def test_cifar_that_is_neither_there_nor_to_be_downloaded_is_one_line(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    options = DataOptions(data_set="CIFAR100", data_path=str(tmp_path / "cifar"))
    with pytest.raises(UserError, match="CIFAR100 is not there and cannot be downloaded: .*no network"):
        open_images(options, ALONE)


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "rand-m10-inc1", "v0", "original", "augmix-m5-w4-d2"])
def test_no_policy_ever_asks_for_0_bits(tmp_path, aa):
    data = open_images(DataOptions(data_path=str(imagenet(tmp_path))), ALONE)
    transform = train_transform(DataOptions(aa=aa, input_size=64), data)
    operations = [op for op in augment_operations(transform) if "Posterize" in op.name]
    assert operations or aa.startswith("augmix")
    for operation in augment_operations(transform):
        for bits in range(9) if "Posterize" in operation.name else ():
            operation.aug_fn(photo(0), bits)


@pytest.mark.parametrize("times", [2000, pytest.param(20_000, marks=pytest.mark.proof)])
def test_the_default_transform_draws_without_an_error(tmp_path, times):
    data = open_images(DataOptions(data_path=str(imagenet(tmp_path))), ALONE)
    transform = train_transform(DataOptions(input_size=48), data)
    pictures = [photo(i, (64, 56)) for i in range(16)]
    shapes = {transform(pictures[i % 16]).shape for i in range(times)}
    assert shapes == {(3, 48, 48)}


@pytest.mark.slow
def test_timms_own_transform_shows_why(tmp_path):
    """If this fails, timm or Pillow have mended it, and transforms.posterize can go."""
    transform = create_transform(48, is_training=True, auto_augment="rand-m9-mstd0.5-inc1")
    with pytest.raises(ValueError, match="bits"):
        for i in range(20_000):
            transform(photo(i % 16, (64, 56)))
