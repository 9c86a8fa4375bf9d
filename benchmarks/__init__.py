"""Paired timings: ratios measured in one run, never absolute times."""
