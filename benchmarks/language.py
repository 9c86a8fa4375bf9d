"""Useful tokens per second, and peak memory, of our language training steps compared with plain loops.

    python -m benchmarks.language --data PATH [--model_config llama/configs/llama_stdlib.json] [--tokenizer bpe]
                                  [--document_tokens 427] [--amp bf16] [--rounds 31] [--clock cpu] [--memory]
                                  [--json OUT]

--data is a folder in C4's format; tokenizers are bytes, or bpe (8,000 tokens, trained on the data here). Useful tokens
are those that are predicted: not padding, and not the first token of each sequence.

ours: `llama.engine.train_steps` with the task of `main_llama.build_task`. Reading, shuffling, tokenizing and packing
happen in our background thread; their time counts, that for the next batch too. The gradient's norm is computed.
plain, padded: the steps of the published program. One document per sequence, cut and padded, with the tokenizer's
attention mask; the model computes the loss; torch's AdamW with its defaults, a LambdaLR; each step waits for its loss.
plain, packed: the same loop on full sequences, with a mask of ones. "fused" also uses torch's fused kernel.
All sides have the same transformers model, batch size, precision and decay, and take turns in one process. The plain
loops have their batches in memory, and compute no norm: the published program does not clip by default. The first
refresh of the decays happens in the warm-up round, the second after 500 steps; refreshes are timed separately.
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

from benchmarks.paired import interval, interval_in_words, parser_of, ratios, row, take_turns, verdict, write_json
from llama.data import TextOptions, open_text, train_stream
from llama.engine import backward, count_targets, train_steps, weighted_batches
from llama.models import LanguageModelOptions, build_model
from llama.sequences import IGNORED, Batch
from llama.tokenizers import load_tokenizer
from main_llama import build_task, read_options
from runtime.finite import FiniteGate
from runtime.processes import Ranks
from runtime.seeding import seed_everything
from runtime.steps import AMP_DTYPES
from runtime.tables import say, table

INTERVAL, REFRESHES = 500, 5  # optimizer steps between refreshes; how many are timed
LEAST_OVER_PADDED = 1.2  # smallest median ratio to the loop on padded sequences that meets the bar
LR, DECAY, STEPS, WARMUP = 1e-3, 0.1, 10_000, 1000
BPE_TOKENS, BATCHES, MEMORY_STEPS = 8000, 16, 4
OURS, CHUNKED = "ours", "ours, --chunked_loss"
PADDED, PACKED, FUSED = "plain, padded", "plain, packed", "plain, packed, fused"
ALONE = Ranks(0, 1, torch.device("cpu"))
Side = Callable[[], float]  # takes one step and returns useful tokens per second


@dataclass(frozen=True)
class Setting:
    """Data, model and sizes that all sides share."""

    data: str
    model_config: str
    tokenizer: str
    batch_size: int
    length: int
    amp: str
    clock: Callable[[], float] = time.perf_counter


def main() -> None:
    """Measure, print a table, and write JSON if --json is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder in C4's format")
    parser.add_argument("--model_config", default="llama/configs/llama_stdlib.json", help="a transformers config.json")
    parser.add_argument("--tokenizer", default="bytes", choices=("bytes", "bpe"), help="bpe: trained on the data")
    parser.add_argument("--document_tokens", type=float, default=0, help="cut documents to this log-normal mean length")
    parser.add_argument("--batch_size", type=int, default=16, help="sequences per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--amp", default="none", choices=("none", "bf16"), help="mixed precision")
    parser.add_argument("--rounds", type=int, default=31, help="paired measurements; 0: none")
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu: CPU time of all threads, for busy machines"
    )
    parser.add_argument("--memory", action="store_true", help="measure peak memory, each side in its own process")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # measure only its memory; --data is prepared already
    args = parser.parse_args()
    if args.side:
        tokenizer = str(args.data.parent / "tokenizer") if args.tokenizer == "bpe" else "bytes"
        setting = Setting(str(args.data), args.model_config, tokenizer, args.batch_size, args.length, args.amp)
        say(json.dumps(peak_memory(setting, args.side)))
        return
    with tempfile.TemporaryDirectory() as folder:
        clock = time.process_time if args.clock == "cpu" else time.perf_counter
        setting = replace(prepare(args, Path(folder)), clock=clock)
        memory = {side: memory_of_side(args, setting, side) for side in makers()} if args.memory else {}
        results = measure(setting, args.rounds) if args.rounds else {}
    report(setting, results, memory)
    about = {"options": {k: str(v) for k, v in vars(args).items()}, "threads": torch.get_num_threads()}
    write_json(args.json, about | results | {"memory": memory})


