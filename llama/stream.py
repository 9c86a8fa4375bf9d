"""The training stream of a rank: endless batches, resumed exactly from a saved state."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from llama.sequences import (
    ENCODED_AT_ONCE,
    Batch,
    Cutter,
    Tokens,
    TokenSequence,
    batch_of,
    pack_ids,
    unpack_ids,
    with_end,
)
from llama.shuffling import ShuffledDocuments
from llama.tokenizers import Tokenizer


class Prepared(NamedTuple):
    """A batch that `TextStream.next` has not returned yet."""

    sequences: list[TokenSequence]
    bad_lines: int  # number of bad lines up to it


class TextStream:
    """Gives a rank's micro-batches; a thread prepares the next one in the background.

    Args:
        documents: Documents of this rank.
        tokenizer: Their tokenizer.
        max_length: Tokens per sequence.
        batch_size: Sequences per batch.
        pack: As for `Cutter`.
        accumulate: Batches per optimizer step.
        remembered_steps: Number of last optimizer steps for which `batches_of_step` works.
    """

    def __init__(
        self,
        documents: ShuffledDocuments,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int,
        pack: bool,
        accumulate: int = 1,
        remembered_steps: int = 1,
    ) -> None:
        self.documents, self.tokenizer = documents, tokenizer
        self.max_length, self.batch_size, self.accumulate = max_length, batch_size, accumulate
        self.batches = 0  # number since the beginning of the run, as if `accumulate` had always been the same
        # In the returned batches: documents that ended, tokens, padding; bad lines up to then; epoch, from 0.
        self.counts = {"documents": 0, "tokens": 0, "pads": 0, "bad_lines": 0, "epoch": 0}
        self._cutter = Cutter(self._tokenize, max_length, pack, ends=tokenizer.eos_id is not None)
        self._last: deque[list[TokenSequence]] = deque(maxlen=remembered_steps * accumulate)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._future: Future[Prepared] | None = None

    def next(self) -> Batch:
        """The next batch: `input_ids` and `labels`, int64, shape (batch_size, max_length); labels are -100 at padding.

        Raises:
            UserError: If text cannot be read, or too many lines are bad.
        """
        sequences, bad_lines = self._prepared()
        self._future = self._thread.submit(self._prepare)
        tokens = sum(len(sequence.ids) for sequence in sequences)
        self.batches += 1
        self.counts["documents"] += sum(sequence.ended for sequence in sequences)
        self.counts["tokens"] += tokens
        self.counts["pads"] += len(sequences) * self.max_length - tokens
        self.counts |= {"bad_lines": bad_lines, "epoch": sequences[-1].epoch}
        self._last.append(sequences)
        return self._batch(sequences)

    @property
    def names(self) -> list[str]:
        """The documents of each sequence in the last batch, such as "c4-train.00000-of-01024.json.gz:17"."""
        return names_of(self._last[-1])

    def batches_of_step(self, step: int) -> tuple[list[Batch], list[list[str]]]:
        """The batches of an optimizer step again, and the documents of each sequence in them.

        Args:
            step: Number of optimizer steps before it, for one of the last `remembered_steps` steps.
        """
        first = step * self.accumulate - (self.batches - len(self._last))
        if not 0 <= first <= len(self._last) - self.accumulate:
            raise ValueError(f"the batches of step {step} are not remembered")
        batches = list(self._last)[first : first + self.accumulate]
        return [self._batch(sequences) for sequences in batches], [names_of(sequences) for sequences in batches]

    def state(self) -> dict[str, Any]:
        """The state after the last batch, for `torch.save`; `torch.load(weights_only=True)` can read it."""
        prepared = self._prepared()  # first: from here on the thread is idle
        self._future = _done(prepared)
        coming = prepared.sequences
        return {
            "batches": self.batches,
            "accumulate": self.accumulate,
            "counts": dict(self.counts),
            "documents": self.documents.state(),
            "waiting": self._cutter.state(),
            "coming": {
                "bad_lines": prepared.bad_lines,
                "names": [list(sequence.names) for sequence in coming],
                "ended": [sequence.ended for sequence in coming],
                "epochs": [sequence.epoch for sequence in coming],
                **pack_ids([sequence.ids for sequence in coming]),
            },
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, with the same number of ranks; the batches are bitwise identical."""
        if self._future is not None:
            self._future.exception()  # waits for the thread; its batch is dropped
        steps, rest = divmod(state["batches"], state.get("accumulate", self.accumulate))  # it may have been another
        self.batches, self.counts = steps * self.accumulate + rest, dict(state["counts"])
        self.documents.load(state["documents"])
        self._cutter.load(state["waiting"])
        coming = state["coming"]
        names = [tuple(documents) for documents in coming["names"]]
        sequences = list(map(TokenSequence, unpack_ids(coming), names, coming["ended"], coming["epochs"]))
        self._future = _done(Prepared(sequences, coming["bad_lines"]))
        self._last.clear()

    def close(self) -> None:
        """End the thread and close the file that is being read."""
        self._thread.shutdown()
        self.documents.close()

    def _prepared(self) -> Prepared:
        return (self._future or self._thread.submit(self._prepare)).result()

    def _prepare(self) -> Prepared:
        sequences = []
        for _ in range(self.batch_size):
            sequence = self._cutter.next()
            assert sequence is not None  # documents never end
            sequences.append(sequence)
        return Prepared(sequences, len(self.documents.bad.seen))

    def _tokenize(self) -> list[Tokens]:
        drawn = [self.documents.draw() for _ in range(ENCODED_AT_ONCE)]
        encoded = with_end(self.tokenizer, [document.text for document in drawn])
        return [Tokens(ids, document.name, document.epoch) for ids, document in zip(encoded, drawn, strict=True)]

    def _batch(self, sequences: list[TokenSequence]) -> Batch:
        return batch_of([sequence.ids for sequence in sequences], self.max_length, self.tokenizer.pad_id)


def names_of(sequences: list[TokenSequence]) -> list[str]:
    """The names of each sequence's documents."""
    return [", ".join(sequence.names) for sequence in sequences]


def _done(prepared: Prepared) -> Future[Prepared]:
    future: Future[Prepared] = Future()
    future.set_result(prepared)
    return future
