"""One file of text, whose last tenth is for validation: plain text, cut into pieces of whole lines."""

import codecs
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import fsspec
import numpy as np

from llama.sources import PIECE, BadText, Corpus, decoded
from llama.tokenizers import code_points
from runtime.errors import UserError, first_line

BLOCK = 1 << 20  # bytes that are read at once


class Contents(NamedTuple):
    """What one pass over a file finds."""

    boundary: int  # where validation begins: a byte of plain text, a line or row of documents
    end: int  # bytes, or lines or rows
    alphabet: str  # all characters, sorted
    digest: bytes  # SHA-256 of the text


class Alphabet:
    """Collects the characters of texts."""

    def __init__(self) -> None:
        self.has = np.zeros(sys.maxunicode + 1, dtype=bool)  # by code point

    def add(self, text: str) -> None:
        """Add the characters of a text."""
        self.has[code_points(text)] = True

    def characters(self) -> str:
        """All characters that were added, sorted, each once."""
        return "".join(map(chr, np.flatnonzero(self.has)))


@dataclass(frozen=True)
class OneFile(Corpus):
    """The training or the validation part of one file.

    `begin` and `end` are bytes of plain text, lines or rows of documents; `contents` are those of the whole file.
    """

    begin: int
    end: int
    contents: Contents

    def path(self, shard: int) -> str:
        """The path of the file."""
        return self.root

    @property
    def alphabet(self) -> str:
        """All characters of the file, sorted."""
        return self.contents.alphabet

    def fingerprint(self) -> bytes:
        """SHA-256 of the whole file's text and of where the part begins and ends; the file's name does not matter."""
        return hashlib.sha256(self.contents.digest + f"{self.begin} {self.end}".encode()).digest()


class TextFile(OneFile):
    """Plain text in pieces of about 2 kB of whole lines.

    One piece begins in each block of 2000 bytes, after the first line that ends there; if none does, at its first
    character, within a line. This depends on no other block, so that reading can begin at any piece.
    """

    continuous = True

    def text_of(self, raw: bytes) -> str:
        """The decoded piece; raises BadText if it is not UTF-8."""
        return decoded(raw)

    def _lines(self, file: IO[bytes], first: int) -> Iterator[tuple[int, bytes]]:
        begin = self.begin + first * PIECE
        file.seek(begin)
        piece, number = b"", first - 1
        for block in range(begin, self.end, PIECE):
            read = file.read(min(PIECE, self.end - block))
            if not read:
                raise BadText("became shorter while it was read")
            at = piece_begin(read) if block > self.begin else 0
            if number >= first and (piece := piece + read[:at]):
                yield number, piece
            piece, number = read[at:], number + 1
        if piece:
            yield number, piece


def piece_begin(block: bytes) -> int:
    """Where in a block of text a piece begins: after the first line that ends before its last byte, else at the first
    byte of a character (a block can begin with up to three further bytes of one)."""
    after_line = block.find(b"\n", 0, len(block) - 1) + 1
    return after_line or next((at for at, byte in enumerate(block) if byte & 0xC0 != 0x80), len(block))


def contents_of(corpus: OneFile) -> Contents:
    """Read a whole plain text once: nine tenths of its characters, rounded down, are for training.

    Raises:
        UserError: If it cannot be read, or is not UTF-8; says at which byte.
    """
    try:
        with corpus.files.open(corpus.root, "rb") as file:
            return _contents_of(file, corpus.label)
    except UserError:
        raise
    except Exception as error:  # network file systems raise errors of many classes
        raise UserError(f"{corpus.label}: cannot be read: {first_line(error)}") from error


def _contents_of(file: IO[bytes], label: str) -> Contents:
    decoder, digest = codecs.getincrementaldecoder("utf-8")(), hashlib.sha256()
    alphabet = Alphabet()
    characters, position = 0, 0  # whole characters read, and their bytes
    begins: list[tuple[int, int]] = []  # of blocks: characters and bytes before them
    while True:
        block = file.read(BLOCK)
        digest.update(block)
        begins.append((characters, position))
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(f"{label}: not UTF-8: byte {position + error.start}, counted from 0") from None
        alphabet.add(text)
        characters, position = characters + len(text), position + len(text.encode())
        if not block:
            break
    training = characters * 9 // 10
    before, at = max(begin for begin in begins if begin[0] <= training)
    file.seek(at)
    rest = codecs.getincrementaldecoder("utf-8")().decode(file.read(BLOCK + 4))[: training - before]
    return Contents(at + len(rest.encode()), position, alphabet.characters(), digest.digest())


def file_at(path: str, label: str) -> tuple[Any, str, int]:
    """Find a file: its fsspec file system, its path there and its size in bytes.

    Raises:
        UserError: If there is none, it is a folder, empty, or cannot be reached.
    """
    try:
        files, root = fsspec.core.url_to_fs(path)
        found = files.info(root)
    except FileNotFoundError:
        raise UserError(f"{label}: no such file") from None
    except ImportError as error:
        raise UserError(f"{label}: needs a package that is not installed: {first_line(error)}") from None
    except Exception as error:  # network file systems raise errors of many classes
        raise UserError(f"{label}: cannot be read: {first_line(error)}") from error
    if found["type"] == "directory":
        raise UserError(f"{label}: is a folder; --dataset text reads one file")
    if found["size"] == 0:
        raise UserError(f"{label}: is empty")
    if found["size"] is None:
        raise UserError(f"{label}: the server does not say how long it is; download it first")
    return files, root, found["size"]
