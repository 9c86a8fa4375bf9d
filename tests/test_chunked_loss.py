"""--chunked_loss: the same loss and gradients, never all logits at once."""

import copy

import pytest
import torch

from llama import chunked_loss
from llama.chunked_loss import give_chunked_loss
from llama.engine import LanguageRules, loss_sum
from llama.models import LanguageModelOptions, build_model
from runtime.errors import UserError

CONFIG = "llama/configs/llama_stdlib.json"


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_the_chunked_loss_and_its_gradients_are_those_of_all_logits(monkeypatch, amp):
    monkeypatch.setattr(chunked_loss, "CHUNK", 260 * 7)  # 7 rows at once
    torch.manual_seed(0)
    whole = build_model(LanguageModelOptions(model_config=CONFIG))
    chunked = copy.deepcopy(whole)
    give_chunked_loss(chunked)
    ids = torch.randint(0, 258, (2, 24))
    labels = ids.clone()
    labels[0, 10:] = -100
    for model, rules in ((whole, LanguageRules(amp)), (chunked, LanguageRules(amp, chunked=True))):
        loss_sum(model, ids, labels, rules).backward()
    with torch.no_grad():
        losses = [loss_sum(m, ids, labels, LanguageRules(amp, m is chunked)).item() for m in (whole, chunked)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for a, b in zip(whole.parameters(), chunked.parameters(), strict=True):
        scale = a.grad.abs().max()
        torch.testing.assert_close(b.grad / scale, a.grad / scale, rtol=0, atol=1e-5 if amp is None else 2e-2)


def test_models_that_change_their_logits_are_refused():
    model = build_model(LanguageModelOptions(model_config=CONFIG))
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="--chunked_loss true: not for LlamaForCausalLM: final_logit_softcapping"):
        give_chunked_loss(model)
