"""One file of documents, whose last tenth is for validation: JSON lines, or rows of a parquet file."""

import gzip
import hashlib
from array import array
from collections.abc import Iterator
from io import BufferedReader, RawIOBase
from typing import IO, Any, cast

from llama.sources import BadText, bounded_lines, decoded, json_text, numbered_from
from llama.text_files import Alphabet, Contents, OneFile
from runtime.errors import UserError

ROWS = 1024  # of a parquet file that are decoded at once
NO_TEXT = b"\xff"  # stands for a row without text; never part of UTF-8


class JsonLines(OneFile):
    """A file of JSON objects, one per line, whose "text" is a document; gzipped if its name ends in .gz."""

    def text_of(self, raw: bytes) -> str:
        """The "text" of a JSON object; raises BadText if there is none that is valid Unicode."""
        return json_text(raw)

    def _lines(self, file: IO[bytes], first: int) -> Iterator[tuple[int, bytes]]:
        packed = self.root.lower().endswith(".gz")
        # fsspec's own files cannot read a line up to a limit.
        with gzip.open(file) if packed else BufferedReader(cast(RawIOBase, file)) as opened:
            for number, line in numbered_from(max(first, self.begin), bounded_lines(opened)):
                if number >= self.end:
                    return
                if line.strip():
                    yield number, line


class ParquetRows(OneFile):
    """A parquet file whose column "text" has the documents; row groups are read one after the other."""

    def text_of(self, raw: bytes) -> str:
        """The text of a row; raises BadText if it has none that is valid Unicode."""
        if raw == NO_TEXT:
            raise BadText('has no "text"')
        return decoded(raw)

    def _lines(self, file: IO[bytes], first: int) -> Iterator[tuple[int, bytes]]:
        table = open_parquet(file, self.label)
        first, group_end = max(first, self.begin), 0
        for group in range(table.num_row_groups):
            number, group_end = group_end, group_end + table.metadata.row_group(group).num_rows
            if group_end <= first or number >= self.end:
                continue
            for row, text in enumerate(texts_of_group(table, group), start=number):
                if first <= row < self.end:
                    yield row, text


def open_parquet(file: IO[bytes], label: str) -> Any:
    """Open a parquet file with pyarrow.

    Raises:
        UserError: If pyarrow is missing, or the file has no column "text" of strings.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{label}: parquet files need pyarrow; pip install '.[llama]'") from None
    table = parquet.ParquetFile(file, page_checksum_verification=True)
    columns = {column.name: column.type for column in table.schema_arrow}
    if "text" not in columns:
        raise UserError(f"{label}: has no column text, but {', '.join(columns) or 'none'}")
    kind = columns["text"].value_type if pyarrow.types.is_dictionary(columns["text"]) else columns["text"]
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{label}: the column text has {columns['text']}, not strings")
    return table


def texts_of_group(table: Any, group: int) -> Iterator[bytes]:
    """The texts in a row group of a parquet file, NO_TEXT for rows without one; a thousand are decoded at once."""
    import pyarrow

    for batch in table.iter_batches(batch_size=ROWS, row_groups=[group], columns=["text"]):
        column = batch.column(0)
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        for text in column.cast(pyarrow.large_binary()).to_pylist():
            yield NO_TEXT if text is None else text


def documents_of(corpus: OneFile) -> Contents:
    """Read a whole file of documents once: nine tenths of them, rounded down, are for training.

    Raises:
        UserError: If it cannot be read to its end, has fewer than two documents, or none with text in one of the parts.
    """
    lines, filled = array("q"), [-1, -1]  # lines of the documents; the first and last document that is not empty
    alphabet = Alphabet()
    digest, end, reason = hashlib.sha256(), 0, ""
    try:
        for number, raw in corpus.lines(0):
            end = number + 1
            try:
                text = corpus.text_of(raw)
            except BadText as error:
                reason = reason or f"; {corpus.name_of(0, number)}: {error}"
                continue
            if text:
                filled = [len(lines) if filled[0] < 0 else filled[0], len(lines)]
            lines.append(number)
            alphabet.add(text)
            digest.update(f"{len(text)} {text}".encode())
    except BadText as error:
        raise UserError(f"{corpus.label}: {error}") from error
    if len(lines) < 2:
        found = "one document, and none for validation" if lines else "no document"
        raise UserError(f"{corpus.label}: has {found}{reason}")
    training = len(lines) * 9 // 10
    for part, has_text in (("training", 0 <= filled[0] < training), ("validation", filled[1] >= training)):
        if not has_text:
            raise UserError(f"{corpus.label}: its {part} documents have no text")
    return Contents(lines[training], end, alphabet.characters(), digest.digest())
