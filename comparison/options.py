"""The options of compare.py; imports nothing that is slow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.options import build, option, parse

DESCRIPTION = """Compare strategies of weight decay over base decays and seeds: runs, table, figures, verdict.

  python compare.py --preset quick
  python compare.py --config scripts/compare/llama_c4_adam.yaml --output_dir runs/llama_c4 --submit slurm"""
PRESETS = {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, where it goes, and how many runs go on at once."""

    TITLE = "Comparison"
    preset: str | None = option(None, "a comparison that comes along", choices=tuple(PRESETS))
    config: str = option("", "a YAML file that describes a comparison: docs/compare.md", metavar="FILE")
    output_dir: str = option("", "folder of the runs and the report; by default runs/compare_NAME", metavar="FOLDER")
    jobs: int | None = option(
        None, "runs at once on this machine; by default one a GPU, or as CPU cores allow", minimum=1
    )
    threads: int | None = option(None, "CPU threads of a run; by default 1 on a machine without GPUs", minimum=1)
    retry_failed: bool = option(False, "take up failed runs again")
    submit: str | None = option(
        None, "send the runs to a cluster, through submitit; local: as jobs on this machine", choices=("slurm", "local")
    )
    report_only: bool = option(False, "start nothing; report what there is")
    dry_run: bool = option(False, "check the comparison, print its runs and their commands, then stop")

    CHECKS = (
        (lambda o: o.preset or o.config, f"give --preset ({', '.join(PRESETS)}) or --config FILE"),
        (
            lambda o: not (o.preset and o.config),
            "--config {config}: not together with --preset {preset}; give one of them",
        ),
        (
            lambda o: not (o.report_only and o.retry_failed),
            "--retry_failed true: nothing is started with --report_only",
        ),
        (lambda o: not (o.submit and o.jobs), "--jobs {jobs}: with --submit the cluster says how many go on at once"),
    )


def read_options(argv: Sequence[str]) -> CompareOptions:
    """The options of a command line."""
    values, _ = parse([CompareOptions], argv, description=DESCRIPTION)
    (options,) = build([CompareOptions], values)
    return options
