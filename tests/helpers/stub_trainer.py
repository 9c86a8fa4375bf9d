"""A trainer in a fraction of a second that behaves as the real ones towards a comparison: saves, resumes, fails."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--output_dir", type=Path)
for name in ("seed", "steps", "fails_at", "status"):
    parser.add_argument(f"--{name}", type=int, default=0)
parser.add_argument("--deaf", default="false")
parser.add_argument("--requeue", default="false")
parser.add_argument("--repaired_by", type=Path)
parser.add_argument("--resume")
parser.add_argument("--dry_run", action="store_true")
options = parser.parse_args()
folder = options.output_dir
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
with open(folder / "starts", "a") as file:
    file.write(f"{os.getpid()} {time.time()} {os.environ.get('OMP_NUM_THREADS')}\n")
(folder / "config.json").write_text("{}")
checkpoint = folder / "checkpoints"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
while step < options.steps:
    time.sleep(0.05)
    step += 1
    with open(folder / "steps", "a") as file:
        file.write(f"{step}\n")
    if options.fails_at == step and not (options.repaired_by and options.repaired_by.exists()):
        if options.requeue == "true":
            (folder / "REQUEUE").touch()
        sys.stdout.write("about to fail\n")
        sys.stdout.flush()
        sys.stderr.write(f"error: step {step} is bad\n")
        sys.exit(options.status)
    if told and options.deaf != "true":
        checkpoint.write_text(str(step))
        sys.exit(75)
(folder / "summary.json").write_text(json.dumps({"acc1": 90.0 + options.seed, "step": step, "seconds": 0.1}))
with open(folder / "ends", "a") as file:
    file.write(f"{time.time()}\n")
