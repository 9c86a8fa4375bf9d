"""Tokenizers: bytes, the characters of a text, and those of transformers."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama.tokenizer_files import alphabet_of, byte_level, character_level, has_bytes
from runtime.checkpoints import Checkpoint
from runtime.errors import UserError, first_line
from runtime.processes import Ranks

Ids = NDArray[np.int32]  # of one text, shape (tokens,)


class Tokenizer(ABC):
    """Turns texts into token ids in [0, vocab_size), without special tokens; the caller appends `eos_id`, if any."""

    name: str  # as --tokenizer names it
    vocab_size: int
    eos_id: int | None  # None: documents follow each other without a token between them
    pad_id: int  # labels ignore padding, so it may equal eos_id
    fingerprint: str  # hexadecimal SHA-256 of everything that the ids depend on
    highest: tuple[str, int]  # the token with the highest id that can occur

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, with no other ids before or after."""

    @abstractmethod
    def for_transformers(self) -> Any:
        """A tokenizer of transformers that gives the same ids and can be saved."""

    def byte_counts(self, texts: Sequence[str]) -> list[Ids]:
        """How many UTF-8 bytes of its text each id of `encode` stands for; here, of ids that are one per character."""
        return [character_bytes(text) for text in texts]


def character_bytes(text: str) -> Ids:
    """The number of UTF-8 bytes of each character."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return (1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)).astype(np.int32)


def bytes_up_to(text: str, ends: Sequence[int]) -> Ids:
    """How many UTF-8 bytes each token stands for: those after the tokens before it, up to its own end.

    So text between two tokens belongs to the later one, text after the last token to that, and a character that is
    split into several tokens to the first of them: all tokens together stand for all of the text, if there are any.

    Args:
        text: Not empty if there is a token.
        ends: For each token, the number of characters up to its end; shape (tokens,).

    Example:
        >>> bytes_up_to("a \u00df  b ", [1, 3, 6]).tolist()
        [1, 3, 4]
    """
    if not len(ends):
        return np.empty(0, dtype=np.int32)
    bytes_before = np.concatenate([[0], np.cumsum(character_bytes(text))])  # shape (characters + 1,)
    reached = np.maximum.accumulate(bytes_before[np.asarray(ends)])
    reached[-1] = bytes_before[-1]
    return np.diff(reached, prepend=0).astype(np.int32)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0 to 255; 256 is end of sequence, 257 padding."""

    name, vocab_size, eos_id, pad_id = "bytes", 258, 256, 257
    fingerprint = hashlib.sha256(b"bytes 0-255, eos 256, pad 257").hexdigest()
    highest = ("padding", 257)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """One id per byte."""
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]

    def byte_counts(self, texts: Sequence[str]) -> list[Ids]:
        """One byte per id."""
        return [np.ones(len(text.encode()), dtype=np.int32) for text in texts]

    def for_transformers(self) -> Any:
        """Byte-level BPE without merges."""
        return byte_level()


class CharTokenizer(Tokenizer):
    """The characters of a text as ids, in the order of their code points; no end of sequence, no other tokens.

    Args:
        alphabet: The characters, sorted, each once.
        name: As --tokenizer names it.
    """

    eos_id, pad_id = None, 0

    def __init__(self, alphabet: str, name: str = "chars") -> None:
        self.name, self.alphabet, self.vocab_size = name, alphabet, len(alphabet)
        self.fingerprint = hashlib.sha256(f"characters {alphabet}".encode()).hexdigest()
        self.highest = (alphabet[-1:], len(alphabet) - 1)
        self._code_points = code_points(alphabet)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """One id per character; raises UserError for a character that is not in the alphabet."""
        return [self._ids(text) for text in texts]

    def for_transformers(self) -> Any:
        """A vocabulary of words of one character."""
        return character_level(self.alphabet)

    def _ids(self, text: str) -> Ids:
        points = code_points(text)
        ids = np.searchsorted(self._code_points[:-1], points)
        unknown = points[self._code_points[ids] != points]
        if len(unknown):
            self.require(chr(unknown[0]))
        return ids.astype(np.int32)

    def require(self, characters: str) -> None:
        """Raise UserError if a character is not in the alphabet."""
        for character in characters:
            if character not in self.alphabet:
                raise UserError(f"--tokenizer {self.name}: {character!r} is not among its {self.vocab_size} characters")


