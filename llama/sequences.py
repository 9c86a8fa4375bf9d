"""Sequences of tokens: documents packed into full ones, or one document each, and batches of them."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama.tokenizers import Ids, Tokenizer

ENCODED_AT_ONCE = 64  # documents; tokenizers that work on several threads take several
IGNORED = -100  # the label that torch's cross entropy leaves out
Batch = dict[str, Tensor]  # "input_ids" and "labels", int64 (batch, max_length)


class Tokens(NamedTuple):
    """A document's tokens that are in no sequence yet, with the token of its end."""

    ids: Ids
    name: str
    epoch: int


class TokenSequence(NamedTuple):
    """At most max_length tokens."""

    ids: Ids
    names: tuple[str, ...]  # of the documents it is of
    ended: int  # documents that end in it
    epoch: int  # of the last document


class Cutter:
    """Cuts documents into sequences.

    Args:
        more: Returns the next documents, an empty list if there are none left.
        max_length: Tokens a sequence, at most.
        pack: Documents follow each other across sequences, so that all are full but the last; else each document is a
            sequence, and what is behind its first max_length - 1 tokens is dropped. No token marks where a packed
            document begins, and attention sees those before it.
    """

    def __init__(self, more: Callable[[], list[Tokens]], max_length: int, pack: bool) -> None:
        self.more, self.max_length, self.pack = more, max_length, pack
        self.waiting: deque[Tokens] = deque()

    def next(self) -> TokenSequence | None:
        """The next sequence; None if there are no tokens left."""
        parts: list[Tokens] = []
        ended, room = 0, self.max_length
        while room and self._waits():
            document = self.waiting.popleft()
            if not self.pack and len(document.ids) > room:
                document = document._replace(ids=np.append(document.ids[: room - 1], document.ids[-1:]))
            part, rest = document.ids[:room], document.ids[room:]
            if len(rest):
                self.waiting.appendleft(document._replace(ids=rest))
            parts.append(document._replace(ids=part))
            ended += not len(rest)
            room -= len(part)
            if not self.pack:
                break
        if not parts:
            return None
        ids = np.concatenate([part.ids for part in parts])
        return TokenSequence(ids, tuple(part.name for part in parts), ended, parts[-1].epoch)

    def _waits(self) -> bool:
        if not self.waiting:
            self.waiting.extend(self.more())
        return bool(self.waiting)

    def state(self) -> dict[str, Any]:
        """The tokens that wait, as plain values and tensors."""
        names, epochs = [each.name for each in self.waiting], [each.epoch for each in self.waiting]
        return {"names": names, "epochs": epochs, **pack_ids([each.ids for each in self.waiting])}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.waiting = deque(map(Tokens, unpack_ids(state), state["names"], state["epochs"]))


def with_end(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """The ids of each text and, behind them, the end of sequence."""
    return [np.append(ids, np.int32(tokenizer.eos_id)) for ids in tokenizer.encode(texts)]


def pack_ids(arrays: Sequence[Ids]) -> dict[str, Tensor]:
    """Arrays of ids as one tensor, with their lengths."""
    joined = np.concatenate([np.empty(0, dtype=np.int32), *arrays])
    lengths = torch.tensor([len(each) for each in arrays], dtype=torch.int64)
    return {"ids": torch.from_numpy(joined), "lengths": lengths}


def unpack_ids(state: dict[str, Tensor]) -> list[Ids]:
    """What `pack_ids` joined."""
    ends = np.cumsum(state["lengths"].numpy())
    return np.split(state["ids"].numpy().copy(), ends)[: len(ends)]


def batch_of(sequences: Sequence[Ids], max_length: int, pad_id: int) -> Batch:
    """Sequences of ids, padded on the right, with labels that are the same ids but -100 where they are padded.

    A causal model needs no attention mask for these: no token sees those to its right.
    """
    input_ids = np.full((len(sequences), max_length), pad_id, dtype=np.int64)
    labels = np.full((len(sequences), max_length), IGNORED, dtype=np.int64)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = labels[row, : len(ids)] = ids
    return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
