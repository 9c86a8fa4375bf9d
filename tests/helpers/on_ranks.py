"""What test_ranks.py runs on several processes: python on_ranks.py WHAT RANKS STORE, writes STORE_<rank>.json."""

import itertools
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
from recipes import block_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import alphadecay
from alphadecay.matrices import find_matrices
from alphadecay.sharing import assign_to_ranks, cost


def main():
    what, ranks, store = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    rank = int(os.environ.get("RANK", 0))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    found = globals()[what](rank, ranks)
    dist.barrier()
    dist.destroy_process_group()
    Path(f"{store}_{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # at the end of the interpreter gloo's threads abort now and then ("terminate called ...")


def take_steps(model, optimizer, steps=3):
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(16, 60)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(model, steps=3, kind=alphadecay.AlphaDecay, **options):
    """Multipliers, records and final weights after some steps with refreshes in between."""
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1), lr=1e-2)
    options |= {} if kind is alphadecay.AWD else {"interval": 2}
    decay = kind(model, optimizer, **options)
    take_steps(model, optimizer, steps)
    weights = [p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]
    return {
        "multipliers": decay.multipliers,
        "records": [asdict(record) for record in decay.records],
        "scores": decay.scores,
        "sum": sum(float(weight.double().sum()) for weight in weights),
        "norms": [float(weight.double().norm()) for weight in weights],
    }


def alone(rank, ranks):
    return trained(block_model(depth=3), process_group=dist.new_subgroups(1)[0])


def data_parallel(rank, ranks):
    return trained(nn.parallel.DistributedDataParallel(block_model(depth=3)))


def fully_sharded(rank, ranks):
    model = block_model(depth=3)
    for block in model.blocks:
        fully_shard(block)
    return trained(fully_shard(model))


def hybrid_sharded(rank, ranks):
    """Two copies of the model, each in shards; and shards of which the last have fewer rows, or none."""
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("copy", "shard"))
    (matrix,) = find_matrices(nn.Sequential(nn.Linear(8, 8)), min_eigenvalues=2)
    for rows, each in itertools.product((1, 3, 5), (mesh, init_device_mesh("cpu", (ranks,)))):
        whole = torch.arange(rows * 8.0).view(rows, 8)
        placements = [Replicate()] * (each.ndim - 1) + [Shard(0)]
        sharded = replace(matrix, weight=distribute_tensor(whole, each, placements))
        assert all(torch.equal(own.weight, whole) for own in assign_to_ranks([sharded], dist.group.WORLD))
    return trained(fully_shard(block_model(depth=3), mesh=mesh))


STEPPING = {
    "awd": {"kind": alphadecay.AWD, "scale": 50.0},
    "per_entry": {"kind": alphadecay.AdaDecayPerEntry, "cautious": True},
}


def each_step_alone(rank, ranks):
    return {name: trained(block_model(depth=3), steps=5, **options) for name, options in STEPPING.items()}


def each_step_shards(rank, ranks):
    return {name: trained(fully_shard(block_model(depth=3)), steps=5, **options) for name, options in STEPPING.items()}


def each_step_copies(rank, ranks):
    models = {name: nn.parallel.DistributedDataParallel(block_model(depth=3)) for name in STEPPING}
    return {name: trained(models[name], steps=5, **options) for name, options in STEPPING.items()}


def lagging_alone(rank, ranks):
    return trained(block_model(depth=3), steps=5, lag=1, process_group=dist.new_subgroups(1)[0])


def lagging(rank, ranks):
    return trained(nn.parallel.DistributedDataParallel(block_model(depth=3)), steps=5, lag=1)


def lagging_shards(rank, ranks):
    return trained(fully_shard(block_model(depth=3)), steps=5, lag=1)


def fully_sharded_by_gradient(rank, ranks):
    model = block_model(depth=3)
    return trained(fully_shard(model), metric="grad_norm")


def by_gradient_alone(rank, ranks):
    return trained(block_model(depth=3), metric="grad_norm", process_group=dist.new_subgroups(1)[0])


def audited(model):
    """The figures of the second step's audit."""
    optimizer = torch.optim.Adam(alphadecay.param_groups(model, 0.1), lr=1e-2)
    audit = alphadecay.DecayAudit(alphadecay.UniformDecay(model, optimizer), 2)
    take_steps(model, optimizer)
    return [record.figures | {"weight_norm": record.weight_norm} for record in audit.records]


