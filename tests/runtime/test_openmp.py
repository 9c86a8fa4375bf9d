"""Programs set how long OpenMP's threads spin before torch loads OpenMP, unless the user has set it."""

import os
import subprocess
import sys

import pytest
from tiny import ROOT

from runtime.openmp import SETTINGS, SPIN_COUNT

# Says what is set at the moment at which torch is looked for, and ends.
ASK = """
import os, sys

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print([os.environ.get(each) for each in {settings!r}])
            os._exit(0 if sys.stdout.flush() is None else 1)

sys.meta_path.insert(0, Watch())
import {module}
"""


@pytest.mark.parametrize("module", ["main", "main_llama", "compare", "benchmarks.refresh"])
@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, [None, SPIN_COUNT]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", None]),
        ({"GOMP_SPINCOUNT": "7"}, [None, "7"]),
    ],
    ids=["nothing", "policy", "count"],
)
def test_programs_set_it_before_torch_and_leave_what_the_user_has_set(module, given, seen):
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | given
    command = [sys.executable, "-c", ASK.format(settings=SETTINGS, module=module)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{seen}\n", done.stderr
