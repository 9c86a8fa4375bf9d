"""Bytes and characters as tokenizers of the `tokenizers` library, which transformers loads from an exported folder."""

from typing import Any

END, PADDING = "</s>", "<pad>"  # of bytes; in a text they are bytes like any others


def byte_level() -> Any:
    """A transformers tokenizer with the ids of `llama.tokenizers.ByteTokenizer`: byte-level BPE without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    backend = Tokenizer(models.BPE(vocab=vocabulary | {END: 256, PADDING: 257}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _for_transformers(backend, eos_token=END, pad_token=PADDING, split_special_tokens=True)


def character_level(alphabet: str) -> Any:
    """A transformers tokenizer with the ids of `llama.tokenizers.CharTokenizer`; other characters raise its error."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({character: number for number, character in enumerate(alphabet)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return _for_transformers(backend)


def _for_transformers(backend: Any, **special: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def byte_characters() -> list[str]:
    """The characters that stand for bytes 0 to 255 in byte-level vocabularies.

    Printable bytes stand for themselves, the others are numbered from 256 on. Source: `bytes_to_unicode` of GPT-2's
    encoder.py (github.com/openai/gpt-2).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def has_bytes(backend: Any) -> bool:
    """Whether a tokenizer of the `tokenizers` library is that of `byte_level`."""
    return backend.to_str() == byte_level().backend_tokenizer.to_str()


def alphabet_of(backend: Any) -> str:
    """The alphabet of which `character_level` makes a tokenizer of the `tokenizers` library; "" if there is none."""
    vocabulary = sorted(backend.get_vocab())
    if any(len(token) != 1 for token in vocabulary):
        return ""
    alphabet = "".join(vocabulary)
    return alphabet if backend.to_str() == character_level(alphabet).backend_tokenizer.to_str() else ""