def report(setting: Setting, results: dict[str, Any], memory: dict[str, dict[str, float]]) -> None:
    """Print the results."""
    say(f"{setting.model_config}, {setting.batch_size} x {setting.length} tokens, {setting.amp} mixed precision,")
    say(f"tokenizer {Path(setting.tokenizer).name}, {torch.get_num_threads()} threads")
    if results:
        rows = [row(side, results[side]) for side in makers()]
        rows += [row(label, values) for label, values in results["ratios"].items()]
        say(table(["useful tokens/s; ratio", "min", "median", "max"], rows))
        for label, values in results["ratios"].items():
            if PADDED in label:
                met = "met" if median(values) >= LEAST_OVER_PADDED else "MISSED"
                say(f"{label}: {interval_in_words(values)}; bar (median at least {LEAST_OVER_PADDED}) {met}")
            else:
                say(verdict(label, values) if CHUNKED not in label else f"{label}: {interval_in_words(values)}")
        say(f"padding in the padded sequences: {100 * results['pad_share']:.1f} %")
        refresh, step = median(results["refresh_seconds"]), results["step_seconds"]
        share = 100 * refresh / (INTERVAL * step)
        say(f"a refresh takes {1e3 * refresh:.0f} ms: {share:.3f} % of {INTERVAL} steps of {1e3 * step:.0f} ms")
    if memory:
        rows = [[side, values["peak_mb"], values["peak_mb"] - values["before_mb"]] for side, values in memory.items()]
        say(table(["peak memory", "MB", "of it, training's"], rows))


