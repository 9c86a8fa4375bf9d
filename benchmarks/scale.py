"""What 1,000 processes would hold, send and wait for: calculated, not run.

    python -m benchmarks.scale [--config llama/configs/llama_1b.json] [--processes 1000] [--node 8] [--json OUT]

Counted are the weights of the model, on the meta device; measured here are the sizes of the messages between processes
(random states, records of a refresh) and the time of the eigenvalue solver. Bandwidths and latencies are the stated
ones (`Network`). Not included: overlap of traffic with computation, activations, and stragglers.
"""

import json
import pickle
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from alphadecay.analysis import analyze
from alphadecay.matrices import Matrix, find_matrices
from alphadecay.sharing import cost, owners_of
from benchmarks.paired import parser_of, write_json
from runtime.seeding import random_state
from runtime.tables import say, table

LAYOUTS = ("DDP", "FSDP2", "HSDP")
GRADIENT, WEIGHT, MOMENTS, GATHERED = 4, 4, 8, 2  # bytes per parameter: float32, AdamW, gathered in bfloat16


@dataclass(frozen=True)
class Network:
    """Stated figures: NVLink inside a node, 400 Gbit/s between nodes, one TCP network for messages between CPUs."""

    inside: float = 450e9  # bytes per second and GPU
    between: float = 50e9  # bytes per second and GPU
    control: float = 1e9  # bytes per second and process
    latency: float = 20e-6  # seconds per message
    disk: float = 2e9  # bytes per second of the file system


def main() -> None:
    """Calculate, print a table, and write JSON if asked."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", default="llama/configs/llama_1b.json", help="a transformers config.json")
    parser.add_argument("--processes", type=int, default=1000, help="GPUs, one process each")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a node, which share one copy with HSDP")
    options = parser.parse_args()
    model = on_meta(Path(options.config))
    sizes = measured()
    shape = options.processes, options.node, Network(), sizes
    rows = [row for layout in LAYOUTS for row in events(model, layout, *shape)]
    count = sum(p.numel() for p in model.parameters())
    say(f"{options.config}: {count:,} parameters on {options.processes} processes, {options.node} per node")
    say(table(["layout", "event", "GB per GPU", "GB on the host", "GB sent", "seconds"], [list(row) for row in rows]))
    write_json(options.json, {"rows": rows, "network": asdict(Network()), "measured": sizes})


def on_meta(config: Path) -> nn.Module:
    """The model of a config without values."""
    import transformers

    read = transformers.AutoConfig.for_model(**json.loads(config.read_text()))
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(read)


def measured() -> dict[str, float]:
    """Bytes of a process' random state and of a record, and seconds of the solver per unit of `sharing.cost`."""
    layer = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    began = time.perf_counter()
    records = analyze(layer)
    seconds = time.perf_counter() - began
    costs = sum(cost(matrix) for matrix in find_matrices(layer) if not matrix.reason)
    return {
        "random_state": float(len(pickle.dumps(random_state()))),
        "record": len(pickle.dumps(list(records))) / len(records),
        "seconds_per_cost": seconds / costs,
    }


def bytes_per_parameter(layout: str, shards: int) -> dict[str, float]:
    """Bytes per parameter on each device, at rest and in a step.

    Args:
        layout: One of LAYOUTS.
        shards: Processes that share one copy of the weights.

    Returns:
        "at rest": weights and AdamW's moments in float32. "in a step": gradients too. Not included: the weights of the
        current block, and at a checkpoint or refresh the largest weight. Their size is fixed, not per parameter.
    """
    share = 1 if layout == "DDP" else shards
    return {"at rest": (WEIGHT + MOMENTS) / share, "in a step": (WEIGHT + MOMENTS + GRADIENT) / share}


