"""The GPT-2 of "Why Do We Need Weight Decay in Modern Deep Learning?": sizes, initial weights, and no biases."""

import math

import pytest
import torch
import transformers
from tiny import ROOT
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear, scaled_dot_product_attention

from llama.models import LanguageModelOptions, build_model, read_config
from runtime.by_name import freeze

PARAMETERS = {  # without biases, and with positions, as the published program counts them
    "gpt2_small": 124_373_760,
    "gpt2_small_block256": 123_783_936,
    "gpt2_micro": 11_478_720,
    "gpt2_shakespeare": 10_745_088,
}
BLOCK = {"gpt2_small": 1024}  # the others': 256


def config_path(name):
    return str(ROOT / "llama" / "configs" / f"{name}.json")


def weights_of(model):
    return {name: p for name, p in model.named_parameters() if not name.endswith(".bias")}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_sizes_are_the_published_ones(name):
    config = read_config(config_path(name))
    with torch.device("meta"):
        weights = weights_of(transformers.AutoModelForCausalLM.from_config(config))
    assert sum(p.numel() for p in weights.values()) == PARAMETERS[name]
    assert (config.n_positions, config.activation_function) == (BLOCK.get(name, 256), "gelu")
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)


def test_initial_weights_have_the_published_deviations():
    """0.02, for what ends a branch 0.02 / sqrt(2 layers); gains are 1 and biases 0."""
    torch.manual_seed(0)
    model = build_model(LanguageModelOptions(model_config=config_path("gpt2_micro")))
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert p.unique().tolist() == [0.0 if name.endswith(".bias") else 1.0], name
            continue
        expected = 0.02 / math.sqrt(2 * 4) if name.endswith("c_proj.weight") else 0.02
        sampling = 5 / math.sqrt(2 * p.numel())  # five standard errors of a deviation, relative to it
        assert p.std().item() == pytest.approx(expected, rel=sampling), name
        assert p.mean().item() == pytest.approx(0, abs=5 * expected / math.sqrt(p.numel())), name


def bias_free(weights, ids, layers, heads):
    """Logits of a GPT without biases, written once more: pre-norm blocks, tied output layer, causal attention."""
    places = torch.arange(ids.shape[1])
    x = weights["wte.weight"][ids] + weights["wpe.weight"][places]  # (sequences, length, width)
    width = x.shape[-1]

    def norm(x, name):
        return layer_norm(x, (width,), weights[f"{name}.weight"])

    def product(x, name):
        return linear(x, weights[f"{name}.weight"].T)  # transformers keeps it as (in, out)

    def split(x):
        return x.unflatten(-1, (heads, width // heads)).transpose(1, 2)

    for layer in range(layers):
        q, k, v = map(split, product(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").split(width, dim=-1))
        attended = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + product(attended, f"h.{layer}.attn.c_proj")
        hidden = gelu(product(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"))
        x = x + product(hidden, f"h.{layer}.mlp.c_proj")
    return linear(norm(x, "ln_f"), weights["wte.weight"])


def test_with_frozen_zero_biases_it_is_a_net_without_biases_to_the_bit():
    config = read_config(config_path("gpt2_micro"))
    config.n_layer, config.n_embd, config.vocab_size, config.n_positions = 2, 64, 260, 32
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in weights_of(model).values():
            p.add_(torch.randn_like(p), alpha=0.1)
    freeze(model, ["*.bias"])
    twin = {name.removeprefix("transformer."): p.detach().clone() for name, p in weights_of(model).items()}
    for weight in twin.values():
        weight.requires_grad_(True)
    ids = torch.randint(260, (3, 32))
    ours, other = model(input_ids=ids).logits, bias_free(twin, ids, layers=2, heads=4)
    assert torch.equal(ours, other) and ours.std() > 0.1
    for logits in (ours, other):
        cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, p in weights_of(model).items():
        assert torch.equal(p.grad, twin[name.removeprefix("transformer.")].grad), name
