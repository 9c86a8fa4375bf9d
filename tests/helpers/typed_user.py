"""A user's program that uses every public name, checked by mypy as strictly as it can: see pyproject.toml."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

import alphadecay
from alphadecay.decay_log import refresh_rows


class Attention(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        mixed: Tensor = self.proj(torch.softmax(q @ k.mT, -1) @ v)
        return mixed


class Ledger:
    """Notes what each refresh assigned."""

    def __init__(self, path: Path) -> None:
        self.path, self.largest = path, 0.0

    def note(self, decay: alphadecay.DecaySchedule) -> None:
        self.largest = max(self.largest, *decay.multipliers.values())
        with self.path.open("a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in refresh_rows(decay))


def built() -> tuple[nn.Module, torch.optim.AdamW]:
    """A model whose q, k and v have decays of their own, and its optimizer."""
    model = alphadecay.split_qkv(nn.Sequential(Attention(), Attention()))
    return model, torch.optim.AdamW(alphadecay.param_groups(model, weight_decay=0.1), lr=1e-3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        loss = (model(torch.randn(2, 8, 64)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def adapted(ledger: Ledger) -> list[alphadecay.AuditRecord]:
    """Train with the method, and say what decay did in the last step."""
    model, optimizer = built()
    decay = alphadecay.AlphaDecay(
        model, optimizer, 2, 0.5, 2.0, budget="matched", window=(32, 32), on_refresh=ledger.note
    )
    audit = alphadecay.DecayAudit(decay, every=2)
    train(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    norms: dict[str, float] = {record.name: record.decay_norm for record in audit.records}
    assert set(norms) == set(decay.multipliers) and decay.step == 2
    assert alphadecay.attached(optimizer) is decay and decay.seconds > 0
    audit.detach()
    decay.detach()
    return audit.records


def baselines(ledger: Path) -> dict[str, float]:
    """The last loss with each of the other kinds."""
    losses: dict[str, float] = {}
    for kind in ("uniform", "adadecay", "per entry", "awd", "replay"):
        model, optimizer = built()
        decay: alphadecay.DecaySchedule
        if kind == "uniform":
            decay = alphadecay.UniformDecay(model, optimizer, cautious=True)
        elif kind == "adadecay":
            decay = alphadecay.AdaDecay(model, optimizer, interval=1)
        elif kind == "per entry":
            decay = alphadecay.AdaDecayPerEntry(model, optimizer)
        elif kind == "awd":
            decay = alphadecay.AWD(model, optimizer, scale=50.0)
        else:
            decay = alphadecay.Replay(model, optimizer, ledger, mean=True)
        losses[kind] = train(model, optimizer)
        decay.detach()
    return losses


def heaviest(records: alphadecay.SpectrumRecords) -> alphadecay.SpectrumRecord:
    """The record with the smallest alpha."""
    alphas = {record.name: record.alpha for record in records[:] if record.alpha is not None}
    name = min(alphas, key=lambda each: alphas[each])
    return next(record for record in records if record.name == name)


def looked_at(folder: Path) -> dict[str, float]:
    """Spectra of a model before and after training, as figures and a table; multipliers by hand."""
    model, optimizer = built()
    before = alphadecay.analyze(model, exclude=["1.proj"])
    train(model, optimizer)
    after = alphadecay.analyze(alphadecay.merge_qkv(model), window="farms")
    after.plot("alpha_by_role", before, labels=("after", "before")).savefig(folder / "alpha.png")
    largest = float(before.spectra[heaviest(before).name][-1])
    assert len(after.to_pandas()) == len(after) and largest > 0
    scores: dict[str, float] = {record.name: record.alpha for record in after if record.alpha is not None}
    return alphadecay.assign(scores, rule="sqrt", control="shuffle", seed=1)


def main(folder: Path) -> str:
    ledger = Ledger(folder / "decay.jsonl")
    swallowed = [record.swallowed for record in adapted(ledger) if record.swallowed is not None]
    losses, multipliers = baselines(ledger.path), looked_at(folder)
    return f"alphadecay {alphadecay.__version__}: {max(swallowed)}, {ledger.largest}, {losses}, {multipliers}"
