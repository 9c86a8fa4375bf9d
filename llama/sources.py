"""Files of text and the documents in them: C4's shards, on a disk or on the hub, and Python's standard library."""

import gzip
import hashlib
import json
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from runtime.errors import UserError, first_line, printable

NAMED_BAD = 20  # lines that are named; further ones are only counted
READ_SHARDS, READ_BYTES = 16, 4096  # of so many files of a part, so many first bytes go into a fingerprint
LONGEST_LINE = 64 << 20  # bytes; a longer one gives no document
PIECE = 2000  # bytes of a source file that are a document, and what is left of a line


class BadText(Exception):
    """A line, or the rest of a file, that gives no document; the message is the reason."""


class Shard(NamedTuple):
    """A file of text."""

    name: str  # path below the corpus' root
    size: int  # bytes


class Document(NamedTuple):
    """A text, and where the reading of its corpus stood behind it."""

    text: str
    shard: int  # place of its file among the corpus' shards
    line: int  # in that file, counted from 0
    position: int  # place of its file in the order in which they are read


@dataclass(frozen=True)
class Corpus(ABC):
    """Files that hold documents, in a fixed order.

    `label` names the option that chose them, for messages; `files` is an fsspec file system.
    """

    label: str
    files: Any
    root: str
    shards: tuple[Shard, ...]

    @abstractmethod
    def name_of(self, shard: int, line: int) -> str:
        """A document's name for people: its file and, where a file holds many, its line counted from 1."""

    @abstractmethod
    def text_of(self, raw: bytes) -> str:
        """The text of a line; raises BadText if it has none."""

    @abstractmethod
    def _lines(self, file: IO[bytes]) -> Iterator[bytes]: ...

    def path(self, shard: int) -> str:
        """Where a shard lies."""
        return f"{self.root}/{self.shards[shard].name}"

    def lines(self, shard: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """The lines of a shard with their numbers, from `first` on; those before are read and dropped.

        Raises:
            BadText: If the file is empty, gone or ends too early.
            UserError: If it cannot be read for another reason, such as a network that is down.
        """
        number = -1
        if not self.shards[shard].size:
            raise BadText("empty")
        try:
            with self.files.open(self.path(shard), "rb") as file:
                for number, line in enumerate(self._lines(file)):
                    if number >= first:
                        yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadText(f"broken behind line {number + 1}, the rest is lost: {first_line(error)}") from error
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise BadText(f"cannot be opened: {type(error).__name__}") from error
        except Exception as error:  # file systems of the network raise errors of many kinds
            message = f"{self.label}: {self.shards[shard].name} cannot be read: {first_line(error)}"
            raise UserError(message, here_only=True) from error

    def fingerprint(self) -> bytes:
        """SHA-256 of all files' names and sizes, and of the first bytes of up to 16 evenly spaced ones."""
        digest = hashlib.sha256(json.dumps(self.shards).encode())
        for shard in np.linspace(0, len(self.shards) - 1, min(len(self.shards), READ_SHARDS)).round().astype(int):
            digest.update(hashlib.sha256(self._beginning(shard)).digest())
        return digest.digest()

    def _beginning(self, shard: int) -> bytes:
        try:
            with self.files.open(self.path(shard), "rb", block_size=READ_BYTES) as file:  # else 5 MB from the hub
                return file.read(READ_BYTES)
        except OSError:  # training survives such files too
            return b"missing"


class C4Shards(Corpus):
    """Gzipped files with a JSON object a line, whose "text" is a document."""

    def name_of(self, shard: int, line: int) -> str:
        """Such as c4-train.00000-of-01024.json.gz:17."""
        return f"{self.shards[shard].name}:{line + 1}"

    def text_of(self, raw: bytes) -> str:
        """The "text" of a JSON object; raises BadText if there is none that is valid Unicode."""
        if len(raw) >= LONGEST_LINE:
            raise BadText(f"longer than {LONGEST_LINE >> 20} MB")
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadText(f"no JSON in UTF-8: {first_line(error)}") from error
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise BadText('holds no "text"')
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell halves of characters
            raise BadText(f"the text is no Unicode: {first_line(error)}") from error
        return text

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        with gzip.open(file) as lines:
            yield from bounded_lines(lines)


class SourceFiles(Corpus):
    """Files cut into documents of whole lines: whole, one could fill hundreds of steps with text of one kind."""

    def name_of(self, shard: int, line: int) -> str:
        """The file's path below the root, and the number of the piece."""
        return f"{self.shards[shard].name}:{line + 1}"

    def text_of(self, raw: bytes) -> str:
        """The decoded file; raises BadText if it is no UTF-8."""
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise BadText(f"no UTF-8: {first_line(error)}") from error

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        piece = b""
        for line in bounded_lines(file):
            piece += line
            if len(piece) >= PIECE:
                yield piece
                piece = b""
        if piece:
            yield piece


def bounded_lines(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """The lines of a file, each cut off at LONGEST_LINE bytes: a small compressed file can hold a line of gigabytes."""
    while line := file.readline(LONGEST_LINE):
        rest = line
        while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
        yield line


class BadLines:
    """Counts the lines that give no document, names the first ones, and ends the run when they are too many."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen: dict[str, None] = {}  # names, in the order in which they were met

    def note(self, name: str, reason: object) -> None:
        """Take note of a line or file; raise UserError beyond the limit. One that was noted before is ignored."""
        if name in self.seen:
            return
        self.seen[name] = None
        if len(self.seen) > self.most:
            bad = f"{len(self.seen)} lines or files give no text, the last {name}: {reason}"
            raise UserError(f"--max_bad_lines {self.most}: {bad}", here_only=True)
        if len(self.seen) <= NAMED_BAD:
            warn(f"skipped text {len(self.seen)}: {name}: {reason}")
        if len(self.seen) == NAMED_BAD:
            warn("further texts that are skipped are only counted")


def read_documents(
    corpus: Corpus,
    order: Sequence[int],
    bad: BadLines,
    *,
    position: int = 0,
    first_line: int = 0,
    part: int = 0,
    parts: int = 1,
) -> Generator[Document, None, None]:
    """Documents of shards in the given order; lines and files that give none are noted in `bad`.

    Args:
        corpus: Where they are.
        order: Shards by their places in the corpus.
        bad: Takes note, and ends the run.
        position: Place in `order` to begin at.
        first_line: Line of that shard to begin at.
        part: Only lines whose number has this remainder ...
        parts: ... modulo this.
    """
    for place in range(position, len(order)):
        shard = order[place]
        try:
            for number, raw in corpus.lines(shard, first_line if place == position else 0):
                if number % parts != part:
                    continue
                try:
                    text = corpus.text_of(raw)
                except BadText as reason:
                    bad.note(corpus.name_of(shard, number), reason)
                    continue
                yield Document(text, shard, number, place)
        except BadText as reason:
            bad.note(corpus.shards[shard].name, reason)


def warn(message: str) -> None:
    """Write a warning to standard error, above a progress bar if there is one."""
    tqdm.write(f"warning: {printable(message)}", file=sys.stderr)
