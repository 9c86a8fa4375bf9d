"""What decay does to stored weights: against parts written out by hand, and without a trace in the training itself."""

import json
import re
import warnings

import pytest
import timm.optim.kron
import torch
from peak import Peak
from ranks import on_ranks
from recipes import block_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_state import saved
from timm.optim import create_optimizer_v2
from tiny import TINY, run
from tiny import rows as rows_of

import alphadecay
from alphadecay import optimizer_copies
from alphadecay.audit import AuditRecord, audit_rows, losses_in_words
from alphadecay.decay_log import refresh_rows, refreshes
from alphadecay.figures import decay as figures
from runtime.self_test import differences, first_difference, leaves

LR, DECAY = 1e-3, 0.1
ENTRIES = {"proj": 64 * 64, "fc1": 64 * 256, "fc2": 256 * 64}  # of block_model's weights


def setup(optimizer=torch.optim.AdamW, kind=alphadecay.UniformDecay, dtype=torch.float32, every=1, **options):
    model = block_model().to(dtype)
    optimizer = optimizer(alphadecay.param_groups(model, DECAY))
    decay = kind(model, optimizer, **options)
    return model, optimizer, alphadecay.DecayAudit(decay, every, warn=lambda message: None) if every else decay


def backward(model, step):
    dtype = next(model.parameters()).dtype
    model(torch.randn(16, 60, generator=torch.Generator().manual_seed(step)).to(dtype)).square().mean().backward()


def take_steps(model, optimizer, steps, closure=False):
    for step in range(steps):

        def loss(step=step):
            optimizer.zero_grad()
            backward(model, step)

        if closure:
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()


def torchs(name, **options):
    return lambda groups: getattr(torch.optim, name)(groups, **{"lr": LR} | options)


def timms(name, **options):
    return lambda groups: create_optimizer_v2(groups, opt=name, lr=LR, weight_decay=DECAY, **options)


SHRINKING = {  # by learning rate x decay x weight
    "decoupled": torchs("AdamW"),
    "decoupled, foreach": torchs("AdamW", foreach=True),
    "decoupled, fused": torchs("AdamW", fused=True),
    "coupled": torchs("SGD"),
    "coupled, fused": torchs("SGD", fused=True, momentum=0.9),
    "timm's own": timms("lion"),
}


@pytest.mark.parametrize("name", SHRINKING)
def test_the_decay_part_is_learning_rate_times_decay_times_weight(name):
    model, optimizer, audit = setup(SHRINKING[name])
    take_steps(model, optimizer, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.zero_grad()
    backward(model, 2)
    optimizer.step()
    assert [record.name for record in audit.records] == list(audit.decay.multipliers)
    for record in audit.records:
        weight, moved = before[f"{record.name}.weight"], model.get_parameter(f"{record.name}.weight").detach()
        by_hand = -LR * DECAY * weight
        assert record.decay_norm == pytest.approx(float(by_hand.norm()), rel=2e-3)
        assert record.unrounded_norm == pytest.approx(float(by_hand.norm()), rel=1e-5)
        assert record.gradient_norm == pytest.approx(float((moved - weight - by_hand).norm()), rel=2e-2)
        assert record.ratio == pytest.approx(record.decay_norm / record.gradient_norm)
        assert record.weight_norm == pytest.approx(float(weight.norm()), rel=1e-6)
        assert record.time_constant == pytest.approx(1 / (LR * DECAY)) and record.step == 2
        assert record.swallowed < 0.01 and record.kept == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"amsgrad": True}], ids=str)
