"""Module-wise weight decay from weight spectra: matrices -> eigenvalues -> tail fit -> multipliers -> optimizer."""

from alphadecay._version import __version__ as __version__
from alphadecay.adaptive import AlphaDecay
from alphadecay.analysis import analyze
from alphadecay.assign import assign
from alphadecay.audit import AuditRecord, DecayAudit
from alphadecay.baselines import AWD, AdaDecay, AdaDecayPerEntry, UniformDecay
from alphadecay.groups import param_groups
from alphadecay.qkv import merge_qkv, split_qkv
from alphadecay.records import SpectrumRecord, SpectrumRecords
from alphadecay.replay import Replay
from alphadecay.schedule import DecaySchedule, attached

__all__ = [
    "AWD",
    "AdaDecay",
    "AdaDecayPerEntry",
    "AlphaDecay",
    "AuditRecord",
    "DecayAudit",
    "DecaySchedule",
    "Replay",
    "SpectrumRecord",
    "SpectrumRecords",
    "UniformDecay",
    "analyze",
    "assign",
    "attached",
    "merge_qkv",
    "param_groups",
    "split_qkv",
]
