"""python -m alphadecay analyze: files of strangers, and folders in which something else lies."""

import os
from pathlib import Path

from attacks.attack import BAD_JSON, BAD_TENSORS, Attack, put, tensor, tensors

FILE = "analyze {here}/w.safetensors"
OUT = " --output_dir {here}/out"
GOOD = tensors({"layer.weight": tensor([64, 64], 16384)}, os.urandom(16384))
ZEROS = tensors({"layer.weight": tensor([64, 64], 16384)}, bytes(16384))
NAMES = ("a..b.weight", "__class__.weight", ".weight", "weight", "a.\x1b[2J.weight", "a.=1+1.weight", "training.weight",
         "_modules.weight", "forward.weight", "a/../b.weight")  # fmt: skip


def _file(content: bytes):
    return lambda here: put(here / "w.safetensors", content)


def _beside(name: str, content: bytes | str = "mine"):
    def build(here: Path) -> None:
        put(here / "w.safetensors", ZEROS)
        put(here / "out" / name, content)

    return build


def _index(content):
    return lambda here: put(here / "m" / "model.safetensors.index.json", content)


ATTACKS = [
    *(Attack(f"analyze: {kind}", "alphadecay", FILE + OUT, "w.safetensors", _file(content))
      for kind, content in BAD_TENSORS.items()),
    *(Attack(f"analyze, a tensor named {name!r}", "alphadecay", FILE + OUT, "w.safetensors",
             _file(tensors({name: tensor([2, 2], 16)}, bytes(16)))) for name in NAMES),
    *(Attack(f"analyze, shards: {kind}", "alphadecay", "analyze {here}/m" + OUT, "model.safetensors.index.json",
             _index(content)) for kind, content in BAD_JSON.items()),
    *(Attack(f"analyze, shards in {shard!r}"[:60], "alphadecay", "analyze {here}/m" + OUT, "m",
             _index({"weight_map": {"a": shard}}))
      for shard in ("../w.safetensors", "/etc/passwd", "", ".", "..", "lost.safetensors", 3, None, "n" * 300,
             "a\x00b")),
    *(Attack(f"analyze into a folder with {name}", "alphadecay", FILE + OUT, name, _beside(name))
      for name in ("spectra.csv", "spectra.json", "figures")),
    *(Attack(f"analyze into a run that has {name}{more}", "alphadecay", FILE + OUT + more, "holds a run", _beside(name))
      for name in ("log.jsonl", "summary.json", "decay.jsonl", "checkpoints/x") for more in ("", " --overwrite")),
    Attack("analyze into figures of a run", "alphadecay", "analyze {run} --output_dir {run}", "holds a run"),
    Attack("analyze over another analysis", "alphadecay", FILE + OUT, "holds another analysis",
           _beside("spectra.json", '{\n "source": {')),
    Attack("analyze over what looks like one", "alphadecay", FILE + OUT + " --overwrite", "spectra.json",
           _beside("spectra.json", '{"source": 1}')),
    Attack("analyze into a file", "alphadecay", FILE + " --output_dir {here}/w.safetensors", "is a file", _file(ZEROS)),
    Attack("analyze into a long name", "alphadecay", FILE + " --output_dir {here}/" + "n" * 300, "--output_dir",
           _file(ZEROS)),
    Attack("analyze a pipe", "alphadecay", "analyze {here}/p", "/p", lambda here: os.mkfifo(here / "p")),
    Attack("analyze a name of 3000 parts", "alphadecay", FILE, "3001 parts",
           _file(tensors({".".join("a" * 3000) + ".weight": tensor([64, 64], 16384)}, bytes(16384)))),
    Attack("analyze a device", "alphadecay", "analyze /dev/zero", "/dev/zero"),
    Attack("analyze a link to nothing", "alphadecay", "analyze {here}/l", "/l",
             lambda here: (here / "l").symlink_to("x")),
    Attack("analyze a long name", "alphadecay", "analyze ./" + "n" * 300, "nnn"),
    *(Attack(f"analyze, {words}", "alphadecay", FILE + " " + words, culprit, _file(ZEROS)) for words, culprit in (
        ("--xmin_pos nan", "--xmin_pos"), ("--xmin_pos inf", "--xmin_pos"), ("--xmin_pos 0", "--xmin_pos"),
        ("--min_eigenvalues 0", "--min_eigenvalues"), ("--min_eigenvalues x", "--min_eigenvalues"),
        ("--seed 18446744073709551616", "--seed"), ("--device meta", "--device"), ("--device cuda:99", "--device"),
        ("--exclude *", "no weight matrix"), ("--fit x", "--fit"), ("--nonsense", "--nonsense"), ("--ema", "--ema"),
        ("--pretrained", "--pretrained"), ("--against {here}/nowhere", "nowhere"), ("--against {here}",
             "model.safetensors"),
    )),
    Attack("analyze nothing", "alphadecay", "analyze", "WHAT"),
    Attack("no such command", "alphadecay", "destroy x", "destroy"),
]  # fmt: skip
