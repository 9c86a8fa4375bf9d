"""main_llama.py: configurations that cannot be, folders of models, exports, and shards of text."""

import gzip
import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from tiny_text import changed_config

from attacks.attack import BAD_JSON, BAD_TENSORS, Attack, put

DRY = "--dry_run "
C4 = "--dataset c4 --tokenizer bytes --data_path {here}/c4 --max_steps 1 "
CONFIGS = {
    "no word": {"vocab_size": 0}, "negative words": {"vocab_size": -1},
    "no hidden size": {"hidden_size": 0}, "no heads": {"num_attention_heads": 0},
    "no layer": {"num_hidden_layers": 0}, "layers in words": {"num_hidden_layers": "many"},
    "heads that do not divide": {"num_attention_heads": 3}, "size null": {"hidden_size": None},
    "activation of nothing": {"hidden_act": "__import__"}, 
    "kind unknown": {"model_type": "../x"}, "kind a list": {"model_type": ["llama"]},
    "epsilon text": {"rms_norm_eps": "small"}, "theta null": {"rope_theta": "x"},
    "positions negative": {"max_position_embeddings": -1},
}  # fmt: skip
LINES = {
    "no JSON": b"no json\n", "a list": b"[1]\n", "no text": b'{"a": 1}\n', "text a number": b'{"text": 3}\n',
    "not UTF-8": b'{"text": "\xff"}\n', "deep": b'{"text": ' + b"[" * 100_000 + b"\n", "NUL": bytes(100) + b"\n",
}  # fmt: skip


def _c4(train: bytes | None = None, validation: bytes | None = None, packed: bool = True):
    good = json.dumps({"text": "word " * 200}).encode() + b"\n"

    def build(here: Path) -> None:
        for split, content in (("train", train), ("validation", validation)):
            content = good * 50 if content is None else content
            path = here / "c4" / f"c4-{split}.00000-of-00001.json.gz"
            put(path, gzip.compress(content, mtime=0) if packed or content.startswith(b'{"text": "word') else content)

    return build


def _text(content: bytes):
    return lambda here: put(here / "text.txt", content)


def _model(name: str, content):
    return lambda here: put(here / "model" / name, content)


def _without(part: str, more: bool = False):
    def build(here: Path) -> None:
        path = here / "model" / "model.safetensors"
        weights = {name: w for name, w in load_file(path).items() if part not in name}
        if more:
            weights = load_file(path) | {"intruder.weight": next(iter(weights.values())).clone()}
        path.unlink()
        save_file(weights, path, {"format": "pt"})

    return build


def _index(weight_map):
    def build(here: Path) -> None:
        (here / "model" / "model.safetensors").rename(here / "elsewhere.safetensors")
        names = load_file(here / "elsewhere.safetensors") if isinstance(weight_map, str) else {}
        found = {name: weight_map for name in names} if names else weight_map
        put(here / "model" / "model.safetensors.index.json", {"metadata": {}, "weight_map": found})

    return build


