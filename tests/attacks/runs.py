"""Folders of runs that a stranger has sent, or a disk has damaged: what --eval, --resume and --dry_run read of them."""

import json
import math
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from attacks.attack import BAD_JSON, BAD_TENSORS, DEEP, Attack, checkpoint_of, put, seal

EVAL, RESUME = "--eval --resume {run}", "--resume {run} --max_steps 6"


def _manifest(**changed):
    """The manifest with other values; None takes one away."""

    def build(here: Path) -> None:
        folder = checkpoint_of(here / "run")
        manifest = json.loads((folder / "manifest.json").read_text()) | changed
        put(folder / "manifest.json", {name: value for name, value in manifest.items() if value is not None})

    return build


def _raw_manifest(content: bytes):
    return lambda here: put(checkpoint_of(here / "run") / "manifest.json", content)


def _file(name: str, content: bytes, sealed: bool = True):
    def build(here: Path) -> None:
        folder = checkpoint_of(here / "run")
        put(folder / name, content)
        if sealed:
            seal(folder)

    return build


def _state(change):
    """A training state with other content, vouched for by its manifest."""

    def build(here: Path) -> None:
        folder = checkpoint_of(here / "run")
        path = folder / "training_state.pt"
        state = torch.load(path, weights_only=True)
        replaced = change(state)
        path.unlink()
        torch.save(state if replaced is None else replaced, path)
        seal(folder)

    return build


def _set(*path_and_value):
    *path, value = path_and_value

    def change(state):
        for key in path[:-1]:
            state = state[key]
        if value is None:
            del state[path[-1]]
        else:
            state[path[-1]] = value

    return change


def _short_moments(state) -> None:
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"] = moments["exp_avg"].flatten()[:-64]


def _moments_of(kind):
    def change(state) -> None:
        for moments in state["optimizer"]["state"].values():
            moments["exp_avg"] = kind(moments["exp_avg"])

    return change


def _weights(change):
    def build(here: Path) -> None:
        folder = checkpoint_of(here / "run")
        weights = load_file(folder / "model.safetensors")
        change(weights)
        (folder / "model.safetensors").unlink()
        save_file(weights, folder / "model.safetensors")
        seal(folder)

    return build


def _config(**changed):
    def build(here: Path) -> None:
        put(here / "run" / "config.json", json.loads((here / "run" / "config.json").read_text()) | changed)

    return build


