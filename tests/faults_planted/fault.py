"""What a fault to plant is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A mistake that somebody could make, and the tests that must notice it."""

    name: str
    file: str  # below the root
    old: str  # stands once in the file
    new: str
    tests: str  # files or node ids below tests/, with spaces between; those that fail first come first
    why: str  # it matters
    slow: bool = False  # nothing quick notices it

    @property
    def node_ids(self) -> list[str]:
        """The tests as pytest takes them."""
        return [f"tests/{test}" for test in self.tests.split()]
