"""Text files and the documents in them: C4's shards, local or on the hub, and Python's standard library."""

import gzip
import hashlib
import json
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from runtime.errors import UserError, first_line, printable

NAMED_BAD = 20  # bad lines that are named; further ones are only counted
READ_SHARDS, READ_BYTES = 16, 4096  # a fingerprint covers the first bytes (4096) of up to this many files (16)
LONGEST_LINE = 64 << 20  # bytes; a longer line has no document
PIECE = 2000  # bytes of a source file per document, which then continues to the end of its line


class BadText(Exception):
    """A line, or the rest of a file, without a document; the message is the reason."""


class Shard(NamedTuple):
    """A file of text."""

    name: str  # path below the root of the corpus
    size: int  # bytes


class Document(NamedTuple):
    """A text and its place in the corpus."""

    text: str
    shard: int  # index of its file among the shards of the corpus
    line: int  # of that file, counted from 0
    position: int  # index of its file in the order of reading


@dataclass(frozen=True)
class Corpus(ABC):
    """Files of documents, in a fixed order.

    `label` names the option that selected them, for messages; `files` is an fsspec file system.
    """

    label: str
    files: Any
    root: str
    shards: tuple[Shard, ...]
    continuous = False  # whether documents are pieces of one text, so that no end-of-sequence token separates them

    @property
    def alphabet(self) -> str:
        """All characters of the training and validation text, sorted; empty if they are not known."""
        return ""

    def name_of(self, shard: int, line: int) -> str:
        """A document's name in messages, such as FILE:17: its file, and its line or piece counted from 1."""
        return f"{self.shards[shard].name}:{line + 1}"

    @abstractmethod
    def text_of(self, raw: bytes) -> str:
        """The text of a line; raises BadText if it has none."""

    @abstractmethod
    def _lines(self, file: IO[bytes], first: int) -> Iterator[tuple[int, bytes]]:
        """The lines of an open file with their numbers, from number `first` on."""

    def path(self, shard: int) -> str:
        """The path of a shard."""
        return f"{self.root}/{self.shards[shard].name}"

    def lines(self, shard: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """Read the lines of a shard with their numbers, from number `first` on.

        Raises:
            BadText: If the file is empty, missing or truncated.
            UserError: If it cannot be read for another reason, such as a network failure.
        """
        number = first - 1
        if not self.shards[shard].size:
            raise BadText("empty")
        try:
            with self.files.open(self.path(shard), "rb") as file:
                for number, line in self._lines(file, first):
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadText(f"broken after line {number + 1}, the rest is lost: {first_line(error)}") from error
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise BadText(f"cannot be opened: {type(error).__name__}") from error
        except (BadText, UserError):
            raise
        except Exception as error:  # network file systems raise errors of many classes
            message = f"{self.label}: {self.shards[shard].name} cannot be read: {first_line(error)}"
            raise UserError(message) from error

    def fingerprint(self) -> bytes:
        """SHA-256 of all files' names and sizes, and of the first bytes of up to 16 evenly spaced ones."""
        digest = hashlib.sha256(json.dumps(self.shards).encode())
        for shard in np.linspace(0, len(self.shards) - 1, min(len(self.shards), READ_SHARDS)).round().astype(int):
            digest.update(hashlib.sha256(self._beginning(shard)).digest())
        return digest.digest()

    def _beginning(self, shard: int) -> bytes:
        try:
            # Without block_size, 5 MB would be read from the hub.
            with self.files.open(self.path(shard), "rb", block_size=READ_BYTES) as file:
                return file.read(READ_BYTES)
        except OSError:  # training skips such files too
            return b"missing"


class C4Shards(Corpus):
    """Gzipped files with one JSON object per line, whose "text" is a document."""

    def text_of(self, raw: bytes) -> str:
        """The "text" of a JSON object; raises BadText if there is none that is valid Unicode."""
        return json_text(raw)

    def _lines(self, file: IO[bytes], first: int) -> Iterator[tuple[int, bytes]]:
        with gzip.open(file) as lines:
            yield from numbered_from(first, bounded_lines(lines))


class SourceFiles(Corpus):
    """Files cut into documents of whole lines, because one long file would fill hundreds of steps with similar text."""

    def text_of(self, raw: bytes) -> str:
        """The decoded piece of a file; raises BadText if it is not UTF-8."""
        return decoded(raw)

    def _lines(self, file: IO[bytes], first: int) -> Iterator[tuple[int, bytes]]:
        yield from numbered_from(first, self._pieces(file))

    def _pieces(self, file: IO[bytes]) -> Iterator[bytes]:
        piece = b""
        for line in bounded_lines(file):
            piece += line
            if len(piece) >= PIECE:
                yield piece
                piece = b""
        if piece:
            yield piece


def json_text(raw: bytes) -> str:
    """The "text" of a JSON object; raises BadText if there is none that is valid Unicode."""
    if len(raw) >= LONGEST_LINE:
        raise BadText(f"longer than {LONGEST_LINE >> 20} MB")
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadText(f"not JSON in UTF-8: {first_line(error)}") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise BadText('has no "text"')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can contain half of a surrogate pair
        raise BadText(f"the text is not valid Unicode: {first_line(error)}") from error
    return text


def decoded(raw: bytes) -> str:
    """The text of UTF-8 bytes; raises BadText if they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadText(f"not UTF-8: {first_line(error)}") from error


def numbered_from(first: int, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number lines from 0, and leave out those before number `first`."""
    return islice(enumerate(lines), first, None)


def bounded_lines(file: IO[bytes] | gzip.GzipFile | BufferedReader) -> Iterator[bytes]:
    """The lines of a file, cut off at LONGEST_LINE bytes: a small compressed file can contain a line of gigabytes."""
    while line := file.readline(LONGEST_LINE):
        rest = line
        while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
        yield line


class BadLines:
    """Counts lines and files without a document, names the first ones, and ends the run if there are too many."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: dict[str, None] = {}  # names, in the order of reading

    def note(self, name: str, reason: object) -> None:
        """Count a line or file, unless it was counted before; raise UserError if there are more than `limit`."""
        if name in self.seen:
            return
        self.seen[name] = None
        if len(self.seen) > self.limit:
            problem = f"{len(self.seen)} lines or files give no text, the last {name}: {reason}"
            raise UserError(f"--max_bad_lines {self.limit}: {problem}")
        if len(self.seen) <= NAMED_BAD:
            warn(f"skipped text {len(self.seen)}: {name}: {reason}")
        if len(self.seen) == NAMED_BAD:
            warn("further skipped texts are only counted")


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
    """Read the documents of shards in the given order; count lines and files without one in `bad`.

    Args:
        corpus: The shards.
        order: Indices of shards.
        bad: Counts them, and ends the run if there are too many.
        position: Index in `order` to begin at.
        first_line: Line of that shard to begin at.
        part: Read only lines whose number modulo `parts` is this.
        parts: See `part`.
    """
    for index in range(position, len(order)):
        shard = order[index]
        try:
            for number, raw in corpus.lines(shard, first_line if index == position else 0):
                if number % parts != part:
                    continue
                try:
                    text = corpus.text_of(raw)
                except BadText as reason:
                    bad.note(corpus.name_of(shard, number), reason)
                    continue
                yield Document(text, shard, number, index)
        except BadText as reason:
            bad.note(corpus.shards[shard].name, reason)


def warn(message: str) -> None:
    """Write a warning to standard error, above a progress bar if there is one."""
    tqdm.write(f"warning: {printable(message)}", file=sys.stderr)