def events(
    model: nn.Module, layout: str, processes: int, node: int, network: Network, sizes: dict[str, float]
) -> list[tuple[str, str, float, float, float, float]]:
    """Per event: layout, event, GB on each GPU, GB on the busiest host, GB that a process sends, seconds of traffic."""
    count, shards = sum(p.numel() for p in model.parameters()), {"DDP": 1, "FSDP2": processes, "HSDP": node}[layout]
    per = bytes_per_parameter(layout, shards)
    matrices = [matrix for matrix in find_matrices(model) if not matrix.reason]
    block, largest = largest_block(model), max(p.numel() for p in model.parameters())
    rest, step = count * per["at rest"], count * per["in a step"]
    whole = 0.0 if layout == "DDP" else largest * WEIGHT
    copies = 0.0 if layout == "DDP" else 2.0 * block * GATHERED  # the block that is computed, and the next
    sent, waits = step_traffic(layout, count, processes, shards, network)
    state = count * (WEIGHT + MOMENTS)
    refresh, solving = refresh_cost(matrices, layout, processes, shards, network, sizes)
    gathered = (shards - 1) / shards * state  # of an all-gather, tensor by tensor
    speed = network.inside if layout == "HSDP" else network.between
    saved = gathered / speed + processes * sizes["random_state"] / network.control
    rows = [
        ("step", step + copies, 0.0, sent, waits),
        ("refresh", rest + whole, 0.0, refresh, solving),
        ("checkpoint", rest + whole, state, gathered + sizes["random_state"], saved),
        ("evaluation", rest + copies, 0.0, 32.0, exchange(processes, network)),
    ]
    return [(layout, name, gpu / 1e9, host / 1e9, out / 1e9, seconds) for name, gpu, host, out, seconds in rows]


def largest_block(model: nn.Module) -> int:
    """Parameters of the largest block, which FSDP2 gathers at a time."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(sum(p.numel() for p in block.parameters()) for blocks in lists for block in blocks)


def step_traffic(layout: str, count: int, processes: int, shards: int, network: Network) -> tuple[float, float]:
    """Bytes that a process sends in an optimizer step, and their seconds where nothing hides them.

    A ring's all-reduce sends 2 (n - 1) / n of the tensor, an all-gather or reduce-scatter (n - 1) / n. FSDP2 gathers
    weights for the forward and the backward pass and scatters gradients; HSDP does so inside a node, and reduces its
    part of the gradients between nodes.
    """
    if layout == "DDP":
        sent = 2 * (processes - 1) / processes * count * GRADIENT
        return sent, sent / network.between + exchange(processes, network)
    sharded = (shards - 1) / shards * count * (2 * GATHERED + GRADIENT)
    if layout == "FSDP2":
        return sharded, sharded / network.between + exchange(processes, network)
    copies = processes // shards
    reduced = 2 * (copies - 1) / copies * count / shards * GRADIENT
    return sharded + reduced, sharded / network.inside + reduced / network.between + exchange(processes, network)


def refresh_cost(
    matrices: Sequence[Matrix], layout: str, processes: int, shards: int, network: Network, sizes: dict[str, float]
) -> tuple[float, float]:
    """Bytes that a process sends in a refresh, and its seconds: shards to owners, the busiest owner, all records."""
    owners = owners_of([{matrix.name: cost(matrix) for matrix in matrices}] * processes)
    loads: dict[int, float] = {}
    for matrix in matrices:
        loads[owners[matrix.name]] = loads.get(owners[matrix.name], 0.0) + cost(matrix)
    weights = sum(matrix.weight.numel() for matrix in matrices) * WEIGHT
    records = len(matrices) * sizes["record"]
    solving = max(loads.values()) * sizes["seconds_per_cost"]
    # FSDP2 gathers each matrix to its owner; with HSDP all processes of a copy gather it.
    sent = {"DDP": 0.0, "FSDP2": weights / processes, "HSDP": (shards - 1) / shards * weights}[layout]
    traffic = {"DDP": 0.0, "FSDP2": weights / network.between, "HSDP": sent / network.inside}[layout]
    return sent + records / processes, solving + traffic + records / network.control + exchange(processes, network)


def exchange(processes: int, network: Network) -> float:
    """Seconds of a small all-reduce between CPUs: messages that wait for each other."""
    return 2 * network.latency * max(1, (processes - 1).bit_length())


if __name__ == "__main__":
    main()
