"""The command line: `python -m alphadecay analyze`."""
