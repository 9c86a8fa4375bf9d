"""Figures of records, spectra and the decay log; they need matplotlib."""
