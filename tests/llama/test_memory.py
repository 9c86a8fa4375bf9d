"""What docs/cluster.md says that a process holds of each parameter, counted on CPUs."""

import json

import pytest
from forked import forked
from tiny import ROOT

from benchmarks.scale import GATHERED, Network, bytes_per_parameter, events, on_meta

COUNT = """
import gc, json, sys, weakref
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from peak import Peak
import alphadecay.analysis
from alphadecay.analysis import Measurement, Measuring, record_without_measures
from alphadecay.matrices import find_matrices
from alphadecay.sharing import local_part
from llama.sharding import mesh_of, sharded_layers
from runtime.processes import process_group
from runtime.sharded import whole_on_main
from runtime.steps import data_parallel

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(6))
        self.head = nn.Linear(64, 16, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)

def held(tensors):
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in local)}.values())

def refresh(model):  # gathers what this process measures; the most bytes for that, and how many matrices it gets
    seen = []

    def measure(matrix, _):
        seen.append(tuple(matrix.weight.shape))
        return record_without_measures(matrix, ""), None

    alphadecay.analysis.measure = measure
    matrices = find_matrices(model)
    own = [local_part(t) for p in model.parameters() for t in (p.detach(), p.grad)]
    with Peak(own) as peak:
        Measurement(matrices, Measuring(), dist.group.WORLD)._measured(None)
    assert set(seen) <= {(64, 64)}
    return {"gathered": peak.most, "measured": len(seen)}

folder, layout = sys.argv[1:]
torch.manual_seed(0)
plain = Model()
count = sum(p.numel() for p in plain.parameters())
with process_group("cpu") as ranks:
    if layout == "DDP":
        model = data_parallel(plain, ranks)
    else:
        model = sharded_layers(plain, mesh_of(ranks, 2 if layout == "HSDP" else None), None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    moments = [v for s in optimizer.state.values() for v in s.values() if v.ndim]
    rest = held([*model.parameters(), *moments])
    step = rest + held([p.grad for p in model.parameters()])
    refreshed = refresh(plain if layout == "DDP" else model)
    alive, most, wholes, real = weakref.WeakSet(), 0, 0, DTensor.full_tensor

    def full_tensor(self, *given, **named):
        global most, wholes
        gc.collect()
        whole = real(self, *given, **named)
        alive.add(whole)
        most, wholes = max(most, len(alive)), wholes + 1
        return whole

    DTensor.full_tensor = full_tensor
    kept = whole_on_main({"model": model.state_dict(), "moments": optimizer.state_dict()["state"]}, ranks.is_main)
    gc.collect()
    found = {"count": count, "rest": rest, "step": step, "most": most, "alive": len(alive), "wholes": wholes}
    found |= refreshed
    with open(f"{folder}/{ranks.rank}.json", "w") as file:
        json.dump(found, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "shards"), [("DDP", 1), ("FSDP2", 4), ("HSDP", 2)])
def test_a_process_holds_what_the_docs_say(tmp_path, layout, shards):
    program = tmp_path / "count.py"
    program.write_text(COUNT)
    done = forked(4, tmp_path, layout, program=program)
    assert done.returncode == 0, done.stderr[-2000:]
    counted = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    per = bytes_per_parameter(layout, shards)
    for rank in counted:
        assert rank["rest"] == rank["count"] * per["at rest"] and rank["step"] == rank["count"] * per["in a step"]
        assert rank["wholes"] == (0 if layout == "DDP" else 3 * 7)
        assert rank["gathered"] <= (0 if layout == "DDP" else 64 * 64 * 4), "at a refresh: the largest weight"
    assert sorted(rank["measured"] for rank in counted) == [1, 1, 2, 2]
    for rank in counted[1:]:  # the main process keeps what it saves
        assert rank["most"] <= 1 and rank["alive"] == 0


def test_the_reckoning_grows_as_it_must():
    model, sizes = on_meta(ROOT / "llama/configs/llama_60m.json"), {"random_state": 8e3, "record": 500.0}
    sizes |= {"seconds_per_cost": 1e-9}

    def event(layout, processes, name):
        rows = events(model, layout, processes, 8, Network(), sizes)
        return next(row[2:] for row in rows if row[1] == name)

    count = sum(p.numel() for p in model.parameters())
    assert event("DDP", 1000, "step")[0] == event("DDP", 8, "step")[0] == pytest.approx(count * 16e-9)
    assert event("FSDP2", 1000, "evaluation")[0] < event("FSDP2", 8, "evaluation")[0]
    assert event("HSDP", 1000, "evaluation")[0] == event("HSDP", 64, "evaluation")[0]
    assert event("HSDP", 1000, "step")[3] < event("FSDP2", 1000, "step")[3], "less goes between nodes"
    assert event("FSDP2", 1000, "checkpoint")[1] == pytest.approx(count * 12e-9)
    assert event("DDP", 1000, "refresh")[3] <= event("DDP", 2, "refresh")[3] and GATHERED == 2
