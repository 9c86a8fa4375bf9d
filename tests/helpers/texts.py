"""Text in C4's format, cut from the source of Python's library, and a small tokenizer as transformers writes one."""

import argparse
import gzip
import inspect
import json
from functools import cache
from pathlib import Path

import torch

from llama.data import TextOptions, open_text, train_stream
from runtime.processes import Ranks

END = 256  # of the bytes tokenizer
ALONE = Ranks(0, 1, torch.device("cpu"))


@cache
def paragraphs() -> tuple[str, ...]:
    """Several hundred different texts of 1 to about 2000 characters."""
    found = dict.fromkeys(inspect.getsource(argparse).split("\n\n"))
    return tuple(f"{number} Straße: {text}" for number, text in enumerate(found))


def c4_lines(texts) -> bytes:
    rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"} for text in texts]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_shard(folder: Path, split: str, number: int, total: int, texts) -> Path:
    path = folder / f"c4-{split}.{number:05}-of-{total:05}.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(texts if isinstance(texts, bytes) else c4_lines(texts), mtime=0))
    return path


def write_c4(folder: Path, shards: int = 3, documents: int = 20, validation: int = 12) -> Path:
    """A folder with so many shards of training, one less document in each than in the one before, and one shard of
    validation."""
    texts = iter(paragraphs())
    for number in range(shards):
        write_shard(folder, "train", number, shards, [next(texts) for _ in range(documents - number)])
    write_shard(folder, "validation", 0, 1, [next(texts) for _ in range(validation)])
    return folder


def read_texts(folder: Path, split: str) -> dict[str, str]:
    """Every document by its name, read without the code under test."""
    found = {}
    for path in sorted(folder.glob(f"c4-{split}.*")):
        for number, line in enumerate(gzip.decompress(path.read_bytes()).splitlines(), start=1):
            found[f"{path.name}:{number}"] = json.loads(line)["text"]
    return found


def save_tokenizer(folder: Path) -> Path:
    """A unigram tokenizer with T5's layout: pad 0, end 1, unknown 2, and <extra_id_N> behind the vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.Unigram())
    model.normalizer, model.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    model.train_from_iterator(paragraphs()[:200], trainer)
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=model, **special)
    fast.add_special_tokens({"additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"]})
    fast.save_pretrained(folder)
    return folder


def save_byte_level_tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer with GPT-2's layout: the only special token ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(paragraphs()[:200], trainer)
    PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


class SomeRanks(Ranks):
    """One of several ranks, which all look for themselves; none is waited for."""

    is_main = True

    def gather(self, value):
        return [value] * self.count


def ranks(rank, count):
    return SomeRanks(rank, count, torch.device("cpu"))


def stream_of(folder, where=ALONE, seed=0, remembered_steps=1, **changed):
    small = {"tokenizer": "bytes", "max_length": 64, "batch_size": 4, "shuffle_buffer": 8}
    options = TextOptions(**{"data_path": str(folder), **small, **changed})
    text = open_text(options, where)
    return train_stream(options, text, where, seed=seed, remembered_steps=remembered_steps)


def take(stream, batches):
    return [stream.next() for _ in range(batches)]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in ("input_ids", "labels")
    )
