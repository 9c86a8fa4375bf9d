"""A rank's documents, shuffled in each epoch. Reading can stop and resume at any document."""

import json
import zlib
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama.sources import BadLines, Corpus, Document, read_documents
from runtime.errors import UserError


class Drawn(NamedTuple):
    """A document of the stream."""

    text: str
    name: str
    epoch: int


class ShuffledDocuments:
    """Draws this rank's documents: each one once per epoch, and none of another rank.

    Shard i belongs to rank i modulo the number of ranks. If there are fewer shards than ranks, line i of every shard
    belongs to that rank instead. The order of shards depends on (seed, epoch). Documents are read into a buffer and
    drawn from it at random; the n-th draw of an epoch depends on (seed, epoch, rank, n). An epoch ends when the buffer
    is empty.

    Args:
        corpus: The documents.
        buffer_size: Largest number of documents in the buffer.
        bad: Counts lines and files without a document.
        rank: Rank of this process.
        ranks: Number of processes.
        seed: Seed of the order.
    """

    def __init__(self, corpus: Corpus, buffer_size: int, bad: BadLines, *, rank: int, ranks: int, seed: int) -> None:
        self.corpus, self.buffer_size, self.bad = corpus, buffer_size, bad
        self.rank, self.ranks, self.seed = rank, ranks, seed
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        self.epoch, self.draws = epoch, 0
        self.position, self.line = 0, 0  # of the next line to read: index in the order of shards, line
        self.buffer: list[tuple[str, int, int]] = []  # text, shard, line
        self.reading: Generator[Document, None, None] | None = self._read()

    def _read(self) -> Generator[Document, None, None]:
        """Read this rank's documents of the epoch, from `position` and `line` on."""
        by_shards = len(self.corpus.shards) >= self.ranks
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.corpus.shards)).tolist()
        if by_shards:
            order = [shard for shard in order if shard % self.ranks == self.rank]
        part, parts = (0, 1) if by_shards else (self.rank, self.ranks)
        start = {"position": self.position, "first_line": self.line}
        return read_documents(self.corpus, order, self.bad, **start, part=part, parts=parts)

    def is_empty(self) -> bool:
        """Whether this rank has no document at all; reads only up to the first one."""
        return next(self._read(), None) is None

    def draw(self) -> Drawn:
        """Draw the next document; after an epoch's last one comes the next epoch's first.

        Raises:
            UserError: If an epoch has no document, or too many lines are bad.
        """
        self._fill()
        if not self.buffer:
            if not self.draws:
                raise UserError(no_documents(self.corpus, [self.rank], self.ranks))
            self._begin(self.epoch + 1)
            return self.draw()
        index = int(np.random.default_rng((self.seed, self.epoch, self.rank, self.draws)).integers(len(self.buffer)))
        self.draws += 1
        text, shard, line = self.buffer[index]
        self.buffer[index] = self.buffer[-1]
        self.buffer.pop()
        return Drawn(text, self.corpus.name_of(shard, line), self.epoch)

    def _fill(self) -> None:
        while self.reading is not None and len(self.buffer) < self.buffer_size:
            document = next(self.reading, None)
            if document is None:
                self.reading = None
                return
            self.position, self.line = document.position, document.line + 1
            self.buffer.append((document.text, document.shard, document.line))

    def close(self) -> None:
        """Close the file that is being read."""
        if self.reading is not None:
            self.reading.close()

    def state(self) -> dict[str, Any]:
        """The state of reading and drawing, as plain values and tensors; texts are compressed."""
        texts = json.dumps([text for text, _, _ in self.buffer], ensure_ascii=False).encode()
        places = [(shard, line) for _, shard, line in self.buffer]
        return {
            "epoch": self.epoch,
            "draws": self.draws,
            "position": self.position,
            "line": self.line,
            "texts": torch.from_numpy(np.frombuffer(zlib.compress(texts, level=1), dtype=np.uint8).copy()),
            "places": torch.tensor(places, dtype=torch.int64).reshape(-1, 2),
            "bad": list(self.bad.seen),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned; reads the shard again up to the saved line."""
        self.epoch, self.draws = state["epoch"], state["draws"]
        self.position, self.line = state["position"], state["line"]
        self.bad.seen = dict.fromkeys(state["bad"])
        places: Tensor = state["places"]
        texts = json.loads(zlib.decompress(state["texts"].numpy().tobytes()))
        self.buffer = [(text, shard, line) for text, (shard, line) in zip(texts, places.tolist(), strict=True)]
        self.reading = self._read()


def no_documents(corpus: Corpus, without: list[int], ranks: int) -> str:
    """The message that some ranks are without documents."""
    which = f" for process {', '.join(map(str, without))} of {ranks} (counted from 0)" if ranks > 1 else ""
    return f"{corpus.label}: no training document{which}"
