"""Mistakes that somebody could make, each with the tests that must notice it; tests/planted_faults.py plants them."""

from faults_planted import (
    assignment,
    commands,
    comparing,
    devices,
    images,
    measures,
    noting,
    reading,
    runs,
    text,
    training,
    why_weight_decay,
)
from faults_planted.fault import Fault

FAULTS: list[Fault] = [
    *measures.FAULTS,
    *assignment.FAULTS,
    *noting.FAULTS,
    *training.FAULTS,
    *images.FAULTS,
    *runs.FAULTS,
    *commands.FAULTS,
    *text.FAULTS,
    *comparing.FAULTS,
    *reading.FAULTS,
    *devices.FAULTS,
    *why_weight_decay.FAULTS,
]
