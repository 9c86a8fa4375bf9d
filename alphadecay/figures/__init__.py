"""Drawings of records, of spectra and of the decay log; they need matplotlib."""