def code_points(text: str) -> NDArray[np.uint32]:
    """The Unicode code points of a text, shape (characters,)."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


class HubTokenizer(Tokenizer):
    """A fast tokenizer of transformers.

    If a text spells a special token other than the unknown one, such as T5's <extra_id_0>, the token is dropped: it
    could end a document, or have an id that the model has no embedding for.
    """

    def __init__(self, name: str, fast: Any) -> None:
        self.name, self.fast = name, fast
        self.eos_id, self.vocab_size = fast.eos_token_id, len(fast)
        self.pad_id = self.eos_id if fast.pad_token_id is None else fast.pad_token_id
        self.fingerprint = hashlib.sha256(
            f"{self.eos_id} {self.pad_id} {fast.backend_tokenizer.to_str()}".encode()
        ).hexdigest()
        ids = dict(fast.get_vocab())
        special = {token_id for token_id, token in fast.added_tokens_decoder.items() if token.special}
        special -= {fast.unk_token_id}
        self.dropped = np.zeros(max(ids.values()) + 1, dtype=bool)
        self.dropped[sorted(special)] = True
        unused = special - {self.eos_id, self.pad_id}
        used = {token: token_id for token, token_id in ids.items() if token_id not in unused}
        self.highest = max(used.items(), key=lambda item: item[1])

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids without those of special tokens; several texts are tokenized at once, on several threads."""
        if not texts:
            return []
        arrays = [np.array(ids, dtype=np.int32) for ids in self._encoded(texts)["input_ids"]]
        return [ids[~self.dropped[ids]] for ids in arrays]

    def for_transformers(self) -> Any:
        """The tokenizer itself."""
        return self.fast

    def byte_counts(self, texts: Sequence[str]) -> list[Ids]:
        """From the offsets of tokens in the text; the bytes of a dropped special token belong to the next token."""
        if not texts:
            return []
        encoded = self._encoded(texts, return_offsets_mapping=True)
        return [
            bytes_up_to(text, [end for token, (_, end) in zip(ids, offsets, strict=True) if not self.dropped[token]])
            for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _encoded(self, texts: Sequence[str], **more: bool) -> Any:
        # Not verbose, because a text longer than the model's longest sequence is fine: it is cut later.
        return self.fast(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False, **more)


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer by name: "bytes", a folder that transformers wrote, or a name on the Hugging Face hub.

    A folder to which this program exported bytes or characters gives the tokenizer that was exported.

    Raises:
        UserError: If it cannot be loaded, is not a fast one, or has no end-of-sequence token.
    """
    if name == "bytes":
        return ByteTokenizer()
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise UserError(f"--tokenizer {name}: no such folder")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(
            f"--tokenizer {name}: needs transformers; pip install '.[llama]', or --tokenizer bytes"
        ) from None
    try:
        fast = AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:  # a missing network, a wrong name, a broken file: errors of many classes
        raise UserError(f"--tokenizer {name}: cannot be loaded, not even from a cache: {first_line(error)}") from error
    if not fast.is_fast:
        raise UserError(f"--tokenizer {name}: has no fast version")
    if (own := own_tokenizer(fast.backend_tokenizer, name)) is not None:
        return own
    if fast.eos_token_id is None:
        raise UserError(f"--tokenizer {name}: has no end-of-sequence token")
    return HubTokenizer(name, fast)


def own_tokenizer(backend: Any, name: str) -> Tokenizer | None:
    """The tokenizer of this program that was exported as one of the `tokenizers` library; None if it is another."""
    if has_bytes(backend):
        own = ByteTokenizer()
        own.name = name
        return own
    alphabet = alphabet_of(backend)
    return CharTokenizer(alphabet, name) if alphabet else None


def shared_tokenizer(name: str, ranks: Ranks, alphabet: str = "") -> Tokenizer:
    """Load the tokenizer on every rank. The main process downloads it first, and reports errors for all.

    Args:
        name: As for `load_tokenizer`, or "chars".
        ranks: The processes; all must call this.
        alphabet: The characters of the text, sorted; empty if they are not known.

    Raises:
        UserError: If it cannot be loaded, or its ids are characters and one of the text is not among them.
    """
    if name == "chars":
        return CharTokenizer(alphabet)
    ranks.from_main(lambda: load_tokenizer(name).name)
    try:
        tokenizer = load_tokenizer(name)
    except UserError as error:  # on another machine, which lacks the files of the main one
        raise UserError(str(error)) from error
    if isinstance(tokenizer, CharTokenizer):
        if not alphabet:
            raise UserError(f"--tokenizer {name}: its tokens are characters, which go with --dataset text")
        tokenizer.require(alphabet)
    return tokenizer


def require_recorded(tokenizer: Tokenizer, checkpoint: Checkpoint | None) -> None:
    """Raise UserError if a checkpoint records a tokenizer with other ids: its model would get the wrong tokens."""
    if checkpoint is None:
        return
    recorded = checkpoint.contract().get("facts", {}).get("tokenizer")  # missing in checkpoints of earlier versions
    if recorded not in (None, tokenizer.fingerprint[:16]):
        trained = f"the model of {checkpoint.path} was trained with other ids"
        raise UserError(f"--tokenizer {tokenizer.name} ({tokenizer.vocab_size} tokens): {trained}")


def require_exported(tokenizer: Tokenizer, folder: str) -> None:
    """Raise UserError if an exported model was trained on bytes or characters, and the tokenizer has other ids."""
    file = Path(folder) / "tokenizer.json"
    if not folder or not file.is_file():
        return
    from tokenizers import Tokenizer as Backend

    try:
        own = own_tokenizer(Backend.from_file(str(file)), folder)
    except Exception:  # the library's own class; the file is not one of ours
        return
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise UserError(f"--tokenizer {tokenizer.name}: --init_from {folder} was trained with --tokenizer {folder}")


def without_end(tokenizer: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer that has no end of sequence."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.eos_id = None
    return tokenizer


def require_fits(tokenizer: Tokenizer, model_vocab_size: int) -> None:
    """Raise UserError if a token that can occur has an id beyond the model's vocabulary."""
    token, highest = tokenizer.highest
    if highest >= model_vocab_size:
        last = f"the model's last is {model_vocab_size - 1} (vocab_size {model_vocab_size})"
        raise UserError(f"--tokenizer {tokenizer.name}: token {token!r} has id {highest}, {last}")
