"""AlphaDecay in loops of others: each takes the same steps, with the same decays, as a plain loop."""

import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from recipes import block_model
from torch.utils.data import DataLoader

import alphadecay

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside the libraries, met while importing them
    import lightning
    import transformers
    import transformers.trainer

BATCHES = 8
METRICS = ["alpha", "grad_norm"]


def samples():
    return torch.randn(BATCHES * 4, 60, generator=torch.Generator().manual_seed(0))


def attached(model, metric="alpha", optimizer=torch.optim.AdamW, wrap=lambda optimizer: optimizer, **options):
    """An optimizer under AlphaDecay, and the steps of its refreshes with the multipliers they gave."""
    seen = []
    optimizer = optimizer(model.parameters(), lr=1e-2, weight_decay=0.1, **options)
    alphadecay.AlphaDecay(
        model, wrap(optimizer), 2, metric=metric, on_refresh=lambda decay: seen.append((decay.step, decay.multipliers))
    )
    return optimizer, seen


def plain_loop(metric="alpha", accumulate=1, batches=BATCHES, **options):
    model = block_model()
    optimizer, seen = attached(model, metric, **options)
    for number, batch in enumerate(samples().split(4)[:batches], start=1):
        (model(batch).square().mean() / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model, seen


def assert_same(trained, seen, expected, tolerance=1e-6):
    """Trained by another loop: the same refreshes with the same multipliers, and the same weights."""
    model, refreshes = expected
    assert [step for step, _ in seen] == [step for step, _ in refreshes]
    for (_, ours), (_, theirs) in zip(seen, refreshes, strict=True):
        assert (
            list(ours.values()) == pytest.approx(list(theirs.values()), rel=tolerance) and len(set(ours.values())) > 1
        )
    for ours, theirs in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_plain_loop_refreshes_by_optimizer_steps(accumulate, metric):
    _, seen = plain_loop(metric, accumulate)
    assert [step for step, _ in seen] == list(range(0, BATCHES // accumulate, 2))


class Module(lightning.LightningModule):
    """Lightning's automatic optimization, which steps with a closure."""

    def __init__(self, metric):
        super().__init__()
        self.net, self.metric = block_model(), metric

    def training_step(self, batch, _):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        optimizer, self.seen = attached(self, self.metric)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)}


# Advice about loader processes, and a deprecation inside Lightning.
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.isinstance\\(treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning(accumulate, metric, tmp_path):
    module = Module(metric)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=accumulate, default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples(), batch_size=4))
    assert_same(module.net, module.seen, plain_loop(metric, accumulate))


@pytest.mark.parametrize("given", ["bare", "prepared"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(accumulate, metric, given):
    # Accelerate would also step at the end of the loader, which here is the end of an accumulation anyway.
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(accumulate))
    model = accelerator.prepare(block_model())
    wrap = accelerator.prepare if given == "prepared" else lambda optimizer: optimizer
    optimizer, seen = attached(model, metric, wrap=wrap)
    optimizer, loader = accelerator.prepare(optimizer, DataLoader(samples(), batch_size=4))
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    assert_same(model, seen, plain_loop(metric, accumulate))


@pytest.fixture
def without_datasets(monkeypatch):
    """The Trainer asks for Hugging Face's datasets; found from this project's root, it is a file of the trainer."""
    monkeypatch.setattr(transformers.trainer, "is_datasets_available", lambda: False)


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=32,
        )
    )  # fmt: skip


def tokens():
    ids = torch.randint(64, (BATCHES * 2, 16), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in ids]


def hugging_face(folder, max_steps, resume=None):
    model = llama()
    optimizer, seen = attached(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=max_steps,
        lr_scheduler_type="constant", max_grad_norm=0, use_cpu=True, report_to=[], save_steps=3, disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=tokens(), optimizers=(optimizer, None))
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(tokens())
    trainer.train(resume_from_checkpoint=resume)
    return model, seen


def test_transformers_trainer_and_its_resumption(tmp_path, without_datasets):
    model, seen = hugging_face(tmp_path / "whole", 4)
    plain = llama()
    optimizer, expected = attached(plain)
    for start in range(0, BATCHES * 2, 4):
        batch = {key: torch.stack([row[key] for row in tokens()[start : start + 4]]) for key in ("input_ids", "labels")}
        plain(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if int(transformers.__version__.split(".")[0]) >= 5:  # an older Trainer weighs the losses of two halves otherwise
        assert_same(model, seen, (plain, expected), tolerance=1e-4)
    assert [step for step, _ in seen] == [0, 2] and len(seen[0][1]) == 14

    resumed, later = hugging_face(tmp_path / "parts", 4, resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert later == []  # the third of four steps was refreshed before it was saved
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


KERNELS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("metric", METRICS)
def test_steps_that_gradscaler_skips_count_and_write_nothing(kernel, metric):
    model = block_model()
    optimizer, seen = attached(model, metric, **KERNELS[kernel])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number, batch in enumerate(samples().split(4)):
        before = [(group["weight_decay"], group["decay_step"]) for group in optimizer.param_groups]
        scaler.scale(model(batch).square().mean()).backward()
        bad = number in (0, 3)
        if bad:
            model.blocks[0].fc1.weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update(4.0)
        optimizer.zero_grad()
        after = [(group["weight_decay"], group["decay_step"]) for group in optimizer.param_groups]
        assert (after == before) == bad
    good = [batch for number, batch in enumerate(samples().split(4)) if number not in (0, 3)]
    assert [step for step, _ in seen] == [0, 2, 4] and optimizer.param_groups[0]["decay_step"] == len(good)
    twin = block_model()
    twin_optimizer, twin_seen = attached(twin, metric, **KERNELS[kernel])
    for batch in good:
        twin(batch).square().mean().backward()
        twin_optimizer.step()
        twin_optimizer.zero_grad()
    assert_same(model, seen, (twin, twin_seen))


def test_lightnings_wrapper_is_seen_through():
    optimizer, _ = attached(block_model(), wrap=lightning.pytorch.core.optimizer.LightningOptimizer)
    assert len(optimizer.param_groups) == 7


def test_a_fused_kernel_that_unscales_by_itself_hides_no_gradient():
    norms = []
    for scale in (1.0, 1024.0):
        model = block_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
        decay = alphadecay.AlphaDecay(model, optimizer, metric="grad_norm")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(model(samples()).square().mean()).backward()
        scaler.step(optimizer)
        norms.append([record.grad_norm for record in decay.records if record.grad_norm])
    assert len(norms[0]) == 6 and norms[1] == pytest.approx(norms[0], rel=1e-6)
