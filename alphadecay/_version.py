"""The package's version, in a file of its own: reading it needs no torch."""

__version__ = "0.1.0"
