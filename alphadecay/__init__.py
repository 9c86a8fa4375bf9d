"""Module-wise weight decay from weight spectra: matrices -> eigenvalues -> tail fit -> multipliers -> optimizer."""

from alphadecay._version import __version__ as __version__
from alphadecay.adaptive import AlphaDecay as AlphaDecay
from alphadecay.analysis import analyze as analyze
from alphadecay.assign import assign as assign
from alphadecay.audit import AuditRecord as AuditRecord
from alphadecay.audit import DecayAudit as DecayAudit
from alphadecay.baselines import AWD as AWD
from alphadecay.baselines import AdaDecay as AdaDecay
from alphadecay.baselines import AdaDecayPerEntry as AdaDecayPerEntry
from alphadecay.baselines import UniformDecay as UniformDecay
from alphadecay.groups import param_groups as param_groups
from alphadecay.qkv import merge_qkv as merge_qkv
from alphadecay.qkv import split_qkv as split_qkv
from alphadecay.records import SpectrumRecord as SpectrumRecord
from alphadecay.records import SpectrumRecords as SpectrumRecords
from alphadecay.replay import Replay as Replay
from alphadecay.schedule import DecaySchedule as DecaySchedule
from alphadecay.schedule import attached as attached

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
