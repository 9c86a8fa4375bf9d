"""One file of documents, JSON lines or parquet: its parts, ranks, resuming, broken lines and bad input."""

import gzip
import json
import sys

import fsspec
import pytest
import torch
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from test_text_files import nasty, opened, texts_of
from texts import ALONE, paragraphs, ranks, same, take
from tiny_text import TINY_TEXT, run_text

from llama.data import TextOptions, train_stream, validation_batches
from runtime.checkpoints import find_checkpoint

ENDINGS = ("jsonl", "json", "jsonl.gz", "json.gz", "parquet")


def json_lines(texts) -> bytes:
    return b"".join(json.dumps({"text": text, "more": [1]}).encode() + b"\n" for text in texts)


def save(path, texts, group=7):
    """Texts in the format that the name asks for; None is a row without text."""
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"id": list(range(len(texts))), "text": pyarrow.array(texts, pyarrow.string())})
        parquet.write_table(table, path, row_group_size=group)
    else:
        content = json_lines(texts)
        path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("count", [2, 3, 10, 11, 59])
def test_the_last_tenth_of_the_documents_validates(tmp_path, ending, count):
    texts = [nasty(30 + number, seed=number) for number in range(count)]
    found = opened(save(tmp_path / f"d.{ending}", texts))
    at = count * 9 // 10
    assert texts_of(found.train) == texts[:at] and texts_of(found.validation) == texts[at:] != []
    assert found.train.alphabet == "".join(sorted(set("".join(texts)))) and not found.train.continuous


@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet"])
def test_reading_can_begin_at_any_document_and_ranks_share_them(tmp_path, ending):
    texts = [None if number in (0, 7, 33) else f"document {number}" for number in range(40)]
    found = opened(save(tmp_path / f"d.{ending}", texts), max_bad_lines=3)
    for corpus in (found.train, found.validation):
        lines = list(corpus.lines(0))
        for first in range(len(texts) + 1):
            assert list(corpus.lines(0, first)) == [line for line in lines if line[0] >= first]
    assert [number for number, _ in [*found.train.lines(0), *found.validation.lines(0)]] == list(range(40))
    assert [n for n, _ in found.validation.lines(0)] == [36, 37, 38, 39]  # of 37 documents 33 are for training


def test_all_formats_give_the_same_batches_and_fingerprint(tmp_path):
    batches, fingerprints = [], set()
    for ending in ENDINGS:
        if ending == "parquet" and "pyarrow" not in sys.modules:
            pytest.importorskip("pyarrow")
        path = save(tmp_path / f"d.{ending}", list(paragraphs()[:80]))
        found = opened(path, tokenizer="bytes")
        options = TextOptions(dataset="text", data_path=str(path), tokenizer="bytes", max_length=64, batch_size=4)
        stream = train_stream(options, found, ALONE, seed=0)
        batches.append(take(stream, 20) + list(validation_batches(options, found, ALONE)))
        fingerprints.add(found.fingerprint())
        stream.close()
    assert len(fingerprints) == 1 and all(same(batches[0], other) for other in batches[1:])
    ended = sum((batch["labels"] == 256).sum().item() for batch in batches[0])
    assert ended > 20  # documents end, unlike the pieces of a text


@pytest.mark.parametrize("pack", [True, False])
def test_documents_of_characters_follow_each_other_without_a_token_between(tmp_path, pack):
    texts = [f"<{'x' * number}>" for number in range(40)]
    path = save(tmp_path / "d.jsonl", texts)
    options = TextOptions(
        dataset="text", data_path=str(path), tokenizer="chars", max_length=16, batch_size=4, pack=pack
    )
    found = opened(path)
    rows = [row for batch in validation_batches(options, found, ALONE) for row in batch["labels"]]
    if pack:
        ids = torch.cat([row[row != -100] for row in rows]).tolist()
        assert ids == found.tokenizer.encode(["".join(texts[36:])])[0].tolist()
    else:
        assert [row.tolist() for row in rows] == [ids[:16].tolist() for ids in found.tokenizer.encode(texts[36:])]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_stream_resumes_exactly_on_any_number_of_ranks(tmp_path, ending, count):
    path = save(tmp_path / f"d.{ending}", list(paragraphs()[:120]), group=13)
    options = TextOptions(
        dataset="text", data_path=str(path), tokenizer="bytes", max_length=64, batch_size=4, shuffle_buffer=8
    )
    names = []
    for rank in range(count):
        where = ranks(rank, count)
        streams = [train_stream(options, opened(path, where, tokenizer="bytes"), where, seed=0) for _ in range(2)]
        take(streams[0], 23)
        streams[1].load(streams[0].state())
        assert same(take(streams[0], 60), take(streams[1], 60))
        names.append({name for row in streams[0].names for name in row.split(", ")})
        for stream in streams:
            stream.close()
    assert count == 1 or not names[0] & names[1]