def test_the_parts_of_a_coupled_step_are_those_of_two_runs_that_part_there(options):
    model, optimizer, audit = setup(torchs("Adam", **options))
    take_steps(model, optimizer, 3)
    plain = block_model()
    twin = torch.optim.Adam([{"params": [p], "weight_decay": DECAY * (p.ndim > 1)} for p in plain.parameters()], **{"lr": LR} | options)  # fmt: skip # noqa: E501
    take_steps(plain, twin, 2)
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    for group in twin.param_groups:
        group["weight_decay"] = 0.0
    twin.zero_grad()
    backward(plain, 2)
    twin.step()
    for record in audit.records:
        name = f"{record.name}.weight"
        without = plain.get_parameter(name).detach()
        assert record.decay_norm == pytest.approx(float((model.get_parameter(name) - without).detach().norm()))
        assert record.gradient_norm == pytest.approx(float((without - before[name]).norm()))
        assert record.kept == pytest.approx(1, abs=1e-3) and record.decay_norm > 2 * LR * DECAY * record.weight_norm


@pytest.mark.parametrize("kind", [alphadecay.UniformDecay, alphadecay.AdaDecayPerEntry])
def test_decay_that_is_applied_behind_the_optimizer_is_audited(kind):
    caution = kind is alphadecay.UniformDecay
    model, optimizer, audit = setup(kind=kind, cautious=caution)
    take_steps(model, optimizer, 3)
    for record in audit.records:
        full = LR * DECAY * record.weight_norm
        assert 0.5 * full < record.decay_norm < (0.95 if caution else 2) * full
        assert record.swallowed < 0.01 and record.kept == pytest.approx(1, abs=1e-2 if caution else 0.3)


def test_each_module_has_its_own_decays_time_constant():
    model, optimizer, audit = setup(kind=alphadecay.AlphaDecay)
    take_steps(model, optimizer, 1)
    expected = {name: 1 / (LR * DECAY * multiplier) for name, multiplier in audit.decay.multipliers.items()}
    assert {r.name: r.time_constant for r in audit.records} == pytest.approx(expected)
    assert len(set(expected.values())) > 1


# The training it looks at

WATCHED = {
    "adamw": (torchs("AdamW"), {}),
    "adam fused": (torchs("Adam", fused=True), {"kind": alphadecay.AlphaDecay}),
    "adamw foreach, bf16": (torchs("AdamW", foreach=True), {"dtype": torch.bfloat16}),
    "momentum": (torchs("SGD", momentum=0.9), {"kind": alphadecay.AdaDecay}),
    "lamb": (timms("lamb"), {}),
    "draws from torch's generators": (timms("kron", memory_save_mode="all_diag"), {}),
    "cautious": (torchs("AdamW"), {"cautious": True, "kind": alphadecay.AlphaDecay, "interval": 2}),
    "per entry": (torchs("AdamW"), {"kind": alphadecay.AdaDecayPerEntry}),
    "awd": (torchs("AdamW"), {"kind": alphadecay.AWD}),
}


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", WATCHED)
def test_training_keeps_its_bits(name, closure, monkeypatch):
    monkeypatch.setattr(timm.optim.kron, "has_dynamo", False)  # compiling takes minutes and changes no result
    optimizer, options = WATCHED[name]
    states = []
    for every in (None, 2):
        model, own, audit = setup(optimizer, every=every, **options)
        torch.manual_seed(7)
        take_steps(model, own, 4, closure)
        states.append([*leaves((saved(model, own), torch.get_rng_state()))])
    assert len(audit.records) == 6 and audit.records[0].step == 3 and audit.records[0].decay_norm >= 0
    assert first_difference([(key, a, b) for (key, a), (_, b) in zip(*states, strict=True)]) == ""


@pytest.mark.parametrize(("optimizer", "one_by_one"), [(torchs("AdamW"), True), (timms("lamb"), False)])
def test_an_audit_holds_two_sets_of_weights_and_copies_of_one_module(optimizer, one_by_one):
    model = block_model(depth=12)
    optimizer = optimizer(alphadecay.param_groups(model, DECAY))
    audit = alphadecay.DecayAudit(alphadecay.UniformDecay(model, optimizer), 2)
    take_steps(model, optimizer, 1)
    backward(model, 1)
    moments = [value for values in optimizer.state.values() for value in values.values()]
    with Peak([p.detach() for p in model.parameters()] + [p.grad for p in model.parameters()] + moments) as peak:
        audit.before_update(1)
    weights, largest = (4 * of(p.numel() for p in model.parameters() if p.ndim > 1) for of in (sum, max))
    assert (peak.most <= 2 * weights + 14 * largest) == one_by_one  # 14: in float64, see optimizer_copies
    assert peak.most <= 4 * weights + 14 * largest


