"""Text in C4's format, cut from the source of Python's library, and a small tokenizer as transformers writes one."""

import argparse
import gzip
import inspect
import json
from functools import cache
from pathlib import Path

import torch

from runtime.processes import Ranks

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


def save_tokenizer(folder: Path, extra: int = 2) -> Path:
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
    fast.add_special_tokens({"additional_special_tokens": [f"<extra_id_{n}>" for n in range(extra)]})
    fast.save_pretrained(folder)
    return folder
