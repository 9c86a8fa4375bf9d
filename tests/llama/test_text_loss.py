"""Loss and perplexity of language models: every token counts the same, whatever the batches, ranks and precision."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from forked import forked
from texts import ALONE, END
from tiny import rows
from tiny_text import TINY_TEXT, printed, run_text, task_of
from torch import nn

from llama.engine import LossRules, backward, evaluate, loss_sum, weighted_batches
from llama.run import even_batches
from llama.sequences import IGNORED, batch_of
from runtime.processes import Ranks

RULES = LossRules()


@pytest.fixture(scope="module")
def made():
    task, options = task_of(*TINY_TEXT, "--no-pack", alone=ALONE)
    with torch.no_grad():
        for p in task.learner.plain.parameters():  # of a model that has learned something, so that losses differ
            p.mul_(3)
    yield SimpleNamespace(task=task, options=options, model=task.learner.plain)
    task.stream.close()


def slow_losses(model, batches) -> list[list[float]]:
    """The loss of every token that is predicted, batch by batch, one token at a time."""
    found = []
    for batch in batches:
        losses = []
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            with torch.no_grad():
                logits = model.eval()(input_ids=ids[None]).logits[0].double()
            for place in range(len(ids) - 1):
                if labels[place + 1] != IGNORED:
                    losses.append(float(logits[place].logsumexp(0) - logits[place, labels[place + 1]]))
        found.append(losses)
    return found


def labels_of(batches):
    return [row for batch in batches for row in batch["labels"]]


def test_perplexity_is_of_all_tokens_and_the_published_one_of_batch_means_and_one_batch_more(made):
    found = evaluate(made.model, made.task.validation, ALONE, RULES)
    losses = slow_losses(made.model, made.task.validation)
    tokens = [loss for batch in losses for loss in batch]
    assert found["eval_tokens"] == len(tokens) and len({len(batch) for batch in losses}) > 1
    assert found["loss"] == pytest.approx(sum(tokens) / len(tokens), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(sum(tokens) / len(tokens)), rel=1e-5)
    text = [bytes(token for token in row[1:].tolist() if 0 <= token < END) for row in labels_of(made.task.validation)]
    assert found["eval_bytes"] == sum(map(len, text)) < found["eval_tokens"]
    assert found["bits_per_byte"] == pytest.approx(sum(tokens) / math.log(2) / sum(map(len, text)), rel=1e-6)
    means = [sum(batch) / len(batch) for batch in losses]
    published = math.exp(sum(means) / (len(means) + 1))  # the published counter of batches starts at 1
    assert found["perplexity_published"] == pytest.approx(published, rel=1e-5)
    assert published < 0.9 * found["perplexity"]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_in_its_own_mode_and_leaves_the_mode_as_it_was(made, training):
    seen = []
    hook = made.model.train(training).register_forward_pre_hook(lambda module, _: seen.append(module.training))
    evaluate(made.model, list(made.task.validation)[:2], ALONE, RULES)
    hook.remove()
    assert seen == [False, False] and made.model.training == training


class Sum(Ranks):
    """A rank that takes what the others have to add from a list."""

    others: list

    def sum(self, tensor):
        return tensor + self.others.pop(0)


def on_two_ranks(made, batch_size):
    """What two ranks make of the validation text together; each evaluates its share alone first."""
    sequences, tokenizer = made.task.validation.own, made.task.tokenizer
    shares = [
        type(made.task.validation)(_rows(sequences), tokenizer, batch_size, rank=rank, ranks=2) for rank in (0, 1)
    ]
    recorded = []
    for share in shares:
        rank = Sum(0, 2, torch.device("cpu"))
        kept = []
        rank.others = [0, 0]
        rank.sum = lambda tensor, kept=kept: kept.append(tensor) or tensor
        evaluate(made.model, even_batches(share, sharded=True), rank, RULES)
        recorded.append(kept)
    first = Sum(0, 2, torch.device("cpu"))
    first.others = list(recorded[1])
    return evaluate(made.model, even_batches(shares[0], sharded=True), first, RULES)


def _rows(sequences):
    return sequences[:-1] if len(sequences) % 2 == 0 else sequences  # an odd number: the ranks have different ones


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_loss_does_not_depend_on_batches_or_ranks(made, batch_size):
    whole = type(made.task.validation)(_rows(made.task.validation.own), made.task.tokenizer, 5, rank=0, ranks=1)
    expected = evaluate(made.model, whole, ALONE, RULES)
    alone = type(made.task.validation)(
        _rows(made.task.validation.own), made.task.tokenizer, batch_size, rank=0, ranks=1
    )
    for found in (evaluate(made.model, alone, ALONE, RULES), on_two_ranks(made, batch_size)):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert found["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)
        assert all(found[name] == expected[name] for name in ("eval_tokens", "eval_bytes"))


def test_ends_of_documents_alone_have_no_bits_per_byte(made):
    batch = batch_of([torch.tensor([7, END]).numpy()] * 3, 4, 257) | {"bytes": torch.zeros(3, dtype=torch.int64)}
    found = evaluate(made.model, [batch], ALONE, RULES)
    assert found["bits_per_byte"] is None and found["eval_tokens"] == 3 and found["loss"] > 0


def test_empty_batches_of_sharded_ranks_change_no_figure(made):
    batches = list(made.task.validation)
    empty = {"input_ids": batches[0]["input_ids"], "labels": torch.full_like(batches[0]["labels"], IGNORED)}
    empty["bytes"] = torch.zeros_like(batches[0]["bytes"])
    assert evaluate(made.model, [*batches, empty], ALONE, RULES) == evaluate(made.model, batches, ALONE, RULES)


def uneven_steps():
    """Two steps of two micro-batches, with 3 to 31 tokens a sequence."""
    texts = [[3, 31], [17, 5], [30, 4], [8, 9]]
    batches = [batch_of([torch.arange(n).numpy() % 250 for n in each], 32, 257) for each in texts]
    return [batches[:2], batches[2:]]


def gradients(made, rules=RULES):
    made.task.learner.optimizer.zero_grad()
    add = backward(rules, torch.device("cpu"))
    losses = [add(made.task.learner, batch, 0, 0) for batch in weighted_batches(uneven_steps()[:1], ALONE)]
    found = [p.grad.clone() for p in made.model.parameters()]
    made.task.learner.optimizer.zero_grad()
    return torch.stack(losses).sum(), found


def test_every_token_of_a_step_counts_the_same_whatever_micro_batch_it_is_in(made):
    ids, labels = (torch.cat([batch[name] for batch in uneven_steps()[0]]) for name in ("input_ids", "labels"))
    logits = made.model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    mean = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)
    expected = torch.autograd.grad(mean, list(made.model.parameters()))
    loss, found = gradients(made)
    assert float(loss) == pytest.approx(mean.item(), rel=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_ranks_with_fewer_tokens_weigh_less():
    tokens = iter((20.0, 0.0))  # the other rank has 20 tokens in the first step and none in the second

    class Two(Ranks):
        def sum(self, tensor):
            return tensor + next(tokens)

    steps = uneven_steps()
    own = [sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in each) for each in steps]
    shares = [float(share) for _, _, share in weighted_batches(steps, Two(0, 2, torch.device("cpu")))]
    # Gradients are means over 2 ranks: twice one token's share of all.
    assert shares == pytest.approx([2 / (own[0] + 20)] * 2 + [2 / own[1]] * 2)


def test_text_without_a_token_to_predict_is_no_division_by_zero(made):
    empty = {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "labels": torch.full((1, 4), IGNORED)}
    ((_, _, share),) = weighted_batches([[empty]], ALONE)
    loss = loss_sum(made.model, empty["input_ids"], empty["labels"], RULES) * share
    assert float(loss.detach()) == 0.0


VARIANTS = {
    "chunked": (["--chunked_loss"], LossRules(chunked=True)),
    "recomputed": (["--activation_checkpointing"], RULES),
    "both": (["--chunked_loss", "--activation_checkpointing"], LossRules(chunked=True)),
}


@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["float32", "bf16 autocast"])
@pytest.mark.parametrize(("words", "rules"), VARIANTS.values(), ids=VARIANTS)
def test_what_saves_memory_changes_neither_loss_nor_gradients(made, monkeypatch, words, rules, amp):
    monkeypatch.setattr("llama.chunked.TOKENS_AT_ONCE", 17)  # several chunks, the last one shorter
    task, _ = task_of(*TINY_TEXT, "--no-pack", *words, alone=ALONE)
    task.learner.plain.load_state_dict(made.model.state_dict())
    other = SimpleNamespace(task=task, model=task.learner.plain)
    (loss, expected), (ours, found) = (
        gradients(made, replace(RULES, amp=amp)),
        gradients(other, replace(rules, amp=amp)),
    )
    assert float(ours) == pytest.approx(float(loss), rel=1e-5)
    for each, theirs in zip(found, expected, strict=True):
        scale = 1e-5 if amp is None else 2e-2  # chunks' gradients are added up in the precision of autocast
        torch.testing.assert_close(each, theirs, rtol=0, atol=scale * float(theirs.abs().max()))
    validation = evaluate(other.model, task.validation, ALONE, replace(rules, amp=amp))
    assert validation["loss"] == pytest.approx(
        evaluate(made.model, task.validation, ALONE, replace(RULES, amp=amp))["loss"], rel=1e-5
    )
    task.stream.close()


def test_a_chunked_loss_never_holds_all_logits(made, monkeypatch):
    monkeypatch.setattr("llama.chunked.TOKENS_AT_ONCE", 16)
    task, _ = task_of(*TINY_TEXT, "--chunked_loss", alone=ALONE)
    seen = []
    task.learner.plain.lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.numel() // 260))
    batch = uneven_steps()[0][0]
    loss_sum(task.learner.model, batch["input_ids"], batch["labels"], LossRules(chunked=True)).backward()
    assert seen == [16] * 8  # 64 tokens, forward and again for the backward pass
    task.stream.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loss") / "run"
    assert run_text(*TINY_TEXT, "--no-pack", "--batch_size", "5", "--output_dir", folder) == 0
    return folder


def test_evaluating_a_finished_run_gives_its_last_figures_and_writes_nothing_else(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert run_text("--eval", "--resume", finished) == 0
    last = rows(finished / "log.jsonl")[-1]
    names = ("perplexity", "perplexity_published", "loss", "bits_per_byte", "eval_tokens")
    assert printed(capsys.readouterr().out) == pytest.approx([last[name] for name in names], rel=5e-4)
    written = finished / "evaluation.json"
    content = json.loads(written.read_text())
    assert content["figures"]["loss"] == pytest.approx(last["loss"], rel=1e-6) and content["step"] == last["step"]
    manifest = json.loads((finished / f"checkpoints/step_{last['step']:08d}" / "manifest.json").read_text())
    assert set(content["weights_sha256"].values()) <= set(manifest["files"].values())
    written.unlink()
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


@pytest.mark.slow
def test_evaluation_is_the_same_for_any_number_of_processes(finished, capsys):
    words = ["--eval", "--resume", finished]
    assert run_text(*words) == 0
    alone = printed(capsys.readouterr().out)
    for ranks in (2, 3):  # of sequences that do not divide evenly
        together = printed(forked(ranks, *words, program="main_llama.py", timeout=120).stdout)
        assert together[0] == alone[0] and together[2:] == alone[2:]
