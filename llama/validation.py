"""Validation sequences: the same whatever the batch size and the number of processes."""

import math
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from llama.sequences import ENCODED_AT_ONCE, Batch, Cutter, Tokens, batch_of, with_end
from llama.sources import BadLines, Corpus, read_documents
from llama.tokenizers import Tokenizer
from runtime.errors import UserError


def validation_sequences(
    corpus: Corpus, tokenizer: Tokenizer, bad: BadLines, *, max_length: int, pack: bool, target_tokens: int
) -> Tensor:
    """The first `target_tokens` validation tokens in the order of the files, cut into sequences.

    Args:
        corpus: Validation documents.
        tokenizer: For them.
        bad: Takes note of what gives no document.
        max_length: Tokens a sequence.
        pack: As for `llama.sequences.Cutter`; without it only what the sequences hold counts.
        target_tokens: Tokens, ends of documents included and pads not; fewer if there are no more.

    Returns:
        int32 (sequences, 1 + max_length): the number of tokens of each sequence, then its ids, then zeros.

    Raises:
        UserError: If there is no document.
    """
    documents = read_documents(corpus, range(len(corpus.shards)), bad)

    def more() -> list[Tokens]:
        texts = [each.text for each in islice(documents, ENCODED_AT_ONCE)]
        return [Tokens(ids, "", 0) for ids in with_end(tokenizer, texts)]

    cutter, rows, left = Cutter(more, max_length, pack), [], target_tokens
    with closing(documents):
        while left and (sequence := cutter.next()) is not None:
            ids = sequence.ids[:left]
            rows.append(np.zeros(1 + max_length, dtype=np.int32))
            rows[-1][0], rows[-1][1 : 1 + len(ids)] = len(ids), ids
            left -= len(ids)
    if not rows:
        raise UserError(f"{corpus.label}: no validation document")
    return torch.from_numpy(np.stack(rows))


class ValidationBatches:
    """This rank's share of the validation sequences: every sequence is on exactly one rank.

    Rank r has the sequences r, r + ranks, ...; iterating needs no other rank. `most_batches` is the number of batches
    of the rank that has the most, `tokens` the number of tokens of all ranks.
    """

    def __init__(self, sequences: Tensor, tokenizer: Tokenizer, batch_size: int, *, rank: int, ranks: int) -> None:
        self.own = sequences[rank::ranks].clone()  # a copy: the others' can be freed
        self.pad_id, self.batch_size = tokenizer.pad_id, batch_size
        self.most_batches = math.ceil(math.ceil(len(sequences) / ranks) / batch_size)
        self.tokens = int(sequences[:, 0].sum())

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.own.split(self.batch_size) if len(self.own) else ():
            ids = [row[1 : 1 + row[0]] for row in rows.numpy()]
            yield batch_of(ids, self.own.shape[1] - 1, self.pad_id)
