"""The text of a run: its options, where it comes from, and the batches of training and validation."""

import hashlib
from dataclasses import dataclass

from llama.corpora import FINDERS
from llama.options import TextOptions
from llama.shuffling import ShuffledDocuments, no_documents
from llama.sources import BadLines, Corpus
from llama.stream import TextStream
from llama.tokenizers import Tokenizer, shared_tokenizer
from llama.validation import ValidationBatches, validation_sequences
from runtime.errors import UserError
from runtime.processes import Ranks


@dataclass(frozen=True)
class TextData:
    """Training and validation documents and what makes tokens of them."""

    train: Corpus
    validation: Corpus
    tokenizer: Tokenizer

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of files' names and sizes, some of their contents, and the tokenizer.

        It does not depend on where the files lie. Of each part up to 16 files are looked into.
        """
        parts = (self.train.fingerprint(), self.validation.fingerprint(), bytes.fromhex(self.tokenizer.fingerprint))
        return hashlib.sha256(b"".join(parts)).hexdigest()


def open_text(options: TextOptions, ranks: Ranks) -> TextData:
    """The text and tokenizer that the options name; all ranks must call this.

    Raises:
        UserError: If they cannot be had.
    """
    train, validation = FINDERS[options.dataset](options.data_path, ranks)
    return TextData(train, validation, shared_tokenizer(options.tokenizer, ranks))


def train_stream(
    options: TextOptions, text: TextData, ranks: Ranks, *, seed: int, remembered_steps: int = 1
) -> TextStream:
    """This rank's training batches; all ranks must call this.

    Args:
        options: Of the text.
        text: What `open_text` returned.
        ranks: The processes, which share the documents.
        seed: Of their order.
        remembered_steps: How many of the last optimizer steps' batches can be had again.

    Raises:
        UserError: If some rank has no document, or --total_batch_size cannot be made.
    """
    bad = BadLines(options.max_bad_lines)
    documents = ShuffledDocuments(
        text.train, options.shuffle_buffer, bad, rank=ranks.rank, ranks=ranks.count, seed=seed
    )
    accumulate = options.micro_steps(ranks.count)
    lacking = [rank for rank, empty in enumerate(ranks.gather(documents.is_empty())) if empty]
    if lacking:
        raise UserError(no_documents(text.train, lacking, ranks.count))
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
    """This rank's validation batches; the main process reads and tokenizes for all, which must call this.

    Raises:
        UserError: If there is no validation document, or too many lines are bad.
    """
    sequences = ranks.tensor_from_main(
        lambda: validation_sequences(
            text.validation,
            text.tokenizer,
            BadLines(options.max_bad_lines),
            max_length=options.max_length,
            pack=options.pack,
            target_tokens=options.target_eval_tokens,
        )
    )
    return ValidationBatches(sequences, text.tokenizer, options.batch_size, rank=ranks.rank, ranks=ranks.count)