def test_broken_and_blank_lines_are_left_out_and_broken_ones_counted(tmp_path, capsys):
    good = [json_lines([f"document {number}"]) for number in range(20)]
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n" + b"".join(good[:5]) + b"broken\n\n" + b"".join(good[5:]) + b'{"text": 3}\n \n')
    words = ["--dataset", "text", "--data_path", path, "--tokenizer", "chars", "--max_steps", "2"]
    assert run_text(*TINY_TEXT, *words, "--output_dir", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "d.jsonl:7: not JSON" in said and 'd.jsonl:24: has no "text"' in said and said.count("skipped text") == 2
    assert texts_of(opened(path).train, bad=1) == [f"document {number}" for number in range(18)]
    assert run_text(*TINY_TEXT, *words, "--max_bad_lines", "0", "--output_dir", tmp_path / "none") == 2
    assert "--max_bad_lines 0: 1 lines or files give no text" in capsys.readouterr().err


def test_documents_train_and_resume_to_the_same_bits(tmp_path):
    path = save(tmp_path / "d.jsonl.gz", list(paragraphs()[:120]))
    words = [*TINY_TEXT, "--dataset", "text", "--data_path", path, "--tokenizer", "bytes", "--output_dir"]
    for folder, stops in (("whole", [6]), ("parts", [2, 6])):
        for stop in stops:
            assert run_text(*words, tmp_path / folder, "--resume", "auto", "--max_steps", stop) == 0
    whole, parts = (find_checkpoint(tmp_path / folder)[0].model_weights() for folder in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def rows_of(**columns):
    """A function that writes a parquet file."""

    def write(path):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)

    return write


BAD = {
    "no line": ("d.jsonl", b"\n\n", "d.jsonl: has no document"),
    "no bytes": ("d.jsonl", b"", "d.jsonl: is empty"),
    "no JSON": ("d.jsonl", b"text\n" * 9, "d.jsonl: has no document; d.jsonl:1: not JSON in UTF-8: "),
    "one JSON of many lines": ("d.json", b'[\n{"text": "a"},\n{"text": "b"}\n]\n', 'has one document'),
    "one document": ("d.json", json_lines(["a" * 999]), "has one document, and none for validation"),
    "one document and rubbish": ("d.json", json_lines(["a" * 999]) + b"?\n", "none for validation; d.json:2: not JSON"),
    "documents without text": ("d.jsonl", json_lines([""] * 20), "its training documents have no text"),
    "training without text": ("d.jsonl", json_lines([""] * 18 + ["a", "b"]), "its training documents have no text"),
    "validation without text": ("d.jsonl", json_lines(["a"] * 18 + ["", ""]), "its validation documents have no text"),
    "not packed": ("d.jsonl.gz", json_lines(["a" * 99] * 20), "broken after line 0, the rest is lost: "),
    "cut off": ("d.json.gz", gzip.compress(json_lines(list(paragraphs()[:60])))[:-99], "the rest is lost: "),
    "no parquet": ("d.parquet", b"PAR1" * 99, "d.parquet cannot be read: "),
    "no column": ("d.parquet", rows_of(content=["a", "b"], id=[1, 2]), "has no column text, but content, id"),
    "numbers": ("d.parquet", rows_of(text=[1, 2]), "the column text has int64, not strings"),
    "lists": ("d.parquet", rows_of(text=[["a"], ["b"]]), "not strings"),
    "no row": ("d.parquet", rows_of(text=["a"][:1]), "has one document"),
    "nulls": ("d.parquet", rows_of(text=["a", None, None]), 'none for validation; d.parquet:2: has no "text"'),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_documents_are_one_line_and_nothing_is_written(tmp_path, capsys, kind):
    name, content, culprit = BAD[kind]
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    if kind == "no parquet":
        pytest.importorskip("pyarrow")
    words = ["--dataset", "text", "--data_path", path, "--tokenizer", "chars", "--output_dir", tmp_path / "run"]
    assert run_text(*TINY_TEXT, *words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --data_path {path}: ") and culprit in said and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()


def test_without_pyarrow_the_extra_is_named(tmp_path, capsys, monkeypatch):
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    words = ["--dataset", "text", "--data_path", tmp_path / "d.parquet", "--tokenizer", "chars"]
    assert run_text(*TINY_TEXT, *words, "--output_dir", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.endswith("d.parquet: parquet files need pyarrow; pip install '.[llama]'\n") and said.count("\n") == 1


def test_dictionaries_and_large_strings_are_strings(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = ["ab", "ß", "ab", "", "中", "ab", "x", "y", "z", "ab"]
    for array in (pyarrow.array(texts, pyarrow.large_string()), pyarrow.array(texts).dictionary_encode()):
        parquet.write_table(pyarrow.table({"text": array}), tmp_path / "d.parquet", row_group_size=3)
        found = opened(tmp_path / "d.parquet")
        assert texts_of(found.train) + texts_of(found.validation) == texts


class Blocks(AbstractBufferedFile):
    """A file as those of networks are: fsspec asks for ranges of bytes, and itself knows lines."""

    def _fetch_range(self, start, end):
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


class Far(AbstractFileSystem):
    """Files of this machine at far:///path, read in blocks."""

    protocol = "far"

    def info(self, path, **_):
        return fsspec.filesystem("file").info(path)

    def _open(self, path, mode="rb", **_):
        return Blocks(self, path, mode, block_size=1000, size=self.info(path)["size"])


@pytest.mark.parametrize("ending", ["txt", *ENDINGS])
def test_files_of_networks_read_as_those_of_this_machine(tmp_path, ending):
    fsspec.register_implementation("far", Far, clobber=True)
    texts = list(paragraphs()[:60])
    path = tmp_path / f"d.{ending}"
    path = path if ending == "txt" and path.write_bytes("".join(texts).encode()) else save(path, texts)
    here, there = opened(path), opened(f"far://{path}")
    assert type(there.train.files) is Far and here.fingerprint() == there.fingerprint()
    assert texts_of(there.train) == texts_of(here.train) and texts_of(there.validation) == texts_of(here.validation)


def test_a_line_without_an_end_is_one_bad_line(tmp_path, monkeypatch):
    monkeypatch.setattr("llama.sources.LONGEST_LINE", 1000)
    long = b'{"text": "' + b"a" * 9000 + b'"}\n'
    (tmp_path / "d.jsonl").write_bytes(json_lines(["a"]) + long + json_lines(["b", "c"]))
    assert texts_of(opened(tmp_path / "d.jsonl").train, bad=1) == ["a", "b"]
