"""Paired timings: ratios that are measured in one run, never absolute times alone."""

import runtime.openmp  # noqa: F401  before torch
