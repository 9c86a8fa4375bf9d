"""Useful tokens a second, and peak memory, of our language training steps beside plain loops.

    python -m benchmarks.language --data PATH [--model_config llama/configs/llama_stdlib.json] [--tokenizer bpe]
                                  [--document_tokens 427] [--amp bf16] [--rounds 31] [--clock cpu] [--memory]
                                  [--json OUT]

--data is a folder in C4's format; tokenizers are bytes, or bpe (8,000 tokens, trained on the data here). Useful tokens
are those that are predicted: neither pads nor what stands in front of every sequence.

ours: `llama.engine.train_steps` with what `main_llama.build_task` makes. Reading, shuffling, tokenizing and packing
happen meanwhile in our thread and are charged to us, the next batch included. The gradient's norm is computed.
plain, padded: as the published program steps. One document a sequence, cut and padded, with the tokenizer's attention
mask; the model computes the loss; torch's AdamW with its defaults and a LambdaLR; the loss is waited for at each step.
plain, packed: the same loop on full sequences, whose mask is all ones. The last one asks for torch's fused kernel too.
All have the same transformers model, batch, precision and decay and take turns in one process. The plain loops find
their batches ready in memory, and compute no norm: the published default does not clip. The first refresh of the decays
falls into the round that warms up, the second is after 500 steps; what one takes is measured apart.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.paired import interval, interval_in_words, ratios, row, take_turns, verdict
from llama.data import TextOptions, open_text, train_stream
from llama.engine import backward, count, train_steps, weighed
from llama.models import LanguageModelOptions, build_model
from llama.sequences import IGNORED, Batch
from llama.tokenizers import load_tokenizer
from main_llama import build_task, read_options
from runtime.finite import FiniteGate
from runtime.processes import Ranks
from runtime.runfolder import environment
from runtime.seeding import seed_everything
from runtime.steps import AMP_DTYPES
from runtime.tables import say, table

INTERVAL, REFRESHES = 500, 5  # optimizer steps between refreshes; how many are timed
LEAST_OVER_PADDED = 1.2  # the bar beside the loop on padded sequences
LR, DECAY, STEPS, WARMUP = 1e-3, 0.1, 10_000, 1000
BPE_TOKENS, BATCHES, MEMORY_STEPS = 8000, 16, 4
OURS, CHUNKED = "ours", "ours, --chunked_loss"
PADDED, PACKED, FUSED = "plain, padded", "plain, packed", "plain, packed, fused"
ALONE = Ranks(0, 1, torch.device("cpu"))
Side = Callable[[], float]  # takes one step and returns useful tokens a second


@dataclass(frozen=True)
class Setting:
    """What all sides have in common."""

    data: str
    model_config: str
    tokenizer: str
    batch_size: int
    length: int
    amp: str
    clock: Callable[[], float] = time.perf_counter


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder in C4's format")
    parser.add_argument("--model_config", default="llama/configs/llama_stdlib.json", help="a transformers config.json")
    parser.add_argument("--tokenizer", default="bytes", choices=("bytes", "bpe"), help="bpe: trained on the data")
    parser.add_argument("--document_tokens", type=float, default=0, help="cut documents to this log-normal mean length")
    parser.add_argument("--batch_size", type=int, default=16, help="sequences a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--amp", default="none", choices=("none", "bf16"), help="mixed precision")
    parser.add_argument("--rounds", type=int, default=31, help="paired measurements; 0: none")
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu: of all threads; for busy machines"
    )
    parser.add_argument("--memory", action="store_true", help="measure peak memory, each side in its own process")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # only this one's memory; --data is ready then
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args()
    if given.side:
        folder = str(given.data.parent / "tokenizer") if given.tokenizer == "bpe" else "bytes"
        setting = Setting(str(given.data), given.model_config, folder, given.batch_size, given.length, given.amp)
        say(json.dumps(peak_memory(setting, given.side)))
        return
    with tempfile.TemporaryDirectory() as place:
        clock = time.process_time if given.clock == "cpu" else time.perf_counter
        setting = replace(prepared(given, Path(place)), clock=clock)
        memory = {side: memory_apart(given, setting, side) for side in makers()} if given.memory else {}
        found = measure(setting, given.rounds) if given.rounds else {}
    report(setting, found, memory)
    if given.json:
        about = {"options": {k: str(v) for k, v in vars(given).items()}, "threads": torch.get_num_threads()}
        given.json.write_text(json.dumps(about | found | {"memory": memory} | environment(), indent=1) + "\n")


def report(setting: Setting, found: dict[str, Any], memory: dict[str, dict[str, float]]) -> None:
    """Print what was found."""
    say(f"{setting.model_config}, {setting.batch_size} x {setting.length} tokens, {setting.amp} mixed precision,")
    say(f"tokenizer {Path(setting.tokenizer).name}, {torch.get_num_threads()} threads")
    if found:
        rows = [row(side, found[side]) for side in makers()]
        rows += [row(label, values) for label, values in found["ratios"].items()]
        say(table(["useful tokens/s; ratio", "min", "median", "max"], rows))
        for label, values in found["ratios"].items():
            if PADDED in label:
                met = "met" if median(values) >= LEAST_OVER_PADDED else "MISSED"
                say(f"{label}: {interval_in_words(values)}; bar (median at least {LEAST_OVER_PADDED}) {met}")
            else:
                say(verdict(label, values) if CHUNKED not in label else f"{label}: {interval_in_words(values)}")
        say(f"pads of the padded sequences: {100 * found['pad_share']:.1f} %")
        refresh, step = median(found["refresh_seconds"]), found["step_seconds"]
        share = 100 * refresh / (INTERVAL * step)
        say(f"a refresh takes {1e3 * refresh:.0f} ms: {share:.3f} % of {INTERVAL} steps of {1e3 * step:.0f} ms")
    if memory:
        rows = [[side, values["peak_mb"], values["peak_mb"] - values["before_mb"]] for side, values in memory.items()]
        say(table(["peak memory", "MB", "of that, training's"], rows))


def makers() -> dict[str, Callable[[Setting], tuple[Side, Any]]]:
    """What makes each side, by name; with it comes our task, or None."""
    return {
        OURS: our_side,
        CHUNKED: lambda setting: our_side(setting, "--chunked_loss"),
        PADDED: lambda setting: (plain_side(setting, pack=False), None),
        PACKED: lambda setting: (plain_side(setting, pack=True), None),
        FUSED: lambda setting: (plain_side(setting, pack=True, fused=True), None),
    }


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Tokens a second of all sides, the ratios round by round, and what a refresh costs."""
    made = {name: make(setting) for name, make in makers().items()}
    found: dict[str, Any] = take_turns({name: side for name, (side, _) in made.items()}, rounds)
    task = made[OURS][1]
    refreshes = []
    for _ in range(REFRESHES):
        began = setting.clock()
        task.decay.refresh()
        refreshes.append(setting.clock() - began)
    for _, each in made.values():
        if each is not None:
            each.stream.close()
    quotients = {f"{OURS} / {name}": ratios(found[OURS], found[name]) for name in (PADDED, PACKED, FUSED)}
    quotients |= {f"{CHUNKED} / {OURS}": ratios(found[CHUNKED], found[OURS])}
    padded = list(islice(batches(setting, pack=False), BATCHES))
    labels = torch.cat([batch["labels"] for batch in padded])
    return found | {
        "ratios": quotients,
        "intervals": {label: interval(values) for label, values in quotients.items()},
        "pad_share": (labels == IGNORED).float().mean().item(),
        "refresh_seconds": refreshes,
        "step_seconds": setting.batch_size * (setting.length - 1) / median(found[OURS]),
    }


