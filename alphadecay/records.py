"""Placeholder until merged."""

from alphadecay.analysis import SpectrumRecord


class SpectrumRecords(list[SpectrumRecord]):
    """A list of records."""
