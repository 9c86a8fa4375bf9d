"""How long threads of OpenMP spin while they wait for each other. To be imported before torch, which brings OpenMP.

A thread that spins is at hand within microseconds, but takes the core from other processes; by default GNU's OpenMP
lets it spin for milliseconds. The figures for other settings: docs/reliability.md, "A busy machine". What the user has
set stays; whoever uses only the package `alphadecay` sets it for themselves.
"""

import os

SPIN_COUNT = "1000"  # rounds of a loop, some microseconds
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

if not any(name in os.environ for name in SETTINGS):
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