def our_side(setting: Setting, *more: str) -> tuple[Side, Any]:
    """Training as main_llama.py does it."""
    words = f"--dataset c4 --data_path {setting.data} --tokenizer {setting.tokenizer} --device cpu --amp {setting.amp} "
    words += f"--model_config {setting.model_config} --batch_size {setting.batch_size} --max_length {setting.length} "
    words += f"--optimizer adamw --lr {LR} --weight_decay {DECAY} --num_training_steps {STEPS} --warmup_steps {WARMUP} "
    words += f"--decay alphadecay --decay_interval {INTERVAL} --target_eval_tokens 1000 --shuffle_buffer 500"
    options = read_options([*words.split(), *more])
    seed_everything(0)
    task = build_task(options, open_text(options.text, ALONE), ALONE)
    gate = FiniteGate(task.learner, ALONE, options.run.on_nonfinite, options.run.log_interval)
    add_gradients = backward(task.loss, ALONE.device)
    taken, useful = 0, setting.batch_size * (setting.length - 1)

    def on_bad_step(step: int) -> None:
        raise SystemExit(f"step {step} is not finite")

    def step() -> float:
        nonlocal taken
        began = setting.clock()
        micro_batches = weighed([[task.stream.next() for _ in range(task.stream.accumulate)]], ALONE)
        train_steps(task.learner, micro_batches, add_gradients, task.rules, taken, gate, lambda *_: None, on_bad_step)
        taken += 1
        task.stream._prepared()  # the next batch, which else would be made in another side's turn
        return useful / (setting.clock() - began)

    return step, task


