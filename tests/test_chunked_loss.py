"""--chunked_loss: the same loss and gradients, never all logits at once."""

import copy

import pytest
import torch

from llama import engine
from llama.engine import LanguageRules, give_chunked_loss, loss_sum
from llama.models import LanguageModelOptions, build_model

CONFIG = "llama/configs/llama_stdlib.json"


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_the_chunked_loss_and_its_gradients_are_those_of_all_logits(monkeypatch, amp):
    monkeypatch.setattr(engine, "CHUNK", 260 * 7)  # 7 rows at once
    torch.manual_seed(0)
    whole = build_model(LanguageModelOptions(model_config=CONFIG))
    chunked = copy.deepcopy(whole)
    give_chunked_loss(chunked)
    seen = []
    chunked.get_output_embeddings().register_forward_hook(lambda module, words, out: seen.append(out.shape[0]))
    ids = torch.randint(0, 258, (2, 24))
    labels = ids.clone()
    labels[0, 10:] = -100
    for model, rules in ((whole, LanguageRules(amp)), (chunked, LanguageRules(amp, chunked=True))):
        loss_sum(model, ids, labels, rules).backward()
    losses = [loss_sum(m, ids, labels, LanguageRules(amp, m is chunked)).item() for m in (whole, chunked)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert max(seen) == 7
    for a, b in zip(whole.parameters(), chunked.parameters(), strict=True):
        scale = a.grad.abs().max()
        torch.testing.assert_close(b.grad / scale, a.grad / scale, rtol=0, atol=1e-5 if amp is None else 2e-2)