def _other_manifest(here: Path) -> None:
    """Files outside of the checkpoint's folder."""
    folder = checkpoint_of(here / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../../../../../etc/passwd"] = "0" * 64
    put(folder / "manifest.json", manifest)


MANIFESTS = {
    "step Infinity": _manifest(step=math.inf), "step NaN": _manifest(step=math.nan),
    "step text": _manifest(step="five"), "step a list": _manifest(step=[5]),
    "step null": _manifest(step=None), "step negative": _manifest(step=-5),
    "step of another folder": _manifest(step=10**9), "step true": _manifest(step=True),
    "files a list": _manifest(files=[1]), "files text": _manifest(files="abc"),
    "files null": _manifest(files=None), "files empty": _manifest(files={}),
    "files of numbers": _manifest(files={"model.safetensors": 3, "training_state.pt": 3}),
    "files elsewhere": _other_manifest, "files a folder": _manifest(files={"..": "0"}),
    "files with a NUL": _manifest(files={"a\x00b": "0"}),
    "files with a long name": _manifest(files={"n" * 300: "0"}),
}  # fmt: skip
STATES = {
    "optimizer null": _set("optimizer", None), "optimizer a list": _set("optimizer", [1]),
    "optimizer text": _set("optimizer", "adam"), "groups gone": _set("optimizer", "param_groups", []),
    "groups numbers": _set("optimizer", "param_groups", [1]),
    "groups null": _set("optimizer", "param_groups", None),
    "moments gone": _set("optimizer", "state", {}), "moments a list": _set("optimizer", "state", [1]),
    "moments of text": _set("optimizer", "state", 0, "exp_avg", "x"),
    "moments of numbers": _set("optimizer", "state", 0, "exp_avg", 3.0),
    "scaler a list": _set("scaler", [1]), "random null": _set("random", None),
    "random empty": _set("random", []), "random numbers": _set("random", [3]),
    "random text": _set("random", ["x"]), "a list": lambda state: [1],
    "a tensor": lambda state: torch.zeros(3), "empty": lambda state: {},
    "rows text": _set("rows", "many"), "rows negative": _set("rows", {"log.jsonl": -3}),
    "best text": _set("best", "acc1"), "best of text": _set("best", {"best": {"value": "x"}}),
    "best of elsewhere": _set("best", {"../../x": {"value": 1.0, "step": 5}}),
    "seconds text": _set("seconds", "long"),
}  # fmt: skip
MOMENTS = {
    "short": _short_moments, "of half the kind": _moments_of(lambda t: t.to(torch.int8)),
    "of another shape": _moments_of(lambda t: t.reshape(-1)), "empty": _moments_of(lambda t: t[:0]),
    "complex": _moments_of(lambda t: t.to(torch.complex64)), "sparse": _moments_of(lambda t: t.to_sparse()),
    "on no device": _moments_of(lambda t: t.to("meta")),
}  # fmt: skip
PICKLES = {
    "empty": b"", "text": b"no state", "code": b"cos\nsystem\n(S'true'\ntR.",
             "a zip of nothing": b"PK\x03\x04" + bytes(30),
    "binary": bytes(range(256)),
}  # fmt: skip
WEIGHTS = {
    "one gone": lambda w: w.pop("head.weight"), "one more": lambda w: w.update(intruder=torch.zeros(3)),
    "one of another shape": lambda w: w.update({"head.weight": torch.zeros(3, 3)}),
    "all gone": lambda w: w.clear(), "other names": lambda w: [w.update({f"x.{k}": w.pop(k)}) for k in list(w)],
    "__class__": lambda w: w.update({"__class__": torch.zeros(3)}),
}  # fmt: skip
CONFIGS = (
    ({"model_kwargs": ["checkpoint_path=evil.pt"]}, "--model_kwargs"),
    ({"model_kwargs": ["pretrained_cfg_overlay={'file': 'x'}"]}, "--model_kwargs"),
    ({"model_kwargs": "depth=2"}, "--model_kwargs"), ({"model": "../../x"}, "--model"),
    ({"model": 3}, "--model"), ({"data_set": "\x1b[2J"}, "--data_set"), ({"lr": -1}, "--lr"),
    ({"batch_size": "240"}, "--batch_size"), ({"weight_decay": math.inf}, "--weight_decay"),
    ({"lr": math.nan}, "--lr"), ({"seed": -1}, "--seed"), ({"seed": 2**200}, "--seed"),
    ({"epochs": True}, "--epochs"), ({"device": "meta"}, "--device"),
    ({"resume": "elsewhere", "model": []}, "--model"),
)  # fmt: skip


def _instead(name: str, kind: str):
    """A pipe, an endless device or a link to another folder in place of a file of the run."""

    def build(here: Path) -> None:
        path = here / "run" / name
        path = checkpoint_of(here / "run") / path.name if name == "manifest.json" else path
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        (here / "elsewhere").mkdir()
        os.mkfifo(path) if kind == "pipe" else path.symlink_to(here / "elsewhere" if kind == "link" else "/dev/zero")

    return build


ATTACKS = [
    *(Attack(f"{kind} for {name}", "main.py", RESUME, name, _instead(name, kind))
      for kind in ("pipe", "device")
      for name in ("config.json", "manifest.json", "log.jsonl", "decay.jsonl", "summary.json")),
    *(Attack(f"link for {name}", "main.py", RESUME, f"{name} is a link", _instead(name, "link"))
      for name in ("figures", "tensorboard")),
    Attack("options of the contract a list", "main.py", RESUME, "manifest.json", _manifest(run={"options": [1, 2]})),
    Attack("facts of the contract a number", "main.py", RESUME, "manifest.json", _manifest(run={"facts": 5})),
    *(Attack(f"manifest: {kind}", "main.py", EVAL, "step_", build)
      for kind, build in MANIFESTS.items()),
    *(Attack(f"manifest, JSON: {kind}", "main.py", EVAL, "manifest.json", _raw_manifest(content))
      for kind, content in BAD_JSON.items()),
    *(Attack(f"model of a run: {kind}", "main.py", EVAL, "model.safetensors", _file("model.safetensors",
             content)) for kind, content in BAD_TENSORS.items()),
    *(Attack(f"model of a run, not sealed: {kind}", "main.py", EVAL, "is broken", _file("model.safetensors", content,
             sealed=False))
      for kind, content in list(BAD_TENSORS.items())[:3]),
    *(Attack(f"average of a run: {kind}", "main.py", EVAL, "ema.safetensors", _file("ema.safetensors", content))
      for kind, content in list(BAD_TENSORS.items())[:6]),
    *(Attack(f"weights of a run: {kind}", "main.py", EVAL, "step_", _weights(change)) for kind,
             change in WEIGHTS.items()),
    *(Attack(f"state: {kind}", "main.py", RESUME, "step_", _state(change))
      for kind, change in STATES.items()),
    *(Attack(f"moments {kind}", "main.py", RESUME, "step_", _state(change))
      for kind, change in MOMENTS.items()),
    *(Attack(f"state, pickle: {kind}", "main.py", RESUME, "training_state.pt", _file("training_state.pt", content))
      for kind, content in PICKLES.items()),
    *(Attack(f"config of a run: {list(changed.items())[0]}"[:80], "main.py", EVAL, culprit,
             _config(**changed)) for changed, culprit in CONFIGS),
    *(Attack(f"config of a run, JSON: {kind}", "main.py", EVAL, "config.json",
             lambda here, content=content: put(here / "run" / "config.json", content))
      for kind, content in BAD_JSON.items()),
    Attack("log not UTF-8", "main.py", RESUME, "log.jsonl",
           lambda here: put(here / "run" / "log.jsonl", b"\xff\xfe\n")),
    Attack("log deep", "main.py", RESUME, "log.jsonl",
           lambda here: put(here / "run" / "log.jsonl", DEEP + "\n")),
    Attack("ledger not UTF-8", "main.py", RESUME, "decay.jsonl",
           lambda here: put(here / "run" / "decay.jsonl", b"\xff\xfe\n")),
]  # fmt: skip
