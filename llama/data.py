"""The text of a run: its options, where it comes from, and the batches of training and validation."""

import hashlib
from dataclasses import dataclass

from llama.corpora import FINDERS
from llama.shuffling import ShuffledDocuments, no_documents
from llama.sources import BadLines, Corpus
from llama.stream import TextStream
from llama.tokenizers import Tokenizer, shared_tokenizer
from llama.validation import ValidationBatches, validation_sequences
from runtime.errors import UserError
from runtime.options import option
from runtime.processes import Ranks


@dataclass(frozen=True)
class TextOptions:
    """Text and how it becomes sequences."""

    dataset: str = option("c4", "where text comes from; stdlib: the source of Python's library", choices=tuple(FINDERS))
    data_path: str = option("", "c4: folder or fsspec URL of its .json.gz files, or of en/; none: the hub's")
    tokenizer: str = option("t5-base", "name or folder of a transformers tokenizer, or bytes")
    max_length: int = option(256, "tokens a sequence", minimum=2, fixed="data")
    batch_size: int = option(256, "sequences a process and micro-step", minimum=1, fixed="batch_size")
    total_batch_size: int | None = option(
        None, "sequences an optimizer step; by default one micro-step's", minimum=1, fixed="batch_size"
    )
    pack: bool = option(True, "fill sequences with several documents; off: one each, cut and padded", fixed="data")
    shuffle_buffer: int = option(10_000, "documents in memory from which the next is drawn", minimum=1, fixed="data")
    max_bad_lines: int = option(100, "lines or files a process may find without text before the run ends", minimum=0)
    target_eval_tokens: int = option(10_000_000, "validation tokens, at most", minimum=1, fixed="data")

    CHECKS = (
        (
            lambda o: o.dataset == "c4" or not o.data_path,
            "--data_path {data_path}: goes with --dataset c4, not {dataset}",
        ),
    )

    def micro_steps(self, ranks: int) -> int:
        """Micro-steps an optimizer step with so many processes; UserError if they do not make --total_batch_size."""
        together = self.batch_size * ranks
        count, rest = divmod(self.total_batch_size or together, together)
        if rest:
            product = f"--batch_size {self.batch_size}" + (f" x {ranks} processes" if ranks > 1 else "")
            raise UserError(f"--total_batch_size {self.total_batch_size}: is no multiple of {product}")
        return count


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
