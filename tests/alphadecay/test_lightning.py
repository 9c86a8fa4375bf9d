"""AlphaDecay in Lightning where a step is not the plain one: by hand in bf16, and layers that are unfrozen later."""

import warnings

import pytest
import torch
from by_hand import BASE, block_names, decay_on, multipliers, own_groups, write_decays
from recipes import block_model
from torch.utils.data import DataLoader

import alphadecay

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside the library, met while importing it
    import lightning
    from lightning.pytorch.callbacks import BaseFinetuning

# Advice about loader processes, and a deprecation inside Lightning.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.isinstance\\(treespec, LeafSpec:FutureWarning"),
]
BATCHES, LR = 6, 1e-2
FIRST = block_names(1)
BOTH = block_names(2)
SECOND = BOTH[len(FIRST) :]


def samples():
    return torch.randn(BATCHES * 4, 60, generator=torch.Generator().manual_seed(0))


class Module(lightning.LightningModule):
    def __init__(self, interval, scheduler=None, **options):
        super().__init__()
        self.net, self.options, self.scheduler = block_model(), {"interval": interval, **options}, scheduler
        self.seen = {}

    def note(self, decay):
        self.seen[decay.step] = decay.multipliers

    def training_step(self, batch, _):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW([p for p in self.net.parameters() if p.requires_grad], lr=LR, weight_decay=BASE)
        self.decay = alphadecay.AlphaDecay(
            self.net,
            optimizer,
            on_refresh=lambda decay: self.seen.update({decay.step: decay.multipliers}),
            **self.options,
        )
        return {"optimizer": optimizer} | ({"lr_scheduler": self.scheduler(optimizer)} if self.scheduler else {})


class ByHand(Module):
    """Manual optimisation: the step is taken inside the forward's autocast."""

    def __init__(self, interval, **options):
        super().__init__(interval, **options)
        self.automatic_optimization = False
        self.in_autocast = set()

    def training_step(self, batch, _):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.net(batch).square().mean())
        self.in_autocast.add(torch.is_autocast_enabled("cpu"))
        optimizer.step()


def fit(module, folder, epochs=1, save=None, resume=None, **options):
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=folder, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples(), batch_size=4), ckpt_path=resume)
    if save:
        trainer.save_checkpoint(save)
    return module


@pytest.mark.parametrize("options", [{}, {"lag": 1}], ids=["at once", "with a lag"])
def test_a_step_by_hand_in_bf16_decays_as_a_plain_loop_that_measures_outside_autocast(options, tmp_path):
    module = fit(ByHand(2, **options), tmp_path, precision="bf16-mixed")
    assert module.in_autocast == {True}  # else the loop would be none that could go wrong
    model, seen = block_model(), {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=BASE)
    alphadecay.AlphaDecay(
        model, optimizer, 2, on_refresh=lambda decay: seen.update({decay.step: decay.multipliers}), **options
    )
    for batch in samples().split(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
    assert module.seen == seen and len(seen) == 3
    assert all(torch.equal(a, b) for a, b in zip(module.net.parameters(), model.parameters(), strict=True))


def test_a_step_by_hand_in_bf16_decays_as_by_hand(tmp_path):
    module = fit(ByHand(2), tmp_path, precision="bf16-mixed")
    model = block_model()
    optimizer = torch.optim.AdamW(own_groups(model, BOTH), lr=LR, weight_decay=BASE)
    for step, batch in enumerate(samples().split(4)):
        if step % 2 == 0:
            expected = multipliers(model, BOTH)
            assert module.seen[step] == pytest.approx(expected, rel=1e-3)
            write_decays(optimizer, expected)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()


class Unfreeze(BaseFinetuning):
    """The second block is frozen, and trained from the second epoch on."""

    def freeze_before_training(self, module):
        self.freeze(module.net.blocks[1])

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.net.blocks[1], optimizer, lr=LR)


class Before(lightning.Callback):
    """What by hand would be assigned at each step, from the weights before it."""

    def __init__(self):
        self.expected = {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        names = FIRST if len(self.expected) < BATCHES else BOTH
        self.expected[len(self.expected)] = multipliers(module.net, names)


def test_layers_that_lightning_unfreezes_get_groups_of_their_own_and_a_refresh_at_the_next_step(tmp_path):
    before = Before()
    module = fit(Module(4), tmp_path, epochs=3, callbacks=[Unfreeze(), before])
    assert module.decay.step == 3 * BATCHES and {0, 4, BATCHES} <= set(module.seen)
    assert set(module.seen[0]) == set(FIRST) and set(module.seen[BATCHES]) == set(BOTH)
    for step, found in module.seen.items():
        for name, multiplier in before.expected[step].items():
            assert found[name] == pytest.approx(multiplier, rel=1e-3), (step, name)
    groups = module.decay.optimizer.param_groups
    for name in BOTH:
        weight = module.net.get_submodule(name).weight
        (group,) = [g for g in groups if any(p is weight for p in g["params"])]
        assert len(group["params"]) == 1
        assert group["weight_decay"] == pytest.approx(BASE * module.decay.multipliers[name])


def test_under_a_scheduler_the_unfrozen_layers_share_the_mean_multiplier_of_their_matrices(tmp_path):
    before = Before()
    module = Module(4, scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))
    fit(module, tmp_path, epochs=3, callbacks=[Unfreeze(), before])
    assert module.decay.step == 3 * BATCHES and {0, 4, BATCHES} <= set(module.seen)
    last = before.expected[max(module.seen)]
    sizes = {name: module.net.get_submodule(name).weight.numel() for name in SECOND}
    mean = sum(sizes[name] * last[name] for name in SECOND) / sum(sizes.values())
    added = module.decay.optimizer.param_groups[-1]
    assert len(added["params"]) == len([*module.net.blocks[1].parameters()])
    assert added["weight_decay"] == pytest.approx(BASE * mean, rel=1e-3)
    for name in FIRST:
        found = decay_on(module.decay.optimizer, module.net.get_submodule(name).weight)
        assert found == pytest.approx(BASE * last[name], rel=1e-3)
    notes = {record.name: record.note for record in module.decay.records}
    assert all(notes[name] for name in SECOND) and not any(notes[name] for name in FIRST)


def test_a_checkpoint_from_before_they_are_unfrozen_resumes_to_the_same_bits(tmp_path):
    # One from afterwards does not even without AlphaDecay: Lightning freezes them again.
    whole = fit(Module(4), tmp_path, epochs=3, callbacks=[Unfreeze()])
    fit(Module(4), tmp_path, callbacks=[Unfreeze()], save=tmp_path / "saved.ckpt")
    resumed = fit(Module(4), tmp_path, epochs=3, callbacks=[Unfreeze()], resume=tmp_path / "saved.ckpt")
    assert resumed.decay.step == whole.decay.step == 3 * BATCHES
    assert resumed.decay.multipliers == whole.decay.multipliers and set(whole.decay.multipliers) == set(BOTH)
    for ours, theirs in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_from_afterwards_trains_on(tmp_path):
    fit(Module(4), tmp_path, epochs=2, callbacks=[Unfreeze()], save=tmp_path / "saved.ckpt")
    resumed = fit(Module(4), tmp_path, epochs=3, callbacks=[Unfreeze()], resume=tmp_path / "saved.ckpt")
    assert resumed.decay.step == 3 * BATCHES
