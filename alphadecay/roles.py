"""Roles of modules in their blocks, by module name: the same role for the same work in every library."""

import re

# Names after the block's number. Roles are timm's names; where timm has no name, they are LLaMA's.
ATTENTION = re.compile(
    r"(?P<cross>cross_?attn\.|cross_?attention\.|EncDecAttention\.)?"
    r"(?:self_attn\.|self_attention\.|SelfAttention\.|attention\.|attn\.)?(?:self\.|attention\.|attn\.)?(?P<leaf>.+)"
)
ATTENTION_LEAVES = {
    **dict.fromkeys(("q", "q_proj", "query", "q_lin", "to_q"), "q"),
    **dict.fromkeys(("k", "k_proj", "key", "k_lin", "to_k"), "k"),
    **dict.fromkeys(("v", "v_proj", "value", "v_lin", "to_v"), "v"),
    **dict.fromkeys(("qkv", "c_attn", "query_key_value", "Wqkv", "qkv_proj", "in_proj"), "qkv"),
    **dict.fromkeys(("o", "o_proj", "out_proj", "c_proj", "output.dense", "out_lin", "dense", "to_out"), "o"),
    "proj": "proj",
}
MLP = re.compile(r"(?:mlp|ffn|feed_forward|DenseReluDense|intermediate|output)\.(?P<leaf>.+)")
MLP_LEAVES = {
    **dict.fromkeys(("gate_proj", "fc1_g", "wi_0"), "gate"),
    **dict.fromkeys(("up_proj", "fc1_x", "wi_1"), "up"),
    **dict.fromkeys(("down_proj",), "down"),
    **dict.fromkeys(("fc1", "c_fc", "lin1", "wi", "dense_h_to_4h"), "fc1"),
    **dict.fromkeys(("fc2", "c_proj", "lin2", "wo", "dense_4h_to_h"), "fc2"),
}
WHOLE_NAMES = {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}  # BERT's
# PEFT's names: of an adapter's matrix, and of the adapted module itself.
ADAPTED = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB])(?:\.[^.]+)?")
ADAPTED_MODULE = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)$")


def role_of(name: str) -> str:
    """The role of a module in its block, such as attn.qkv or mlp.fc1.

    It knows the names of timm's ViT, DeiT, BEiT, EVA, Swin, ConvNeXt, ResNet and Mixer, and of transformers' LLaMA,
    GPT-2, BERT and similar models. For other names the role is the last one or two parts of the name after the block's
    number. Matrices of PEFT's LoRA have the role of their module plus .lora_A or .lora_B, for an adapter of any name.
    """
    adapted = ADAPTED.fullmatch(name)
    if adapted:
        return f"{role_of(adapted['module'])}.{adapted['part']}"
    name = ADAPTED_MODULE.sub("", name)
    parts = name.split(".")
    while len(parts) > 1 and parts[-1].isdigit():  # the index in a small nn.Sequential, such as downsample.0
        parts.pop()
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    inner = ".".join(parts[numbers[-1] + 1 :] if numbers else parts)
    return _known_role(inner) or ".".join(inner.split(".")[-2:]) or name


def _known_role(inner: str) -> str:
    """The role of a name after the block's number; "" if the name is not known."""
    if inner in WHOLE_NAMES:
        return WHOLE_NAMES[inner]
    attention = ATTENTION.fullmatch(inner)
    if attention and attention["leaf"] != inner and attention["leaf"] in ATTENTION_LEAVES:
        return f"{'cross_' if attention['cross'] else ''}attn.{ATTENTION_LEAVES[attention['leaf']]}"
    mlp = MLP.fullmatch(inner)
    return f"mlp.{MLP_LEAVES[mlp['leaf']]}" if mlp and mlp["leaf"] in MLP_LEAVES else ""
