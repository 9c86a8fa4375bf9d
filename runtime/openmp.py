"""Limits how long OpenMP threads spin while they wait for each other. Import it before torch, which loads OpenMP.

A spinning thread responds within microseconds, but keeps its core from other processes; by default GNU's OpenMP spins
for milliseconds. docs/reliability.md, "A busy machine", has measurements. Settings of the user are kept. The package
`alphadecay` does not import this: its users choose for themselves.
"""

import os

SPIN_COUNT = "1000"  # loop iterations, a few microseconds
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

if not any(name in os.environ for name in SETTINGS):
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
