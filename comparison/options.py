"""The options of compare.py; imports nothing slow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.options import build, option, parse

DESCRIPTION = """Compare weight decay strategies over base decays and seeds: runs, table, figures, verdict.

  python compare.py --preset quick
  python compare.py --config scripts/compare/llama_c4_adam.yaml --output_dir runs/llama_c4 --submit slurm"""
PRESETS = {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}


@dataclass(frozen=True)
class CompareOptions:
    """Which comparison to run, where to write it, and how many runs to do at once."""

    TITLE = "Comparison"
    preset: str | None = option(None, "a built-in comparison", choices=tuple(PRESETS))
    config: str = option("", "a YAML file that describes a comparison: docs/compare.md", metavar="FILE")
    output_dir: str = option("", "folder for the runs and the report; by default runs/compare_NAME", metavar="FOLDER")
    jobs: int | None = option(
        None, "runs at once on this machine; by default one per GPU, or as CPU cores allow", minimum=1
    )
    threads: int | None = option(None, "CPU threads per run; by default 1 on a machine without GPUs", minimum=1)
    retry_failed: bool = option(False, "resume failed runs")
    submit: str | None = option(
        None, "submit the runs to a cluster through submitit; local: as jobs on this machine",
        choices=("slurm", "local"),
    )  # fmt: skip
    report_only: bool = option(False, "start no runs; report the existing ones")
    dry_run: bool = option(False, "check the comparison, print its runs and their commands, then stop")

    CHECKS = (
        (lambda o: o.preset or o.config, f"give --preset ({', '.join(PRESETS)}) or --config FILE"),
        (
            lambda o: not (o.preset and o.config),
            "--config {config}: not together with --preset {preset}; give one of them",
        ),
        (
            lambda o: not (o.report_only and o.retry_failed),
            "--retry_failed true: not together with --report_only, which starts no runs",
        ),
        (
            lambda o: not (o.submit and o.jobs),
            "--jobs {jobs}: with --submit the cluster decides how many runs are done at once",
        ),
    )


def read_options(argv: Sequence[str]) -> CompareOptions:
    """The options of a command line."""
    values, _ = parse([CompareOptions], argv, description=DESCRIPTION)
    (options,) = build([CompareOptions], values)
    return options