def plain_side(setting: Setting, pack: bool, fused: bool = False) -> Side:
    """Training as the published program does it in one process."""
    seed_everything(0)
    model: Any = build_model(LanguageModelOptions(model_config=setting.model_config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=fused or None)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    ready = cycle(list(islice(batches(setting, pack), BATCHES)))
    dtype = AMP_DTYPES[setting.amp]
    model.train()

    def step() -> float:
        batch = next(ready)
        useful = int(count(batch["labels"]))
        began = setting.clock()
        mask = (batch["labels"] != IGNORED).long()
        with torch.autocast("cpu", dtype=dtype) if dtype is not None else nullcontext():
            loss = model(input_ids=batch["input_ids"], attention_mask=mask, labels=batch["labels"]).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        loss.item()
        return useful / (setting.clock() - began)

    return step


def batches(setting: Setting, pack: bool) -> Iterator[Batch]:
    """Training batches, packed or padded."""
    options = TextOptions(
        data_path=setting.data, tokenizer=setting.tokenizer, batch_size=setting.batch_size,
        max_length=setting.length, shuffle_buffer=500, pack=pack,
    )  # fmt: skip
    stream = train_stream(options, open_text(options, ALONE), ALONE, seed=0)
    with closing(stream):
        while True:
            yield stream.next()


def prepared(given: argparse.Namespace, place: Path) -> Setting:
    """Tokenizer, documents and model config of a measurement, in a folder of its own."""
    texts = {part: documents(given.data, part) for part in ("train", "validation")}
    tokenizer = trained_tokenizer(texts["train"], place / "tokenizer") if given.tokenizer == "bpe" else "bytes"
    known = load_tokenizer(tokenizer)
    random = np.random.default_rng(0)
    (place / "en").mkdir()
    for part, own in texts.items():
        if given.document_tokens:
            spread = random.lognormal(np.log(given.document_tokens) - 0.5, 1.0, len(own))  # of that mean
            lengths = [len(ids) for ids in known.encode(own)]
            pairs = zip(own, spread, lengths, strict=True)
            own = [text[: max(1, round(len(text) * min(1.0, wanted / length)))] for text, wanted, length in pairs]
        with gzip.open(place / "en" / f"c4-{part}.00000-of-00001.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in own)
    config = json.loads(Path(given.model_config).read_text())
    config["vocab_size"] = max(config["vocab_size"], known.vocab_size)
    path = place / Path(given.model_config).name
    path.write_text(json.dumps(config))
    return Setting(str(place / "en"), str(path), tokenizer, given.batch_size, given.length, given.amp)


def documents(folder: Path, part: str) -> list[str]:
    """The texts of a part of C4 in a folder, or in en/ below it."""
    found = sorted(folder.rglob(f"c4-{part}.*.json.gz"))
    lines = (line for path in found for line in gzip.open(path, "rt", encoding="utf-8"))
    if not found:
        raise SystemExit(f"error: --data {folder}: holds no c4-{part}.*.json.gz")
    return [json.loads(line)["text"] for line in lines]


def trained_tokenizer(texts: list[str], folder: Path) -> str:
    """A byte-level BPE trained on texts, as a folder that transformers reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=BPE_TOKENS, special_tokens=["</s>", "<pad>"], show_progress=False)
    made.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
    return str(folder)


def memory_apart(given: argparse.Namespace, setting: Setting, side: str) -> dict[str, float]:
    """Peak memory of a side in a process of its own, whose freed blocks go back to the system at once."""
    words = ["--data", setting.data, "--model_config", setting.model_config, "--tokenizer", given.tokenizer]
    words += ["--batch_size", str(given.batch_size), "--length", str(given.length), "--amp", given.amp]
    command = [sys.executable, "-m", "benchmarks.language", *words, "--side", side]
    surroundings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"}  # else glibc keeps what was freed
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=surroundings)
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(setting: Setting, side: str) -> dict[str, float]:
    """Resident memory before a side is made, and its peak after some steps, in megabytes; Linux only."""
    before = memory_now("VmRSS")
    step, task = makers()[side](setting)
    for _ in range(MEMORY_STEPS):
        step()
    if task is not None:
        task.stream.close()
    return {"before_mb": before, "peak_mb": memory_now("VmHWM")}


def memory_now(kind: str) -> float:
    """VmRSS or VmHWM of this process in megabytes. (getrusage's peak is the parent's where that is larger.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


if __name__ == "__main__":
    main()
