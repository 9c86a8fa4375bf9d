"""The training loop on text; `runtime/trainer.py` has what both programs share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llama.engine import METRICS, RAW_METRICS, TRAIN_LOSS, LossRules, backward, evaluate, train_steps, weighted_batches
from llama.models import export, flops_per_token
from llama.sequences import IGNORED, Batch
from llama.stream import TextStream
from llama.tokenizers import Tokenizer
from llama.validation import ValidationBatches
from runtime.figures import training_curves
from runtime.metrics import Metric
from runtime.preemption import Preemption
from runtime.processes import Ranks
from runtime.reports import metrics_table, show_decay_by_role
from runtime.run import StartedRun
from runtime.runfolder import Row
from runtime.seeding import random_state, restore_random_state
from runtime.session import Session
from runtime.steps import find_bad_values
from runtime.tables import say
from runtime.trainer import Task, Trainer

PEAK_TFLOPS = {  # dense 16-bit, by what a device's name holds; the first that fits counts
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0, "A100": 312.0, "A10G": 70.0,
    "A10": 125.0, "L40S": 362.0, "L4": 121.0, "V100": 125.0, "4090": 165.0, "MI300X": 1307.0,
}  # fmt: skip

SHOWN = (*RAW_METRICS, TRAIN_LOSS, Metric("eval_tokens", "predicted tokens", "tokens"))  # the table at a run's end


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A run on text."""

    loss: LossRules
    stream: TextStream
    validation: ValidationBatches
    train_eval: ValidationBatches | None  # the first tokens of the training text
    tokenizer: Tokenizer
    evaluate_ema: bool
    eval_every: int  # optimizer steps
    sharded: bool  # FSDP: all ranks must run each forward pass together
    peak_tflops: float | None  # of one device
    export_to: Path | None


def even_batches(validation: ValidationBatches, sharded: bool, preemption: Preemption | None = None) -> Iterable[Batch]:
    """This rank's validation batches; if `sharded`, empty ones are added until all ranks have the same number."""

    def padded() -> Iterator[Batch]:
        yielded = 0
        for batch in validation:
            yielded += 1
            yield batch
        ids = torch.zeros((1, validation.max_length), dtype=torch.int64)
        empty = {"input_ids": ids, "labels": torch.full_like(ids, IGNORED), "bytes": torch.zeros_like(ids[:, 0])}
        for _ in range(validation.max_batches - yielded):
            yield empty

    batches = padded() if sharded else iter(validation)
    return batches if preemption is None else preemption.watched(batches, validation.max_batches)


def evaluate_all(
    model: nn.Module,
    averaged: nn.Module | None,
    validation: ValidationBatches,
    train_eval: ValidationBatches | None,
    ranks: Ranks,
    rules: LossRules,
    sharded: bool = False,
    preemption: Preemption | None = None,
) -> Row:
    """Validation metrics of the raw weights and, with names ending in _ema, of their EMA if there is one.

    `train_eval_loss` is the mean loss over the training text in `train_eval`, if it is given. Other arguments as of
    `evaluate` and `even_batches`.

    Raises:
        Preempted: If `preemption` is given and a signal asks the run to end.
    """

    def evaluated(each: nn.Module, text: ValidationBatches, part: str) -> Row:
        return dict(evaluate(each, even_batches(text, sharded, preemption), ranks, rules, part))

    metrics = evaluated(model, validation, "validation")
    if averaged is not None:
        of_ema = evaluated(averaged, validation, "validation")
        metrics |= {f"{metric.name}_ema": of_ema[metric.name] for metric in RAW_METRICS}
    for suffix, each in (("", model), ("_ema", averaged)):
        if train_eval is not None and each is not None:
            metrics[TRAIN_LOSS.name + suffix] = evaluated(each, train_eval, "training")["loss"]
    return metrics


