"""Images per second of a small training, alone and beside another process, per OpenMP wait setting.

    python -m benchmarks.busy_machine [--rounds 3] [--epochs 6] [--json OUT]

OpenMP threads that wait for each other spin. That saves microseconds if the training is alone, but beside another
process it blocks a core that other threads need. Each setting trains the quickstart's model in a separate process; the
settings take turns. The other process is one Python thread that counts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.paired import parser_of, write_json
from runtime.tables import say, table

SETTINGS: dict[str, dict[str, str]] = {
    "GOMP_SPINCOUNT=300000": {"GOMP_SPINCOUNT": "300000"},  # the default of GNU's OpenMP
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
UNSET = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
TRAINING = (
    "--data_set digits --input_size 32 --model vit_tiny_patch16_224 --model_kwargs patch_size=8 embed_dim=128 depth=6 "
    "num_heads=4 --batch_size 32 --warmup_epochs 1 --optimizer adamw --lr 1e-3 --aa none --num_workers 0"
).split()
ROOT = Path(__file__).parent.parent


def main() -> None:
    """Measure, print a table, and write JSON if --json is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each setting, alone and beside")
    parser.add_argument("--epochs", type=int, default=6, help="epochs per run")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="only these")
    options = parser.parse_args()
    speeds: dict[str, dict[str, list[float]]] = {name: {"alone": [], "beside": []} for name in options.settings}
    for _ in range(options.rounds):
        for name in options.settings:
            speeds[name]["alone"].append(images_per_second(SETTINGS[name], options.epochs))
            with another_process():
                speeds[name]["beside"].append(images_per_second(SETTINGS[name], options.epochs))
    rows = [[name, median(speed["alone"]), median(speed["beside"])] for name, speed in speeds.items()]
    say(table(["setting", "images/s alone", "images/s beside"], rows))
    write_json(options.json, {"images_per_second": speeds})


def images_per_second(setting: dict[str, str], epochs: int) -> float:
    """Train once with these environment variables."""
    environ = {name: value for name, value in os.environ.items() if name not in UNSET}
    with TemporaryDirectory() as folder:
        words = [sys.executable, "main.py", *TRAINING, "--epochs", str(epochs), "--output_dir", f"{folder}/run"]
        subprocess.run(words, cwd=ROOT, env=environ | setting, check=True, capture_output=True)
        return json.loads(Path(folder, "run", "summary.json").read_text())["samples_per_second"]


@contextmanager
def another_process() -> Iterator[None]:
    """Keep one core busy with another process while the block runs."""
    counting = subprocess.Popen([sys.executable, "-c", "n = 0\nwhile True: n += 1"])
    try:
        yield
    finally:
        counting.kill()
        counting.wait()


if __name__ == "__main__":
    main()