def test_steps_in_between_and_training_without_cost_no_copy(monkeypatch):
    copied = []
    for every in (None, 3):
        model, optimizer, audit = setup(every=every)
        real = optimizer_copies._copied
        monkeypatch.setattr(optimizer_copies, "_copied", lambda *given: copied.append(1) or real(*given))  # noqa: B023
        monkeypatch.setattr(torch.Tensor, "tolist", lambda *_: copied.append("a wait") or [])
        take_steps(model, optimizer, 2)
        monkeypatch.undo()
        assert copied == []
    audited = []
    audit.on_audit = lambda given: audited.append(given.records[0].step)
    take_steps(model, optimizer, 8)
    assert audited == [2, 5, 8] and audit.seconds > 0
    audit.detach()
    take_steps(model, optimizer, 4)
    assert audited == [2, 5, 8]


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_gradscaler_skips_are_not_audited(fused):
    audited = []
    model, optimizer, audit = setup(torchs("AdamW", fused=fused))
    audit.on_audit = lambda given: audited.append((given.records[0].step, given.records[0].decay_norm > 0))
    scaler = torch.amp.GradScaler("cpu")
    for overflow in (True, False, True, False):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 60)).square().mean()
        scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert audited == [(0, True), (1, True)]


def test_a_step_that_leaves_numbers_that_are_not_finite_is_not_audited():
    model, optimizer, audit = setup()
    take_steps(model, optimizer, 1)
    model.blocks[0].fc1.weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert {record.step for record in audit.records} == {0}


def test_weights_without_gradient_or_decay_have_nothing_to_lose():
    model, optimizer, audit = setup()
    backward(model, 0)
    model.blocks[0].fc1.weight.grad = None
    next(g for g in optimizer.param_groups if g["decay_name"] == "blocks.0.fc2")["base_weight_decay"] = 0.0
    optimizer.step()
    by_name = {record.name: record for record in audit.records}
    for name in ("blocks.0.fc1", "blocks.0.fc2"):
        record = by_name[name]
        assert (record.decay_norm, record.time_constant, record.swallowed, record.kept) == (0, None, None, None)
    assert by_name["blocks.0.fc1"].ratio is None and by_name["blocks.0.fc2"].ratio == 0


def test_an_optimizer_whose_step_needs_its_closure_is_refused_in_words():
    class Twice(torch.optim.AdamW):
        def step(self, closure):
            closure()
            super().step()

    model, optimizer, _ = setup(lambda groups: Twice(groups, lr=LR))
    with pytest.raises(ValueError, match="Twice cannot take a step on a copy, so its decay cannot be audited"):
        take_steps(model, optimizer, 1, closure=True)


def test_an_impossible_interval_is_refused():
    with pytest.raises(ValueError, match="every must be a whole number of optimizer steps, at least 1; got 0"):
        alphadecay.DecayAudit(setup(every=None)[2], 0)


@pytest.mark.slow
def test_ranks_find_what_one_process_finds(tmp_path):
    (alone,) = on_ranks("audit_alone", 1, tmp_path)
    for kind in ("data_parallel_audit", "fully_sharded_audit"):
        found = on_ranks(kind, 2, tmp_path)
        assert found[0] == found[1] and len(alone) == 9
        for ours, theirs in zip(found[0], alone, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-2)


# What rounding takes


