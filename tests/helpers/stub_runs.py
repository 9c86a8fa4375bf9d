"""Cells whose trainer is `stub_trainer.py`."""

from pathlib import Path

from comparison.programs import Program, RunSpec, Setting
from comparison.results import Run
from runtime.metrics import Metric

STUB = Program(str(Path(__file__).parent / "stub_trainer.py"), lambda words: None)
SETTING = Setting("stub", "", STUB, Metric("acc1", "accuracy in %", "accuracy", True), 1, (), "uniform", ())


def stub_run(root: Path, seed: int = 0, strategy: str = "uniform", **options) -> Run:
    spec = RunSpec(SETTING, strategy, (), seed, {"steps": 3, **options}, 0.0)
    return Run(spec, spec.folder(root))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
