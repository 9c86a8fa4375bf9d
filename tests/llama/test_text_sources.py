"""Text: files are found wherever they lie, bad ones are survived and named, and what cannot be right is refused."""

import gzip
import shutil
import sysconfig
from pathlib import Path

import fsspec
import pytest
from texts import ALONE, c4_lines, paragraphs, read_texts, write_c4, write_shard

from llama import corpora
from llama.data import TextOptions, open_text, train_stream, validation_batches
from llama.sources import BadLines, read_documents
from runtime.errors import UserError


def options(folder="", **changed):
    small = {"tokenizer": "bytes", "max_length": 32, "batch_size": 4, "shuffle_buffer": 5}
    return TextOptions(**{"data_path": str(folder), **small, **changed})


def opened(folder, **changed):
    return open_text(options(folder, **changed), ALONE)


def documents(corpus, most=100):
    bad = BadLines(most)
    read = {corpus.name_of(d.shard, d.line): d.text for d in read_documents(corpus, range(len(corpus.shards)), bad)}
    return read, list(bad.seen)


@pytest.mark.parametrize("below", [".", "en"])
def test_shards_are_found_in_a_folder_and_in_en_below_it_and_read_whole(tmp_path, below):
    folder = write_c4(tmp_path / below)
    text = opened(tmp_path)
    assert documents(text.train) == (read_texts(folder, "train"), [])
    assert documents(text.validation) == (read_texts(folder, "validation"), [])


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def test_without_a_folder_the_same_files_come_from_the_hub_by_the_same_code(tmp_path, monkeypatch, memory):
    folder = write_c4(tmp_path)
    memory.put(f"{folder}/", "/hub/en", recursive=True)
    monkeypatch.setattr(corpora, "C4_HUB", "memory://hub/en")
    local, hub = opened(folder), opened("")
    assert documents(hub.train)[0] == documents(local.train)[0] != {}
    assert hub.fingerprint() == local.fingerprint()
    streams = [train_stream(options(), text, ALONE, seed=1) for text in (local, hub)]
    for _ in range(30):
        first, second = (stream.next()["input_ids"].tolist() for stream in streams)
        assert first == second


def test_the_hub_is_that_of_c4_in_the_file_system_of_huggingface():
    files, root = fsspec.core.url_to_fs(corpora.C4_HUB)
    assert type(files).__name__ == "HfFileSystem" and root == "datasets/allenai/c4/en"


def test_a_network_that_fails_is_no_bad_line_but_one_line_that_ends_the_run(tmp_path, monkeypatch):
    text = opened(write_c4(tmp_path))

    def fail(*_, **__):
        raise ConnectionError("the hub is down\nfor long")

    monkeypatch.setattr(type(text.train.files), "open", fail)
    with pytest.raises(
        UserError, match=r"^--data_path \S+: c4-train.00000-of-00003.json.gz cannot be read: the hub is down$"
    ):
        documents(text.train)


# What is not as it should be