def heard(steps=2, **options):
    model, optimizer, audit = setup(every=None, **options)
    said = []
    audit = alphadecay.DecayAudit(audit, 1, warn=said.append)
    take_steps(model, optimizer, steps)
    return audit.records, said


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_low_precision_swallow_decay_and_it_is_said_once(dtype):
    records, said = heard(optimizer=torchs("AdamW", eps=1e-6), dtype=dtype, steps=3)
    assert all(r.swallowed > 0.99 and r.decay_norm < 0.01 * r.unrounded_norm and r.kept < 0.01 for r in records)
    assert said == [
        "decay has almost no effect on 6 of 6 modules: 100 % of its changes are lost to rounding in "
        f"{str(dtype).removeprefix('torch.')} weights (optimizer step 2); keep float32 "
        "weights (autocast) or use stochastic rounding"
    ]


def test_a_fused_kernel_rounds_once_and_keeps_decay_on_average():
    # Adam's first two steps move all entries by nearly the learning rate, so they round alike: in the second, a fifth
    # is still lost on every release. From the third on each entry is a draw that moves by a whole unit in its last
    # place or not at all, so what is kept scatters as a sum of as many draws as entries moved, times 1.3 for their
    # unequal sizes; four such deviations are allowed.
    records, said = heard(optimizer=torchs("AdamW", fused=True), dtype=torch.bfloat16, steps=4)
    assert all(r.swallowed > 0.9 for r in records) and said == []
    moved = sum((1 - r.swallowed) * ENTRIES[r.name.split(".")[-1]] for r in records)
    due = sum(r.unrounded_norm**2 for r in records)
    assert sum(r.kept * r.unrounded_norm**2 for r in records) / due == pytest.approx(1, abs=4 * 1.3 / moved**0.5)


@pytest.mark.parametrize("optimizer", [torchs("AdamW"), torchs("Adam", fused=True), torchs("SGD")])
def test_float32_weights_keep_decay(optimizer):
    records, said = heard(optimizer=optimizer)
    assert all(record.swallowed < 0.01 for record in records) and said == []


def test_float32_weights_swallow_decay_below_their_resolution():
    records, said = heard(optimizer=torchs("AdamW", lr=2e-7), steps=3)
    assert all(record.swallowed > 0.99 for record in records)
    assert len(said) == 1 and said[0].startswith("decay has almost no effect on 6 of 6 modules: ")
    assert said[0].endswith(
        "% of its changes are lost to rounding in float32 weights (optimizer step 3); learning rate x decay is at most "
        "2e-08, and float32 rounds away changes of a weight below 6e-08 of it: use a larger decay"
    )


def test_a_rising_learning_rate_is_waited_for_before_float32_is_blamed():
    model, optimizer, decay = setup(torchs("AdamW"), every=None)
    said = []
    alphadecay.DecayAudit(decay, 1, warn=said.append)
    for lr in (1e-7, 2e-7, 4e-7, 1e-3, 1e-3):
        for group in optimizer.param_groups:
            group["lr"] = lr
        take_steps(model, optimizer, 1)
    assert said == []


def test_without_decay_nothing_is_said():
    model, optimizer, decay = setup(every=None, dtype=torch.bfloat16)
    for group in optimizer.param_groups:
        group["base_weight_decay"] = 0.0
    said = []
    alphadecay.DecayAudit(decay, 1, warn=said.append)
    take_steps(model, optimizer, 2)
    assert said == []


