"""Sequences to evaluate a model on, which do not depend on the batch size or the number of processes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama.sequences import ENCODED_AT_ONCE, Batch, Cutter, Tokens, batch_of, with_end
from llama.sources import BadLines, Corpus, read_documents
from llama.tokenizers import Tokenizer
from runtime.errors import UserError

OPTIONS = {"validation": "--target_eval_tokens", "training": "--train_eval_tokens"}


def validation_sequences(
    corpus: Corpus,
    tokenizer: Tokenizer,
    bad: BadLines,
    *,
    max_length: int,
    pack: bool,
    target_tokens: int,
    part: str = "validation",
) -> Tensor:
    """Cut the first `target_tokens` tokens, in the order of the files, into sequences.

    Args:
        corpus: Validation or training documents.
        tokenizer: Their tokenizer.
        bad: Counts lines and files without a document.
        max_length: Tokens per sequence.
        pack: As for `llama.sequences.Cutter`; if false, dropped tokens of long documents do not count.
        target_tokens: Number of tokens, including ends of documents but not padding; fewer if there are no more.
        part: A key of OPTIONS: which documents they are, for messages.

    Returns:
        int32, shape (sequences, 2 + max_length): the number of tokens of each sequence, the UTF-8 bytes that all but
        its first token stand for, then its ids, then zeros.

    Raises:
        UserError: If there is no document, or no token that another one precedes in its sequence.
    """
    documents = read_documents(corpus, range(len(corpus.shards)), bad)

    def next_documents() -> list[Tokens]:
        texts = [document.text for document in islice(documents, ENCODED_AT_ONCE)]
        return [Tokens(ids, "", 0) for ids in with_bytes(tokenizer, texts)]

    cutter = Cutter(next_documents, max_length, pack, ends=tokenizer.eos_id is not None)
    rows, left = [], target_tokens
    with closing(documents):
        while left and (sequence := cutter.next()) is not None:
            tokens: Any = sequence.ids[:left]
            rows.append(np.zeros(2 + max_length, dtype=np.int32))
            rows[-1][:2] = len(tokens), tokens["bytes"][1:].sum()
            rows[-1][2 : 2 + len(tokens)] = tokens["id"]
            left -= len(tokens)
    if not rows:
        raise UserError(f"{corpus.label}: no {part} document")
    if not any(row[0] > 1 for row in rows):
        raise UserError(f"{OPTIONS[part]} {target_tokens}: none is predicted, as the first of a sequence never is")
    return torch.from_numpy(np.stack(rows))


def with_bytes(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Any]:
    """The ids of each text, with its end if the tokenizer has one, each with the UTF-8 bytes that it stands for.

    Arrays of shape (tokens,) with the fields "id" and "bytes". An end of sequence stands for 0 bytes.
    """
    found = []
    for ids, counts in zip(with_end(tokenizer, texts), tokenizer.byte_counts(texts), strict=True):
        if len(counts) not in (len(ids) - 1, len(ids)):
            raise ValueError(f"{tokenizer.name}: {len(ids)} ids with the end, but {len(counts)} counts of bytes")
        tokens = np.zeros(len(ids), dtype=[("id", np.int32), ("bytes", np.int32)])
        tokens["id"], tokens["bytes"][: len(counts)] = ids, counts
        found.append(tokens)
    return found


class ValidationBatches:
    """This rank's share of sequences to evaluate on: every sequence is on exactly one rank.

    Rank r has the sequences r, r + ranks, ...; ranks may iterate independently. `max_batches` is the largest number of
    batches on any rank, `tokens` the number of tokens of all ranks. Batches also have "bytes", int64, shape (batch,):
    the UTF-8 bytes that the predicted tokens of each sequence stand for.
    """

    def __init__(self, sequences: Tensor, tokenizer: Tokenizer, batch_size: int, *, rank: int, ranks: int) -> None:
        self.own = sequences[rank::ranks].clone()  # a copy, so that the other ranks' sequences can be freed
        self.pad_id, self.batch_size, self.max_length = tokenizer.pad_id, batch_size, sequences.shape[1] - 2
        self.max_batches = math.ceil(math.ceil(len(sequences) / ranks) / batch_size)
        self.tokens = int(sequences[:, 0].sum())

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.own.split(self.batch_size) if len(self.own) else ():
            ids = [row[2 : 2 + row[0]] for row in rows.numpy()]
            yield batch_of(ids, self.max_length, self.pad_id) | {"bytes": rows[:, 1].long()}