BAD_LINES = {
    "no JSON": (b'{"text": "cut off\n', "not JSON in UTF-8"),
    "no object": (b'["text"]\n', 'has no "text"'),
    "no text": (b'{"url": "https://example.org"}\n', 'has no "text"'),
    "a number": (b'{"text": 3}\n', 'has no "text"'),
    "no UTF-8": (b'{"text": "\xff\xfe"}\n', "not JSON in UTF-8"),
    "half a character": (b'{"text": "\\ud83d"}\n', "the text is not valid Unicode"),
    "nested without end": (b"[" * 100_000 + b"\n", "not JSON"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_and_the_documents_around_it_are_read(tmp_path, capsys, line, reason):
    folder = write_c4(tmp_path)
    write_shard(folder, "train", 1, 3, c4_lines(["before"]) + line + c4_lines(["behind"]))
    read, bad = documents(opened(folder).train)
    name = "c4-train.00001-of-00003.json.gz"
    assert bad == [f"{name}:2"] and read[f"{name}:1"] == "before" and read[f"{name}:3"] == "behind"
    assert f"warning: skipped text 1: {name}:2: {reason}" in capsys.readouterr().err


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def scramble(path):
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes(200) + content[400:])


BAD_FILES = {
    "cut off": cut,
    "scrambled": scramble,
    "no gzip": lambda path: path.write_text("<html>not found</html>"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("harm", BAD_FILES)
def test_a_broken_file_is_named_and_all_others_are_read(tmp_path, capsys, harm):
    folder = write_c4(tmp_path)
    whole, text = read_texts(folder, "train"), opened(folder)
    path = folder / "c4-train.00001-of-00003.json.gz"
    BAD_FILES[harm](path)
    if harm == "empty":
        text = opened(folder)
    read, bad = documents(text.train)
    assert bad == [path.name] and f"skipped text 1: {path.name}: " in capsys.readouterr().err
    others = {name for name in whole if not name.startswith(path.name)}
    assert others <= set(read) and read.items() <= whole.items()
    if harm == "cut off":
        assert len(read) > len(others)  # what stands before the end of a cut file is text all the same


def test_bad_lines_are_named_up_to_twenty_counted_and_capped(tmp_path, capsys):
    folder = write_c4(tmp_path)
    write_shard(folder, "train", 2, 3, b"{}\n" * 30)
    _, bad = documents(opened(folder).train)
    said = capsys.readouterr().err
    assert len(bad) == 30 and said.count("skipped text ") == 20 and "further skipped texts are only counted" in said
    limit = r"^--max_bad_lines 29: 30 lines or files give no text, the last c4-train\S+:30: has no \"text\"$"
    with pytest.raises(UserError, match=limit):
        documents(opened(folder).train, most=29)


def test_the_training_stream_names_a_bad_line_once_however_often_it_is_met_and_ends_beyond_the_limit(tmp_path, capsys):
    folder = write_c4(tmp_path, shards=1, documents=6)
    write_shard(folder, "train", 0, 1, c4_lines(paragraphs()[:3]) + b"broken\n" * 2)
    stream = train_stream(options(folder, max_bad_lines=2), opened(folder), ALONE, seed=0)
    while stream.counts["epoch"] < 3:
        stream.next()
    assert stream.counts["bad_lines"] == 2 and capsys.readouterr().err.count("skipped text") == 2
    stream = train_stream(options(folder, max_bad_lines=1), opened(folder), ALONE, seed=0)
    with pytest.raises(UserError, match="--max_bad_lines 1: 2 lines"):
        stream.next()


def test_shards_that_are_not_there_are_named(tmp_path, capsys):
    write_c4(tmp_path, shards=9)
    for number in (0, 2, 3, 4, 5, 7):
        (tmp_path / f"c4-train.{number:05}-of-00009.json.gz").unlink()
    opened(tmp_path)
    missing = "6 of 9 files of c4-train are missing: 00000, 00002, 00003, 00004, 00005 and 1 more"
    assert f"warning: --data_path {tmp_path}: {missing}\n" == capsys.readouterr().err


def test_two_divisions_of_one_split_are_refused(tmp_path):
    write_c4(tmp_path)
    write_shard(tmp_path, "train", 0, 1, ["twice"])
    with pytest.raises(UserError, match="c4-train divided into 00001 and into 00003 files"):
        opened(tmp_path)


REFUSED = {
    "no folder": (lambda folder: shutil.rmtree(folder), "^--data_path .*: no such folder$"),
    "no shard": (lambda folder: [p.unlink() for p in folder.iterdir()], "has no c4-train.NNNNN-of-NNNNN.json.gz"),
    "no validation": (lambda folder: [p.unlink() for p in folder.glob("*valid*")], "has no c4-validation"),
}


@pytest.mark.parametrize(("harm", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_without_the_files_is_refused_in_one_line(tmp_path, harm, message):
    harm(write_c4(tmp_path / "c4"))
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path / "c4")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_files_without_any_document_are_refused_in_one_line(tmp_path):
    write_c4(tmp_path, shards=1, documents=3)
    write_shard(tmp_path, "validation", 0, 1, b"broken\n")
    with pytest.raises(UserError, match=r"^--data_path \S+: no validation document$"):
        validation_batches(options(tmp_path), opened(tmp_path), ALONE)
    write_shard(tmp_path, "train", 0, 1, b"broken\n")
    with pytest.raises(UserError, match=r"^--data_path \S+: no training document$"):
        train_stream(options(tmp_path), opened(tmp_path), ALONE, seed=0)


def test_a_file_system_that_is_unknown_is_refused_in_one_line():
    with pytest.raises(UserError, match="^--data_path nowhere://x: Protocol not known: nowhere$"):
        opened("nowhere://x")


# The standard library


def test_the_standard_library_is_split_by_file_without_tests_and_the_same_each_time():
    first, second = (open_text(TextOptions(dataset="stdlib", tokenizer="bytes"), ALONE) for _ in range(2))
    assert first.train.shards == second.train.shards and first.fingerprint() == second.fingerprint()
    train, validation = ({shard.name for shard in part.shards} for part in (first.train, first.validation))
    assert not train & validation and "json/decoder.py" in train | validation
    assert not [name for name in train | validation if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert 0.02 < len(validation) / len(train | validation) < 0.10
    pieces, bad = documents(first.validation)
    read = dict.fromkeys((name.rpartition(":")[0] for name in pieces), "")
    for name, text in pieces.items():
        read[name.rpartition(":")[0]] += text
    assert set(read) | {name.partition(":")[0] for name in bad} == validation
    root = Path(sysconfig.get_paths()["stdlib"])
    whole = set(read) - {name.partition(":")[0] for name in bad}
    assert all((root / name).read_bytes() == read[name].encode() for name in whole)
    assert max(len(text) for text in pieces.values()) < 4000 and all(text.endswith("\n") for text in pieces.values())


def test_a_folder_is_refused_where_the_text_is_the_standard_library():
    from runtime.options import build, parse

    with pytest.raises(UserError, match="^--data_path x: goes with --dataset c4 or text, not stdlib$"):
        build([TextOptions], parse([TextOptions], "--dataset stdlib --data_path x".split())[0])


# The fingerprint


def test_the_fingerprint_does_not_depend_on_where_the_files_lie(tmp_path):
    folder = write_c4(tmp_path / "a")
    shutil.copytree(folder, tmp_path / "somewhere" / "en")
    assert opened(folder).fingerprint() == opened(tmp_path / "somewhere").fingerprint()
    assert len(opened(folder).fingerprint()) == 64


CHANGES = {
    "another text": lambda folder: write_shard(folder, "train", 1, 3, paragraphs()[50:69]),
    "more text": lambda folder: write_shard(folder, "validation", 0, 1, paragraphs()[50:80]),
    "a file less": lambda folder: (folder / "c4-train.00002-of-00003.json.gz").unlink(),
    "the same size": lambda folder: (folder / "c4-train.00002-of-00003.json.gz").write_bytes(
        bytes((folder / "c4-train.00002-of-00003.json.gz").stat().st_size)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_fingerprint_changes_with_the_files(tmp_path, change):
    folder = write_c4(tmp_path)
    before = opened(folder).fingerprint()
    change(folder)
    assert opened(folder).fingerprint() != before


def test_gzip_members_that_follow_each_other_are_one_file(tmp_path):
    folder = write_c4(tmp_path)
    path = folder / "c4-train.00000-of-00003.json.gz"
    path.write_bytes(path.read_bytes() + gzip.compress(c4_lines(["behind"])))
    assert documents(opened(folder).train)[0][f"{path.name}:21"] == "behind"
