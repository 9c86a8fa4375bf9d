"""Open the text of a run, and make its training and validation batches."""

import hashlib
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from llama.corpora import FINDERS
from llama.options import TextOptions
from llama.shuffling import ShuffledDocuments, no_documents
from llama.sources import BadLines, Corpus, read_documents
from llama.stream import TextStream
from llama.tokenizers import Tokenizer, shared_tokenizer, without_end
from llama.validation import ValidationBatches, validation_sequences
from runtime.errors import UserError
from runtime.processes import Ranks


@dataclass(frozen=True)
class TextData:
    """Training and validation documents, and their tokenizer."""

    train: Corpus
    validation: Corpus
    tokenizer: Tokenizer

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the text's and the tokenizer's fingerprints.

        The text's is that of file names, sizes and the beginnings of up to 16 files per part; with --dataset text that
        of all text. It does not depend on the folder of the files.
        """
        parts = (self.train.fingerprint(), self.validation.fingerprint(), bytes.fromhex(self.tokenizer.fingerprint))
        return hashlib.sha256(b"".join(parts)).hexdigest()


def open_text(options: TextOptions, ranks: Ranks) -> TextData:
    """Open the text and tokenizer that the options name; all ranks must call this.

    Raises:
        UserError: If text or tokenizer cannot be opened, or a continuous text is shorter than a sequence.
    """
    train, validation = FINDERS[options.dataset](options.data_path, ranks)
    tokenizer = shared_tokenizer(options.tokenizer, ranks, train.alphabet)
    if train.continuous:
        tokenizer = without_end(tokenizer)
        for part, corpus in (("training", train), ("validation", validation)):
            ranks.from_main(partial(require_sequence, corpus, tokenizer, options.max_length, part))
    return TextData(train, validation, tokenizer)


def require_sequence(corpus: Corpus, tokenizer: Tokenizer, max_length: int, part: str) -> None:
    """Raise UserError if the `part` of a continuous text has fewer than `max_length` tokens; reads no more."""
    tokens = 0
    with closing(read_documents(corpus, range(len(corpus.shards)), BadLines(0))) as pieces:
        while tokens < max_length and (piece := next(pieces, None)) is not None:
            tokens += len(tokenizer.encode([piece.text])[0])
    if tokens < max_length:
        found = "1 token" if tokens == 1 else f"{tokens} tokens"
        raise UserError(f"{corpus.label}: {found} for {part}, less than one sequence (--max_length {max_length})")


def train_stream(
    options: TextOptions, text: TextData, ranks: Ranks, *, seed: int, remembered_steps: int = 1
) -> TextStream:
    """Open the stream of this rank's training batches; all ranks must call this.

    Args:
        options: Options of the text.
        text: From `open_text`.
        ranks: The processes; each gets its own documents.
        seed: Seed of the order of documents.
        remembered_steps: Number of last optimizer steps for which `TextStream.batches_of_step` works.

    Raises:
        UserError: If some rank has no document, or no number of micro-steps gives --total_batch_size.
    """
    bad = BadLines(options.max_bad_lines)
    documents = ShuffledDocuments(
        text.train, options.shuffle_buffer, bad, rank=ranks.rank, ranks=ranks.count, seed=seed
    )
    accumulate = options.micro_steps(ranks.count)
    without = [rank for rank, empty in enumerate(ranks.gather(documents.is_empty())) if empty]
    if without:
        raise UserError(no_documents(text.train, without, ranks.count))
    return TextStream(
        documents,
        text.tokenizer,
        max_length=options.max_length,
        batch_size=options.batch_size,
        pack=options.pack,
        accumulate=accumulate,
        remembered_steps=remembered_steps,
    )


def validation_batches(options: TextOptions, text: TextData, ranks: Ranks) -> ValidationBatches:
    """This rank's validation batches. All ranks must call this; the main process reads and tokenizes for all.

    Raises:
        UserError: If there is no validation document, or too many lines are bad.
    """
    return _first_batches(text.validation, "validation", options.target_eval_tokens, options, text, ranks)


def train_eval_batches(options: TextOptions, text: TextData, ranks: Ranks) -> ValidationBatches | None:
    """As `validation_batches`, of the first tokens of the training text; None without --train_eval_tokens."""
    if not options.train_eval_tokens:
        return None
    return _first_batches(text.train, "training", options.train_eval_tokens, options, text, ranks)


def _first_batches(
    corpus: Corpus, part: str, tokens: int, options: TextOptions, text: TextData, ranks: Ranks
) -> ValidationBatches:
    sequences = ranks.tensor_from_main(
        lambda: validation_sequences(
            corpus,
            text.tokenizer,
            BadLines(options.max_bad_lines),
            max_length=options.max_length,
            pack=options.pack,
            target_tokens=tokens,
            part=part,
        )
    )
    return ValidationBatches(sequences, text.tokenizer, options.batch_size, rank=ranks.rank, ranks=ranks.count)
