"""Small models with a fused qkv projection, and how they are trained and compared."""

import timm
import torch

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 10}
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 64, "depths": (2,), "num_heads": (2,), "window_size": 4}
FAMILIES = {
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "beit_base_patch16_224": VIT,
    "eva02_tiny_patch14_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "xcit_nano_12_p8_224": {"img_size": 32, "depth": 2, "embed_dim": 64, "num_heads": 2},
}


def made(name="vit_tiny_patch16_224", **changes):
    torch.manual_seed(0)
    return timm.create_model(name, **FAMILIES[name] | changes)


def images(seed=0, count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def step(model, optimizer, seed):
    optimizer.zero_grad()
    model(images(seed)).square().mean().backward()
    optimizer.step()


def gpt2():
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    return GPT2Model(GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=100)).eval()


def same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
