"""One file of plain text: its parts and pieces, the ids of its characters, runs, resuming and bad input."""

import json
import random
import shutil

import fsspec
import numpy as np
import pytest
import torch
from forked import forked
from texts import ALONE, ranks, same, take
from tiny_text import CONFIG, TINY_TEXT, run_text

from llama.data import TextOptions, open_text, train_stream, validation_batches
from llama.sources import PIECE, BadLines, read_documents
from llama.text_files import BLOCK, Contents, TextFile, contents_of
from llama.tokenizers import CharTokenizer
from runtime.checkpoints import find_checkpoint
from runtime.errors import UserError

ODD = "aß中😀\n\r\t \x00\u2028e\u0301"


def nasty(characters, seed=0, line=80):
    """Text of one- to four-byte characters; its lines have about `line` characters, or it is one line."""
    draw = random.Random(seed)
    return "".join("\n" if line and draw.random() < 1 / line else draw.choice(ODD) for _ in range(characters))


TEXTS = {
    "lines": nasty(20_000, line=80),
    "long lines": nasty(20_000, line=3000),
    "one line": nasty(20_000, line=0).replace("\n", "x").replace("\r", "y"),
    "one line of four bytes": "😀" * 5000,
    "only ends of lines": "\n" * 9000,
    "a line as long as a piece": ("x" * (PIECE - 1) + "\n") * 9,
    "a line longer by one": ("x" * PIECE + "\n") * 9,
    "the last character alone in a block": "x" * (2 * PIECE - 1) + "😀",
}


def opened(path, where=ALONE, **changed):
    small = {"tokenizer": "chars", "max_length": 64, "batch_size": 4, "shuffle_buffer": 8}
    return open_text(TextOptions(dataset="text", data_path=str(path), **{**small, **changed}), where)


