"""Hostile, careless and unlucky inputs, as tables: what is attacked, with what, and what must be named."""

from attacks import analyses, comparisons, images, options, runs, text

ATTACKS = [*options.ATTACKS, *images.ATTACKS, *runs.ATTACKS, *text.ATTACKS, *comparisons.ATTACKS, *analyses.ATTACKS]
