"""Roles: the same word for the same work in all common families."""

import pytest
import timm
import torch

from alphadecay.matrices import find_matrices
from alphadecay.roles import role_of

VIT = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
TIMM = {
    "deit_tiny_patch16_224": VIT,
    "beit_base_patch16_224": VIT,
    "eva02_tiny_patch14_224": VIT,
    "eva02_small_patch14_224": VIT,
    "eva02_base_patch14_224": {"attn.q", "attn.k", "attn.v", "attn.proj", "mlp.gate", "mlp.up", "mlp.fc2"},
    "swin_tiny_patch4_window7_224": VIT | {"downsample.reduction"},
    "convnext_tiny": {"downsample", "mlp.fc1", "mlp.fc2"},
    "resnet50": {"conv1", "conv2", "conv3", "downsample"},
    "mixer_s16_224": {"mlp_channels.fc1", "mlp_channels.fc2", "mlp_tokens.fc1", "mlp_tokens.fc2"},
}
# Names as transformers has them: family -> module inside a block -> role.
TRANSFORMERS = {
    "model.layers.11.": {
        "self_attn.q_proj": "attn.q", "self_attn.k_proj": "attn.k", "self_attn.v_proj": "attn.v",
        "self_attn.o_proj": "attn.o", "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.down",
    },
    "transformer.h.3.": {
        "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.o", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    },
    "bert.encoder.layer.0.": {
        "attention.self.query": "attn.q", "attention.self.key": "attn.k", "attention.self.value": "attn.v",
        "attention.output.dense": "attn.o", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
        "crossattention.self.query": "cross_attn.q", "crossattention.output.dense": "cross_attn.o",
    },
    "decoder.block.2.layer.1.": {  # a number within a block: T5
        "SelfAttention.q": "attn.q", "EncDecAttention.k": "cross_attn.k", "DenseReluDense.wi_0": "mlp.gate",
        "DenseReluDense.wo": "mlp.fc2",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_roles_of_timm_models(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert {matrix.role for matrix in find_matrices(model) if not matrix.reason} == TIMM[name]


@pytest.mark.parametrize("block", TRANSFORMERS)
def test_roles_of_transformers_models(block):
    assert {inner: role_of(block + inner) for inner in TRANSFORMERS[block]} == TRANSFORMERS[block]


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
@pytest.mark.parametrize("adapter", ["", ".default", ".0"])
@pytest.mark.parametrize("block", TRANSFORMERS)
def test_a_matrix_of_an_adapter_has_the_role_of_its_module_and_its_own_part(block, adapter, part):
    for inner, role in TRANSFORMERS[block].items():
        assert role_of(f"base_model.model.{block}{inner}.{part}{adapter}") == f"{role}.{part}"
        for itself in ("base_layer", "original_module", "modules_to_save.default"):
            assert role_of(f"base_model.model.{block}{inner}.{itself}") == role


def test_an_adapter_of_an_unknown_module_and_of_none_are_named_by_what_is_known():
    assert role_of("base_model.model.blocks.2.mixer.in_gate.lora_A.default") == "mixer.in_gate.lora_A"
    assert role_of("layer2.0.downsample.0.lora_B.default") == "downsample.lora_B"
    assert role_of("lora_A.default") == "lora_A.default"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("layer2.0.downsample.0", "downsample"),
        ("features.3", "features"),
        ("encoder.body.fc", "body.fc"),
        ("blocks.2.mixer.in_gate", "mixer.in_gate"),
        ("blocks.2.attention.rotate", "attention.rotate"),
        ("body", "body"),
        ("0", "0"),
    ],
)
def test_an_unknown_role_is_the_last_parts_of_the_name(name, role):
    assert role_of(name) == role