def test_a_library_user_is_warned():
    model, optimizer, decay = setup(every=None, dtype=torch.bfloat16)
    alphadecay.DecayAudit(decay, 1)
    with pytest.warns(UserWarning, match="decay has almost no effect on 6 of 6 modules"):
        take_steps(model, optimizer, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_steps(model, optimizer, 1)


def record(swallowed, kept, dtype="bfloat16"):
    return AuditRecord(9, "m", "m", dtype, 1.0, 0.0, 1.0, 0.0, 1e4, swallowed, kept, 1e-4)


def test_only_modules_that_lose_most_entries_and_most_of_the_decay_count():
    lost, dithered, well = record(0.98, 0.01), record(0.98, 1.02), record(0.01, 1.0)
    assert "on 1 of 3 modules: 98 % " in losses_in_words([lost, well, well], 1e-4)
    for found in ([], [well], [dithered] * 3, [record(0.4, 0.1)], [record(None, None)]):
        assert losses_in_words(found, 1e-4) == ""


# The ledger


@pytest.mark.parametrize("kind", [alphadecay.AlphaDecay, alphadecay.AWD])
def test_rows_of_audits_say_what_a_step_did_and_assign_nothing(kind, tmp_path):
    options = {} if kind is alphadecay.AWD else {"interval": 2}
    model, optimizer, audit = setup(kind=kind, every=2, **options)
    rows, held = [], []
    audit.decay.on_refresh = lambda decay: rows.extend(refresh_rows(decay))
    audit.on_audit = lambda given: (rows.extend(audit_rows(given)), held.append(given.decay.multipliers))
    take_steps(model, optimizer, 5)
    audited = [row for row in rows if row["audit"]]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert [row["step"] for row in audited] == [1] * 6 + [3] * 6
    assert [row["module"] for row in audited[:6]] == list(audit.decay.multipliers)
    for row, each in zip(audited[6:], audit.records, strict=True):
        assert row["audit"] == each.figures and row["weight_norm"] == each.weight_norm
        assert row["multiplier"] == held[1][row["module"]]
        assert 1 / row["audit"]["time_constant"] == pytest.approx(LR * row["weight_decay"])
    replayed(rows, model, tmp_path)


@pytest.mark.slow
def test_a_run_notes_audits_at_log_intervals_and_trains_as_without(tmp_path, monkeypatch, capsys):
    plain, audited = tmp_path / "plain", tmp_path / "audited"
    words = [*TINY, "--log_interval", "2", "--weight_decay", "1e-7"]
    assert run(*words, "--output_dir", plain, monkeypatch=monkeypatch) == 0
    assert "warning" not in capsys.readouterr().out
    assert run(*words, "--output_dir", audited, "--decay_audit", monkeypatch=monkeypatch) == 0
    assert re.findall("warning: decay has almost no effect on 8 of 8 modules: .* in float32", capsys.readouterr().out)
    assert set(differences(plain, audited)) == {"decay.jsonl", "counts and best metrics"}
    ledger = rows_of(audited / "decay.jsonl")
    assert refreshes(ledger) == rows_of(plain / "decay.jsonl")
    assert [row["step"] for row in ledger if row["audit"]] == [step for step in (1, 3, 5, 7, 9) for _ in range(8)]
    assert ledger[-1]["audit"] and all(row["audit"]["time_constant"] > 1e9 for row in ledger[-8:])
    curves = EventAccumulator(str(audited / "tensorboard")).Reload()
    for name in ("decay_ratio/mlp.fc1", "decay_swallowed/attn.qkv", "decay_kept/mlp.fc2"):
        assert [point.step for point in curves.Scalars(name)] == [1, 3, 5, 7, 9]


def test_figures_show_what_was_assigned():
    assigned = {"step": 4, "module": "m", "role": "fc1", "score": 2.0, "weight_decay": 0.1, "audit": None}
    rows = [assigned, assigned | {"step": 5, "score": None, "audit": {"ratio": 0.1}}]
    assert figures.decay_by_depth(rows).get_suptitle() == "step 4"
    assert list(figures.decay_over_time(rows).axes[1].lines[0].get_xdata()) == [4]


def replayed(rows, model, folder):
    """With and without the rows of audits, a ledger is replayed to the same multipliers, step by step and as means."""
    assert len(refreshes(rows)) + 12 == len(rows)
    for mean in (False, True):
        found = []
        for name, each in (("all", rows), ("refreshes", refreshes(rows))):
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in each))
            again, optimizer, decay = setup(kind=alphadecay.Replay, every=None, ledger=folder / name, mean=mean)
            take_steps(again, optimizer, 5)
            found.append(decay.multipliers)
        assert found[0] == found[1]
        same = [torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
        assert all(same) != mean