TEXT = "--dataset text --data_path {here}/text.txt --tokenizer chars --max_steps 1 "
PLAIN = {
    "empty": (b"", "is empty"), "one byte": (b"x", "0 tokens for training"), "not UTF-8": (b"a\xff" * 9999, "byte 1,"),
    "half a character": (("ß" * 999).encode()[:-1], "byte 1996,"),
    "UTF-16": (("text" * 999).encode("utf-16"), "byte 0,"),
    "NULs and more ids than known": ("".join(map(chr, range(999))).encode(), "has id 998"),
    "short of validation": (b"short text" * 20, "20 tokens for validation"),
}  # fmt: skip
DOCUMENTS = {
    **{kind: (content * 9, "no document; d.jsonl:1: ") for kind, content in LINES.items()},
    "one": (b'{"text": "alone"}\n', "one document"), "blank": (b" \n" * 9, "no document"),
    "no text": (b'{"text": ""}\n' * 9, "no text"), "half a surrogate": (b'{"text": "\\ud800"}\n' * 9, "Unicode"),
}  # fmt: skip
FROM = DRY + "--init_from {model}"
ATTACKS = [
    *(Attack(f"language config: {kind}", "main_llama.py", DRY + "--model_config {here}/m/config.json", "--",
             lambda here, changed=changed: changed_config(here / "m", **changed) and None)
      for kind, changed in CONFIGS.items()),
    *(Attack(f"language config, JSON: {kind}", "main_llama.py", DRY + "--model_config {here}/c.json", "--model_config",
             lambda here, content=content: put(here / "c.json", content))
      for kind, content in BAD_JSON.items()),
    *(Attack(f"config of a model folder: {kind}", "main_llama.py", FROM, "--init_from", _model("config.json",
             content)) for kind, content in BAD_JSON.items()),
    *(Attack(f"weights of a model folder: {kind}", "main_llama.py", FROM, "--init_from", _model("model.safetensors",
             content)) for kind, content in BAD_TENSORS.items()),
    Attack("a model folder without its mlp", "main_llama.py", FROM, "mlp", _without("mlp")),
    Attack("a model folder without its norm", "main_llama.py", FROM, "norm", _without("model.norm")),
    Attack("a model folder with more", "main_llama.py", FROM, "intruder", _without("mlp", more=True)),
    Attack("shards elsewhere", "main_llama.py", FROM, "elsewhere", _index("../elsewhere.safetensors")),
    Attack("shards of nothing", "main_llama.py", FROM, "--init_from", _index({})),
    Attack("shards that are lost", "main_llama.py", FROM, "--init_from", _index({"a": "lost.safetensors"})),
    Attack("shards a list", "main_llama.py", FROM, "--init_from", _index(["a"])),
    Attack("shards of numbers", "main_llama.py", FROM, "--init_from", _index({"a": 3})),
    Attack("an export over the model it starts from", "main_llama.py", FROM.replace(DRY, "--max_steps 1 ")
           + " --export_hf {model}", "--export_hf"),
    Attack("an export over a run", "main_llama.py", "--max_steps 1 --export_hf {text_run}", "--export_hf"),
    Attack("an export over a folder", "main_llama.py", "--max_steps 1 --export_hf {here}/mine", "--export_hf",
           lambda here: put(here / "mine" / "config.json", "mine")),
    Attack("an export into itself", "main_llama.py", "--max_steps 1 --export_hf {here}/out", "--export_hf"),
    Attack("an export below a file", "main_llama.py", "--export_hf {here}/file/x", "--export_hf",
           lambda here: put(here / "file", "")),
    Attack("an export to where nobody may write", "main_llama.py", "--max_steps 1 --export_hf /proc/export",
             "--export_hf"),
    Attack("language weights that are nowhere", "main_llama.py", "--eval --resume auto --output_dir {here}/nowhere",
           "--eval"),
    Attack("language weights of nothing", "main_llama.py", "--eval", "--eval"),
    *(Attack(f"lines: {kind}", "main_llama.py", C4 + "--max_bad_lines 0", "max_bad_lines",
             _c4(validation=content * 3)) for kind, content in LINES.items()),
    Attack("lines that are not packed", "main_llama.py", C4 + "--max_bad_lines 0", "c4-validation",
           _c4(validation=b"x" * 99, packed=False)),
    Attack("a line without an end", "main_llama.py", C4 + "--max_bad_lines 0", "c4-validation",
           _c4(validation=b'{"text": "' + b"a" * 300_000_000)),
    Attack("no shard", "main_llama.py", C4, "c4-train", lambda here: put(here / "c4" / "x", "")),
    Attack("no folder of shards", "main_llama.py", C4, "no such folder"),
    *(Attack(f"text: {kind}", "main_llama.py", TEXT, culprit, _text(content))
      for kind, (content, culprit) in PLAIN.items()),
    *(Attack(f"documents: {kind}", "main_llama.py", TEXT.replace("text.txt", "d.jsonl"), culprit,
             lambda here, content=content: put(here / "d.jsonl", content))
      for kind, (content, culprit) in DOCUMENTS.items()),
    Attack("documents that are not packed", "main_llama.py", TEXT.replace("text.txt", "d.json.gz"), "broken after",
           lambda here: put(here / "d.json.gz", b'{"text": "a"}\n' * 99)),
    Attack("parquet of nothing", "main_llama.py", TEXT.replace("text.txt", "d.parquet"), "d.parquet",
           lambda here: put(here / "d.parquet", b"PAR1" * 99)),
    Attack("text that is nowhere", "main_llama.py", TEXT, "no such file"),
    Attack("text that is a folder", "main_llama.py", TEXT, "is a folder", lambda here: put(here / "text.txt/x", "")),
    Attack("text that nobody names", "main_llama.py", "--dataset text --max_steps 1", "needs --data_path"),
    Attack("text at no address", "main_llama.py", "--dataset text --data_path nowhere://x --max_steps 1", "nowhere://x"),
    Attack("padded text", "main_llama.py", TEXT + "--no-pack", "--pack", _text(b"a" * 9999)),
    Attack("characters of the library", "main_llama.py", "--dataset stdlib --tokenizer chars", "--tokenizer chars"),
    Attack("characters of C4", "main_llama.py", "--dataset c4 --tokenizer chars", "--tokenizer chars"),
    Attack("characters of another text", "main_llama.py", "--eval --resume {text_run} --output_dir {text_run} " + TEXT,
           "other ids", _text(b"other" * 999)),
    Attack("characters of a model of bytes", "main_llama.py", TEXT + "--init_from {model}", "--init_from",
           _text(b"other" * 999)),
    Attack("a tokenizer that is nowhere", "main_llama.py", DRY + "--tokenizer {here}/nowhere", "--tokenizer"),
    *(Attack(f"tokenizer: {kind}", "main_llama.py", DRY + "--tokenizer {here}/t", "--tokenizer",
             lambda here, content=content: put(here / "t" / "tokenizer.json", content))
      for kind, content in BAD_JSON.items()),
]  # fmt: skip
