"""Which matrices are adapted, under which names, and why the others are skipped."""

import pytest
import timm
import torch
from recipes import block_model
from torch import nn

from alphadecay.matrices import find_matrices


def reasons(model, **options):
    return {m.name: m.reason for m in find_matrices(model, **options)}


def adapted(model):
    return [m.name for m in find_matrices(model) if not m.reason]


def test_a_deit_has_48_matrices_in_four_roles():
    matrices = [m for m in find_matrices(timm.create_model("deit_tiny_patch16_224")) if not m.reason]
    assert len(matrices) == 48
    assert {m.role for m in matrices} == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert matrices[0].name == "blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("model", "stem", "head"),
    [
        ("deit_tiny_patch16_224", "patch_embed.proj", "head"),
        ("resnet18", "conv1", "fc"),
        ("convnext_atto", "stem.0", "head.fc"),
        ("efficientnet_b0", "conv_stem", "classifier"),
        ("mixer_s32_224", "stem.proj", "head"),
    ],
)
def test_stem_and_head_are_what_the_model_declares(model, stem, head):
    found = reasons(timm.create_model(model))
    assert (found[stem], found[head]) == ("stem", "head")


class Odd(nn.Module):
    """One weight of each kind that is skipped."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(70, 64)
        self.attention = nn.MultiheadAttention(64, 2)
        self.experts = nn.Parameter(torch.randn(4, 64, 64))
        self.sequence = nn.Conv1d(64, 64, 3)
        self.small = nn.Linear(49, 100)
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.body = nn.Linear(64, 64)
        self.lm_head = nn.Linear(64, 70, bias=False)
        self.again = nn.Linear(64, 64)
        self.and_again = nn.Linear(64, 64)
        self.and_again.weight = self.again.weight


def test_every_weight_is_listed_with_the_reason_it_stays_out():
    found = reasons(Odd(), exclude=["attention.out*"])
    assert found == {
        "embed.weight": "embedding",
        "attention.in_proj_weight": "in_proj_weight holds q, k and v in one parameter",
        "attention.out_proj": "excluded by 'attention.out*'",
        "experts": "3-D weight (experts?)",
        "sequence.weight": "of a Conv1d; only those of Linear, transformers' Conv1D and Conv2d are measured",
        "small": "49 eigenvalues, fewer than 50",
        "frozen": "frozen",
        "body": "",
        "lm_head": "head",
        "again": "tied: again.weight = and_again.weight",
    }


def test_a_tied_head_stays_out():
    model = Odd()
    model.lm_head.weight = model.embed.weight
    assert "embed.weight" in reasons(model) and "lm_head" not in adapted(model)


def test_names_are_the_plain_models_under_every_wrapper():
    model = block_model()
    expected = adapted(model)
    assert expected[0] == "blocks.0.proj"
    assert adapted(torch.compile(model)) == expected
    assert adapted(nn.DataParallel(model)) == expected
    inner = nn.Sequential(*[torch.compile(block) for block in model.blocks])
    assert adapted(inner) == [name.removeprefix("blocks.") for name in expected]