def audit_alone(rank, ranks):
    return audited(block_model(depth=3))


def data_parallel_audit(rank, ranks):
    return audited(nn.parallel.DistributedDataParallel(block_model(depth=3)))


def fully_sharded_audit(rank, ranks):
    return audited(fully_shard(block_model(depth=3)))


def compiled(rank, ranks):
    model = block_model(depth=3)
    decay = alphadecay.AlphaDecay(torch.compile(model), torch.optim.AdamW(model.parameters()))
    decay.refresh()
    return {"multipliers": decay.multipliers}


def pipeline(rank, ranks):
    """Each rank holds other blocks."""
    model = block_model(depth=2 * ranks)
    stage = nn.ModuleDict({"blocks": nn.ModuleDict({str(i): model.blocks[i] for i in (2 * rank, 2 * rank + 1)})})
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-2)
    decay = alphadecay.AlphaDecay(stage, optimizer)
    decay.refresh()
    return {"multipliers": decay.multipliers, "scores": decay.scores}


def pipeline_whole(rank, ranks):
    model = block_model(depth=2 * ranks)
    decay = alphadecay.AlphaDecay(
        model, torch.optim.AdamW(model.parameters(), lr=1e-2), process_group=dist.new_subgroups(1)[0]
    )
    decay.refresh()
    return {"multipliers": decay.multipliers}


def not_finite_on_one(rank, ranks):
    model = block_model(depth=3)
    if rank == 0:
        with torch.no_grad():
            model.blocks[2].fc1.weight[0, 0] = torch.nan
    try:
        alphadecay.analyze(model, process_group=dist.group.WORLD)
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


def split_qkv(rank, ranks):
    sys.path.insert(0, str(Path(__file__).parents[1] / "alphadecay"))
    from test_qkv_training import check_sharded

    check_sharded(ranks)


def work(rank, ranks):
    """CPU seconds of a refresh of deit_tiny on this rank and alone, and its share of the work by counting."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224")
    matrices = [matrix for matrix in find_matrices(model) if not matrix.reason]
    counted = [0.0]
    measure = alphadecay.analysis.measure

    def counting(matrix, measuring):
        counted[0] += cost(matrix)
        return measure(matrix, measuring)

    alphadecay.analysis.measure = counting
    alphadecay.analyze(model, process_group=dist.group.WORLD)
    share = counted[0] / sum(map(cost, matrices))
    alphadecay.analysis.measure = measure
    seconds = {"together": [], "alone": []}
    for _ in range(5):
        for name, group in (("together", dist.group.WORLD), ("alone", None)):
            dist.barrier()
            began = time.thread_time()
            alphadecay.analyze(model, process_group=group)
            seconds[name].append(time.thread_time() - began)
    return {"share": share, "time": min(seconds["together"]) / min(seconds["alone"])}


def text_shares(rank, ranks):
    """Names of the documents of this rank's first epoch, its validation rows, and what is said of a bad split."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from texts import write_c4, write_shard

    from llama.data import TextOptions, open_text, train_stream, validation_batches
    from runtime.errors import UserError
    from runtime.processes import Ranks

    folder, where = Path(sys.argv[3] + "_c4"), Ranks(rank, ranks, torch.device("cpu"))
    if where.is_main:
        write_c4(folder, shards=2)
    where.wait()
    options = TextOptions(data_path=str(folder), tokenizer="bytes", max_length=64, batch_size=4, shuffle_buffer=5)
    text = open_text(options, where)
    stream = train_stream(options, text, where, seed=0)
    validation = validation_batches(options, text, where)
    found = {"names": [], "most_batches": validation.max_batches, "rows": []}
    while (document := stream.documents.draw()).epoch == 0:
        found["names"].append(document.name)
    for batch in validation:
        found["rows"] += batch["input_ids"].tolist()
    where.wait()
    if where.is_main:
        write_shard(folder, "validation", 0, 1, b"broken\n" * 200)
    where.wait()
    try:
        validation_batches(options, text, where)
    except UserError as error:
        found["error"], found["here_only"] = str(error), error.here_only
    return found


if __name__ == "__main__":
    main()
