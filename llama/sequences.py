"""Sequences of tokens, packed with several documents or of one document each, and batches of them."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama.tokenizers import Ids, Tokenizer

ENCODED_AT_ONCE = 64  # documents; some tokenizers work on several of them at once, on several threads
IGNORED = -100  # the label that torch's cross entropy ignores
Batch = dict[str, Tensor]  # "input_ids" and "labels", int64, shape (batch, max_length)


class Tokens(NamedTuple):
    """The tokens of a document that are not in a sequence yet, with its end-of-sequence token if there is one."""

    ids: Ids
    name: str
    epoch: int


class TokenSequence(NamedTuple):
    """At most max_length tokens."""

    ids: Ids
    names: tuple[str, ...]  # of its documents
    ended: int  # number of documents that end in it
    epoch: int  # of its last document


class Cutter:
    """Cuts documents into sequences.

    Args:
        next_documents: Returns the next documents, an empty list if there are none left.
        max_length: Largest number of tokens per sequence.
        pack: If true, documents continue across sequences, so that all but the last are full. No token marks where a
            packed document begins, and its tokens attend to those before it. If false, each document is a sequence of
            its first tokens and its end, at most max_length together.
        ends: Whether documents have an end-of-sequence token.
    """

    def __init__(
        self, next_documents: Callable[[], list[Tokens]], max_length: int, pack: bool, ends: bool = True
    ) -> None:
        self.next_documents, self.max_length, self.pack, self.end = next_documents, max_length, pack, int(ends)
        self.waiting: deque[Tokens] = deque()

    def next(self) -> TokenSequence | None:
        """Cut the next sequence; None if there are no tokens left."""
        parts: list[Tokens] = []
        ended, free = 0, self.max_length
        while free and self._has_tokens():
            document = self.waiting.popleft()
            if not self.pack and len(document.ids) > free:
                end = document.ids[len(document.ids) - self.end :]
                document = document._replace(ids=np.append(document.ids[: free - self.end], end))
            part, rest = document.ids[:free], document.ids[free:]
            if len(rest):
                self.waiting.appendleft(document._replace(ids=rest))
            parts.append(document._replace(ids=part))
            ended += not len(rest)
            free -= len(part)
            if not self.pack:
                break
        if not parts:
            return None
        ids = np.concatenate([part.ids for part in parts])
        return TokenSequence(ids, tuple(part.name for part in parts), ended, parts[-1].epoch)

    def _has_tokens(self) -> bool:
        if not self.waiting:
            self.waiting.extend(self.next_documents())
        return bool(self.waiting)

    def state(self) -> dict[str, Any]:
        """The waiting tokens, as plain values and tensors."""
        names, epochs = [tokens.name for tokens in self.waiting], [tokens.epoch for tokens in self.waiting]
        return {"names": names, "epochs": epochs, **pack_ids([tokens.ids for tokens in self.waiting])}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.waiting = deque(map(Tokens, unpack_ids(state), state["names"], state["epochs"]))


def with_end(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """The ids of each text, followed by the end-of-sequence id if the tokenizer has one."""
    if tokenizer.eos_id is None:
        return tokenizer.encode(texts)
    return [np.append(ids, np.int32(tokenizer.eos_id)) for ids in tokenizer.encode(texts)]


def pack_ids(arrays: Sequence[Ids]) -> dict[str, Tensor]:
    """Join arrays of ids: `ids`, int32 (all ids,), and `lengths`, int64 (arrays,)."""
    joined = np.concatenate([np.empty(0, dtype=np.int32), *arrays])
    lengths = torch.tensor([len(ids) for ids in arrays], dtype=torch.int64)
    return {"ids": torch.from_numpy(joined), "lengths": lengths}


def unpack_ids(state: dict[str, Tensor]) -> list[Ids]:
    """Split what `pack_ids` joined into arrays again."""
    ends = np.cumsum(state["lengths"].numpy())
    return np.split(state["ids"].numpy().copy(), ends)[: len(ends)]


def batch_of(sequences: Sequence[Ids], max_length: int, pad_id: int) -> Batch:
    """Make a batch of sequences, padded on the right. Labels are the same ids, but -100 at padding.

    A causal model needs no attention mask for it: a token never attends to the padding on its right.
    """
    input_ids = np.full((len(sequences), max_length), pad_id, dtype=np.int64)
    labels = np.full((len(sequences), max_length), IGNORED, dtype=np.int64)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = labels[row, : len(ids)] = ids
    return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
