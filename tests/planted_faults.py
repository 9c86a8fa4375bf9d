"""Plants mistakes in a copy of the project, one at a time, and says which test notices each.

python tests/planted_faults.py --only median_cut sigmoid_over_all --jobs 2

Exit status: 0 if every fault was caught, 1 if not, 2 if an entry no longer fits the code or the tests. What is copied
are the files that git tracks, as they are in the working tree. The entries are in tests/faults_planted/.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from faults_planted import FAULTS
from faults_planted.fault import Fault
from faults_planted.planting import (
    CAUGHT,
    ROOT,
    STALE,
    SURVIVED,
    Outcome,
    passes_unplanted,
    stop_tests,
    tracked_files,
    try_fault,
)


def try_all(faults: Sequence[Fault], root: Path, jobs: int) -> list[Outcome]:
    """Outcomes in the order of the faults, each told when it is there."""
    found = []
    trial = partial(try_fault, root=root, files=tracked_files(root))
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for outcome in pool.map(trial, faults):
                say(f"{outcome.verdict:8} {outcome.seconds:6.1f} s  {outcome.name}: {outcome.by}")
                found.append(outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_tests()
            raise
    return found


def summary(found: Sequence[Outcome]) -> str:
    """What was not caught, line by line, and how many were."""
    missed = [f"{each.verdict:8} {each.name}: {each.by}" for each in found if each.verdict != CAUGHT]
    seconds = sum(each.seconds for each in found)
    return "\n".join([*missed, f"{len(found) - len(missed)} of {len(found)} faults caught in {seconds:.0f} s"])


def exit_status(found: Sequence[Outcome]) -> int:
    """2 if an entry is stale, 1 if a fault was not caught, else 0."""
    verdicts = {each.verdict for each in found}
    return 2 if STALE in verdicts else 1 if verdicts - {CAUGHT} else 0


def chosen(names: Sequence[str] | None, quick: bool) -> list[Fault]:
    """The faults of these names, or all; raises SystemExit for a name that is none."""
    unknown = sorted(set(names or ()) - {fault.name for fault in FAULTS})
    if unknown:
        sys.stderr.write(f"error: --only {unknown[0]}: no such fault; --list names them\n")
        raise SystemExit(2)
    return [fault for fault in FAULTS if (names is None or fault.name in names) and not (quick and fault.slow)]


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults alone")
    parser.add_argument("--quick", action="store_true", help="leave out faults that only slow tests notice")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at once")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the outcomes to this file")
    parser.add_argument("--unplanted", action="store_true", help="first see that the tests pass without a fault")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the options, try the faults, tell the outcomes; returns the exit status."""
    options = read_options(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: tests that are going on are ended too
    faults = chosen(options.only, options.quick)
    if options.list:
        for fault in faults:
            say(f"{fault.name:36} {fault.file:32} {fault.why}{' (slow)' if fault.slow else ''}")
        return 0
    if options.unplanted:
        outcome = passes_unplanted(faults, ROOT, tracked_files(ROOT))
        say(f"without a fault, {outcome.seconds} s: {outcome.by}")
        if outcome.verdict != SURVIVED:
            return 2
    found = try_all(faults, ROOT, max(1, options.jobs))
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    say(f"\n{summary(found)}")
    return exit_status(found)


if __name__ == "__main__":
    sys.exit(main())