def makers() -> dict[str, Callable[[Setting], tuple[Side, Any]]]:
    """By name, the function that makes each side; it also returns our task, or None for a plain loop."""
    return {
        OURS: our_side,
        CHUNKED: lambda setting: our_side(setting, "--chunked_loss"),
        PADDED: lambda setting: (plain_side(setting, pack=False), None),
        PACKED: lambda setting: (plain_side(setting, pack=True), None),
        FUSED: lambda setting: (plain_side(setting, pack=True, fused=True), None),
    }


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Tokens per second of all sides, their ratios round by round, and the cost of a refresh."""
    sides = {name: make(setting) for name, make in makers().items()}
    speeds: dict[str, Any] = take_turns({name: side for name, (side, _) in sides.items()}, rounds)
    task = sides[OURS][1]
    refreshes = []
    for _ in range(REFRESHES):
        began = setting.clock()
        task.decay.refresh()
        refreshes.append(setting.clock() - began)
    for _, our_task in sides.values():
        if our_task is not None:
            our_task.stream.close()
    quotients = {f"{OURS} / {name}": ratios(speeds[OURS], speeds[name]) for name in (PADDED, PACKED, FUSED)}
    quotients |= {f"{CHUNKED} / {OURS}": ratios(speeds[CHUNKED], speeds[OURS])}
    padded = list(islice(batches(setting, pack=False), BATCHES))
    labels = torch.cat([batch["labels"] for batch in padded])
    return speeds | {
        "ratios": quotients,
        "intervals": {label: interval(values) for label, values in quotients.items()},
        "pad_share": (labels == IGNORED).float().mean().item(),
        "refresh_seconds": refreshes,
        "step_seconds": setting.batch_size * (setting.length - 1) / median(speeds[OURS]),
    }


def our_side(setting: Setting, *extra_words: str) -> tuple[Side, Any]:
    """Train as main_llama.py does."""
    words = f"--dataset c4 --data_path {setting.data} --tokenizer {setting.tokenizer} --device cpu --amp {setting.amp} "
    words += f"--model_config {setting.model_config} --batch_size {setting.batch_size} --max_length {setting.length} "
    words += f"--optimizer adamw --lr {LR} --weight_decay {DECAY} --num_training_steps {STEPS} --warmup_steps {WARMUP} "
    words += f"--decay alphadecay --decay_interval {INTERVAL} --target_eval_tokens 1000 --shuffle_buffer 500"
    options = read_options([*words.split(), *extra_words])
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
        micro_batches = weighted_batches([[task.stream.next() for _ in range(task.stream.accumulate)]], ALONE)
        train_steps(task.learner, micro_batches, add_gradients, task.rules, taken, gate, lambda *_: None, on_bad_step)
        taken += 1
        task.stream._prepared()  # waits for the next batch, which would otherwise be made in another side's turn
        return useful / (setting.clock() - began)

    return step, task


def plain_side(setting: Setting, pack: bool, fused: bool = False) -> Side:
    """Train as the published program does in one process."""
    seed_everything(0)
    model: Any = build_model(LanguageModelOptions(model_config=setting.model_config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=fused or None)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    ready = cycle(list(islice(batches(setting, pack), BATCHES)))
    dtype = AMP_DTYPES[setting.amp]
    model.train()

    def step() -> float:
        batch = next(ready)
        useful = int(count_targets(batch["labels"]))
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
    """Yield training batches, packed or padded."""
    options = TextOptions(
        data_path=setting.data, tokenizer=setting.tokenizer, batch_size=setting.batch_size,
        max_length=setting.length, shuffle_buffer=500, pack=pack,
    )  # fmt: skip
    stream = train_stream(options, open_text(options, ALONE), ALONE, seed=0)
    with closing(stream):
        while True:
            yield stream.next()


def prepare(args: argparse.Namespace, folder: Path) -> Setting:
    """Write tokenizer, documents and model config of a measurement to a folder."""
    texts = {part: read_texts(args.data, part) for part in ("train", "validation")}
    tokenizer = train_tokenizer(texts["train"], folder / "tokenizer") if args.tokenizer == "bpe" else "bytes"
    loaded = load_tokenizer(tokenizer)
    random = np.random.default_rng(0)
    (folder / "en").mkdir()
    for part, documents in texts.items():
        if args.document_tokens:
            spread = random.lognormal(np.log(args.document_tokens) - 0.5, 1.0, len(documents))  # with that mean
            lengths = [len(ids) for ids in loaded.encode(documents)]
            pairs = zip(documents, spread, lengths, strict=True)
            documents = [text[: max(1, round(len(text) * min(1.0, wanted / length)))] for text, wanted, length in pairs]
        with gzip.open(folder / "en" / f"c4-{part}.00000-of-00001.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    config = json.loads(Path(args.model_config).read_text())
    config["vocab_size"] = max(config["vocab_size"], loaded.vocab_size)
    path = folder / Path(args.model_config).name
    path.write_text(json.dumps(config))
    return Setting(str(folder / "en"), str(path), tokenizer, args.batch_size, args.length, args.amp)


def read_texts(folder: Path, part: str) -> list[str]:
    """Read the texts of a part of C4 in a folder, or in its en/."""
    files = sorted(folder.rglob(f"c4-{part}.*.json.gz"))
    lines = (line for path in files for line in gzip.open(path, "rt", encoding="utf-8"))
    if not files:
        raise SystemExit(f"error: --data {folder}: has no c4-{part}.*.json.gz")
    return [json.loads(line)["text"] for line in lines]


def train_tokenizer(texts: list[str], folder: Path) -> str:
    """Train a byte-level BPE on texts, and write a folder that transformers reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=BPE_TOKENS, special_tokens=["</s>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
    return str(folder)


def memory_of_side(args: argparse.Namespace, setting: Setting, side: str) -> dict[str, float]:
    """Peak memory of a side in a separate process, which returns freed blocks to the system at once."""
    words = ["--data", setting.data, "--model_config", setting.model_config, "--tokenizer", args.tokenizer]
    words += ["--batch_size", str(args.batch_size), "--length", str(args.length), "--amp", args.amp]
    command = [sys.executable, "-m", "benchmarks.language", *words, "--side", side]
    environ = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"}  # otherwise glibc keeps freed blocks
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(setting: Setting, side: str) -> dict[str, float]:
    """Resident memory before a side is built, and its peak after some steps, in megabytes; Linux only."""
    before = memory_now("VmRSS")
    step, task = makers()[side](setting)
    for _ in range(MEMORY_STEPS):
        step()
    if task is not None:
        task.stream.close()
    return {"before_mb": before, "peak_mb": memory_now("VmHWM")}


def memory_now(kind: str) -> float:
    """VmRSS or VmHWM of this process in megabytes. (getrusage would give the parent's peak if that is larger.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


if __name__ == "__main__":
    main()