def write(folder, text, name="text.txt"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def texts_of(corpus, bad=0, **where):
    return [document.text for document in read_documents(corpus, range(len(corpus.shards)), BadLines(bad), **where)]


@pytest.mark.parametrize("kind", TEXTS)
def test_the_last_tenth_of_the_characters_validates_and_pieces_lose_nothing(tmp_path, kind):
    text = TEXTS[kind]
    found = opened(write(tmp_path, text))
    at = int(len(text) * 0.9)  # nanoGPT's line
    for corpus, part in ((found.train, text[:at]), (found.validation, text[at:])):
        pieces = texts_of(corpus)
        assert "".join(pieces) == part and all(pieces)
        assert max(len(piece.encode()) for piece in pieces) < 2 * PIECE + 4
        for piece in pieces[:-1]:  # cut within a line only where no line ends in the rest of the block
            assert piece.endswith("\n") or "\n" not in piece[-PIECE // 4 :], piece[-20:]


@pytest.mark.parametrize("kind", TEXTS)
def test_reading_can_begin_at_any_piece_and_ranks_share_them(tmp_path, kind):
    corpus = opened(write(tmp_path, TEXTS[kind])).train
    pieces = list(corpus.lines(0))
    assert [number for number, _ in pieces] == list(range(len(pieces)))
    for first in range(len(pieces) + 1):
        assert list(corpus.lines(0, first)) == pieces[first:]
    parts = [texts_of(corpus, part=part, parts=3) for part in range(3)]
    assert sorted(sum(parts, [])) == sorted(texts_of(corpus))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_the_boundary_does_not_depend_on_how_much_is_read_at_once(tmp_path, monkeypatch, block):
    for number, characters in enumerate((1, 2, 9, 10, 11, 19, 20, 500)):
        text = nasty(characters, seed=number)
        path = write(tmp_path, text)
        monkeypatch.setattr("llama.text_files.BLOCK", block)
        files = fsspec.filesystem("file")
        contents = contents_of(TextFile("x", files, str(path), (), 0, 0, Contents(0, 0, "", b"")))
        assert contents.boundary == len(text[: characters * 9 // 10].encode())
        assert (contents.end, contents.alphabet) == (path.stat().st_size, "".join(sorted(set(text))))


def test_the_ids_are_those_of_the_sorted_characters_of_the_whole_file(tmp_path):
    text = nasty(3000) + "é"  # in the validation part alone
    found = opened(write(tmp_path, text))
    index = {character: number for number, character in enumerate(sorted(set(text)))}  # nanoGPT's stoi
    (ids,) = found.tokenizer.encode([text])
    assert ids.dtype == np.int32 and ids.tolist() == [index[character] for character in text]
    assert found.tokenizer.vocab_size == len(index) and found.tokenizer.eos_id is None
    assert found.tokenizer.highest == ("😀", len(index) - 1)
    assert CharTokenizer("a").encode(["aa", ""])[0].tolist() == [0, 0]


@pytest.mark.parametrize("tokenizer", ["chars", "bytes"])
def test_no_token_stands_between_pieces(tmp_path, tokenizer):
    text = nasty(9000, line=40)
    found = opened(write(tmp_path, text), tokenizer=tokenizer)
    options = TextOptions(dataset="text", data_path="x", tokenizer=tokenizer, max_length=64, batch_size=4)
    whole = torch.cat([row[row != -100] for b in validation_batches(options, found, ALONE) for row in b["labels"]])
    assert whole.tolist() == found.tokenizer.encode([text[len(text) * 9 // 10 :]])[0].tolist()
    stream = train_stream(options, found, ALONE, seed=0)
    ids = np.concatenate([batch["input_ids"].numpy().ravel() for batch in take(stream, 60)])
    stream.close()
    assert stream.counts["pads"] == 0 and ids.max() < {"chars": len(set(text)), "bytes": 256}[tokenizer]
    (first,) = found.tokenizer.encode([text[: len(text) * 9 // 10]])
    assert np.array_equal(np.bincount(ids[: len(first)]), np.bincount(first))  # the first epoch: each token once


def test_two_ranks_get_different_pieces_and_resume_exactly(tmp_path):
    path = write(tmp_path, nasty(60_000))
    options = TextOptions(dataset="text", data_path=str(path), tokenizer="chars", max_length=64, batch_size=4)
    streams = [train_stream(options, opened(path, ranks(r, 2)), ranks(r, 2), seed=0) for r in (0, 1)]
    batches = [take(stream, 30) for stream in streams]
    names = [{name for row in stream.names for name in row.split(", ")} for stream in streams]
    assert not names[0] & names[1] and not same(*batches)
    for rank, stream in enumerate(streams):
        again = train_stream(options, opened(path, ranks(rank, 2)), ranks(rank, 2), seed=0)
        again.load(stream.state())
        assert same(take(again, 30), take(stream, 30))
        again.close()
        stream.close()


def test_the_fingerprint_follows_every_byte_and_not_the_place(tmp_path):
    text = nasty(60_000)
    before = opened(write(tmp_path, text)).fingerprint()
    assert opened(write(tmp_path, text, "moved.txt")).fingerprint() == before
    changed = text[:30_000] + ("a" if text[30_000] != "a" else "ß") + text[30_001:]
    assert opened(write(tmp_path, changed)).fingerprint() != before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A text, the words of a run on it, and that run."""
    folder = tmp_path_factory.mktemp("trained")
    path = write(folder, nasty(30_000))
    words = [*TINY_TEXT, "--dataset", "text", "--data_path", path, "--tokenizer", "chars"]
    assert run_text(*words, "--output_dir", folder / "run") == 0
    return path, words, folder / "run"


def test_a_text_trains_and_resumes_to_the_same_bits(trained, tmp_path):
    _, words, whole = trained
    assert run_text(*words, "--output_dir", tmp_path / "run", "--max_steps", "2") == 0
    assert run_text("--resume", tmp_path / "run", "--max_steps", "6") == 0
    ours, theirs = (find_checkpoint(folder)[0].model_weights() for folder in (tmp_path / "run", whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((whole / "summary.json").read_text())["tokens_seen"] == 6 * 4 * 32


def test_a_run_that_resumes_with_another_text_is_refused(trained, tmp_path, capsys):
    path, words, run = trained
    shutil.copytree(run, tmp_path / "run")
    other = write(tmp_path, path.read_bytes() + b"more")
    capsys.readouterr()
    assert run_text("--resume", tmp_path / "run", "--data_path", other, "--max_steps", "9") == 2
    assert "1 difference from the checkpoint: data" not in (said := capsys.readouterr().err) and "data" in said


def test_evaluating_with_other_characters_is_refused_and_with_the_same_is_not(trained, tmp_path, capsys):
    path, _, run = trained
    text = path.read_bytes().decode()
    shutil.copytree(run, tmp_path / "run")
    other = write(tmp_path, text.replace("a", "b"))  # one character less
    same_size = write(tmp_path, text.replace("a", "b") + "Q", "same_size.txt")
    for wrong in (["--data_path", other], ["--data_path", same_size], ["--tokenizer", "bytes"]):
        capsys.readouterr()
        assert run_text("--eval", "--resume", tmp_path / "run", *wrong) == 2
        said = capsys.readouterr().err
        assert "was trained with other ids" in said and said.count("\n") == 1
    assert not (tmp_path / "run" / "evaluation.json").exists()
    reordered = write(tmp_path, text[::-1], "reordered.txt")
    assert run_text("--eval", "--resume", tmp_path / "run", "--data_path", reordered) == 0


@pytest.mark.slow
def test_two_processes_agree_on_the_parts_of_one_text(trained, tmp_path):
    _, words, alone = trained
    done = forked(2, *map(str, words), "--output_dir", tmp_path / "run", program="main_llama.py", timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (find_checkpoint(run)[0].contract()["facts"] for run in (tmp_path / "run", alone))
    assert (ours["data"], ours["tokenizer"]) == (theirs["data"], theirs["tokenizer"]) and ours["world_size"] == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tokens_seen"] == 6 * 2 * 4 * 32


BAD = {
    "missing": (None, "", "no such file"),
    "empty": (b"", "", "is empty"),
    "not UTF-8": (b"abc\xff" + b"d" * 9000, "", "not UTF-8: byte 3, counted from 0"),
    "not UTF-8 far behind": ("ß".encode() * BLOCK + b"x\xc3", "", f"not UTF-8: byte {2 * BLOCK + 1}, counted from 0"),
    "half a character": (("ß" * 900 + "中").encode()[:-1], "", "not UTF-8: byte 1800"),
    "one character": ("x", "", "0 tokens for training, less than one sequence (--max_length 32)"),
    "little to train on": ("x" * 30, "", "27 tokens for training, less than one sequence (--max_length 32)"),
    "little to validate on": ("x" * 300, "", "30 tokens for validation, less than one sequence (--max_length 32)"),
    "padded": ("x" * 9000, "--no-pack", "--pack false: "),
    "packed by gzip": (b"\x1f\x8b" + bytes(50), "", "not UTF-8: byte 1"),
    "more characters than the model knows": ("".join(map(chr, range(1, 9000))), "", "the model's last is 259"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_text_is_one_line_and_nothing_is_written(tmp_path, capsys, kind):
    content, more, culprit = BAD[kind]
    if content is not None:
        write(tmp_path, content)
    words = ["--dataset", "text", "--data_path", tmp_path / "text.txt", "--tokenizer", "chars", *more.split()]
    assert run_text(*TINY_TEXT, *words, "--output_dir", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --") and culprit in said and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        ("--dataset text", "--dataset text: needs --data_path FILE"),
        ("--dataset text --data_path tests", "--data_path tests: is a folder"),
        ("--dataset text --data_path nowhere://x", "--data_path nowhere://x: "),
        ("--dataset c4 --tokenizer chars", "--tokenizer chars: goes with --dataset text, not c4"),
        ("--dataset stdlib --tokenizer chars", "--tokenizer chars: goes with --dataset text, not stdlib"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, capsys, words, culprit):
    assert run_text("--model_config", CONFIG, *words.split(), "--output_dir", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: " + culprit) and said.count("\n") == 1, said


def test_text_at_an_address_reads_as_from_a_file(tmp_path):
    text = nasty(20_000)
    with fsspec.open("memory://texts/a.txt", "wb") as file:
        file.write(text.encode())
    there, here = opened("memory://texts/a.txt"), opened(write(tmp_path, text))
    assert isinstance(there.train, TextFile) and there.fingerprint() == here.fingerprint()
    assert texts_of(there.train) == texts_of(here.train)


def test_a_character_that_the_tokenizer_lacks_is_an_error():
    for text in ("abz", "\x00", "ab😀"):
        with pytest.raises(UserError, match="^--tokenizer chars: .* is not among its 2 characters$"):
            CharTokenizer("ab").encode(["ab", text])
