"""Paired timings: ratios measured in one run, never absolute times."""

import runtime.openmp  # noqa: F401  before torch