class TextTraining(Trainer):
    """The loop over a stream of text."""

    def __init__(self, task: TextTask, run: StartedRun) -> None:
        self.task, stream = task, task.stream
        self.add_gradients = backward(task.loss, run.ranks.device)
        sequences = stream.batch_size * stream.accumulate * run.ranks.count
        super().__init__(task, run, "tok", sequences * stream.max_length, sequences)
        if run.state.streams is not None:
            stream.load(run.state.streams[run.ranks.rank])

    def streams(self) -> list[Row]:
        """The state of each rank's stream, on the main process."""
        return self.ranks.gather_to_main(self.task.stream.state())

    def take_steps(self, step: int) -> None:
        """Train up to the next evaluation."""
        stream, every = self.task.stream, self.task.eval_every
        steps = min(every - step % every, self.last_step - step)
        per_step = ([stream.next() for _ in range(stream.accumulate)] for _ in range(steps))
        batches = weighted_batches(per_step, self.ranks)
        train_steps(
            self.learner, batches, self.add_gradients, self.task.rules, step, self.gate, self.after_step, self.bad_step
        )

    def evaluates_after(self, step: int) -> bool:
        """Every --eval_every steps."""
        return step % self.task.eval_every == 0

    def evaluate(self) -> Row:
        """Evaluate the raw weights and, with --model_ema_eval, the EMA weights."""
        task, learner = self.task, self.learner
        averaged = learner.averaged if task.evaluate_ema else None
        return evaluate_all(
            learner.plain, averaged, task.validation, task.train_eval, self.ranks, task.loss, task.sharded,
            self.preemption,
        )  # fmt: skip

    def facts(self, step: int) -> Row:
        """Amount of text so far, and speed."""
        counts = self.ranks.gather(dict(self.task.stream.counts))
        tokens, pads = sum(rank["tokens"] for rank in counts), sum(rank["pads"] for rank in counts)
        speed = tokens / self.counts.train_seconds if self.counts.train_seconds else None
        facts = {
            "epoch": min(rank["epoch"] for rank in counts),
            "documents_seen": sum(rank["documents"] for rank in counts),
            "tokens_seen": tokens,
            "pad_share": pads / max(1, tokens + pads),
            "bad_lines": sum(rank["bad_lines"] for rank in counts),
            "tokens_per_second": None if speed is None else round(speed, 1),
        }
        peak = self.task.peak_tflops or known_peak(self.ranks.device)
        if peak and speed:
            per_token = flops_per_token(self.learner.plain, self.task.stream.max_length)
            facts["mfu"] = round(per_token * speed / (peak * 1e12 * self.ranks.count), 4)
        return facts

    def note_best(self, row: Row, session: Session) -> None:
        """Record the lowest losses of raw and EMA weights."""
        session.note_best("best", METRICS["loss"], row)
        session.note_best("best_ema", METRICS["loss_ema"], row)

    def shown(self, row: Row) -> Row:
        """Perplexity, for the progress bar."""
        return {name: f"{row[name]:.2f}" for name in ("perplexity", "perplexity_ema") if name in row}

    def trace(self, step: int) -> Row:
        """Find where a bad step stopped being finite on this rank; list the step's documents."""
        random = random_state()
        batches, names = self.task.stream.batches_of_step(step)
        one = torch.ones((), device=self.ranks.device)
        weighted = [(batch["input_ids"], batch["labels"], one / batch["labels"].numel()) for batch in batches]
        finding = find_bad_values(self.learner, weighted, self.add_gradients, step)
        restore_random_state(random)
        return {
            "module": finding.module,
            "found": str(finding),
            "gradients": finding.parameters,
            "suspects": [names[finding.micro_step][index] for index in finding.samples],
            "samples": names,
        }

    def close(self) -> None:
        """End the stream's thread."""
        self.task.stream.close()

    def hand_over(self) -> None:
        """Write the transformers folder if --export_hf asks for one."""
        if self.task.export_to is not None:
            export(self.learner.plain, self.task.tokenizer, self.task.export_to, self.ranks)

    def curves(self, log: Sequence[Row]) -> Any:
        """Draw losses, perplexity and learning rate."""
        return training_curves(log, METRICS["perplexity"])

    def summary(self, session: Session, log: Sequence[Row]) -> Row:
        """Final metrics, lowest losses, and amount of text."""
        last = log[-1] if log else {}
        names = [*METRICS, "eval_tokens", "tokens_seen", "documents_seen"]
        names += ["pad_share", "bad_lines", "tokens_per_second", "mfu"]
        best: Row = {"best_loss": None, "best_loss_step": None}
        for link, each in session.best.items():
            best |= {f"best_loss{link[4:]}": each["value"], f"best_loss{link[4:]}_step": each["step"]}
        return {
            "step": self.counts.step,
            **{name: last[name] for name in names if name in last},
            **best,
        }

    def show(self, summary: Row, decay_log: Sequence[Row]) -> None:
        """Print perplexity, decay by role, and speed."""
        show_perplexity(summary)
        show_decay_by_role(decay_log, self.decay.metric)
        utilisation = f", MFU {100 * summary['mfu']:.1f} %" if summary.get("mfu") else ""
        speed = f"{summary.get('tokens_per_second') or 0:,.0f} tokens/s{utilisation}"
        say(
            f"\n{summary['step']} steps, {summary.get('tokens_seen', 0):,} tokens, {summary['seconds']:.1f} s, "
            f"{speed}, {summary['decay_seconds']:.2f} s for decay"
        )


def show_perplexity(metrics: Row) -> None:
    """Print the metrics of an evaluation, of raw and EMA weights."""
    shown = [metric for metric in SHOWN if metric != TRAIN_LOSS or TRAIN_LOSS.name in metrics]
    say("\n" + metrics_table({**metrics, "eval_tokens_ema": metrics.get("eval_tokens")}, shown))


def known_peak(device: torch.device) -> float | None:
    """Peak dense 16-bit TFLOP/s of a common GPU; None for other GPUs and CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for model, peak in PEAK_TFLOPS.items() if model in name), None)
