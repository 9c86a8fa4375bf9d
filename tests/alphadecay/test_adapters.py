"""LoRA under AlphaDecay: adapters are ranked and decayed like any matrix once short spectra may take part."""

import warnings

import pytest
import torch
from by_hand import BASE, decay_on, multipliers

import alphadecay

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside the libraries, met while importing them
    import peft
    import transformers

# A deprecation between the two libraries.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
RANK = 8
STEP = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.default"
A = [STEP.format(layer, part, "A") for layer in range(2) for part in "qv"]
B = [STEP.format(layer, part, "B") for layer in range(2) for part in "qv"]


def adapted():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    lora = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=True)
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)


def take_step(model, optimizer, seed):
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def attached(**options):
    model = adapted()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=BASE)
    return model, optimizer, alphadecay.AlphaDecay(model, optimizer, 2, **options)


def found_decays(model, optimizer, names):
    return {name: decay_on(optimizer, model.get_submodule(name).weight) / BASE for name in names}


def test_adapters_are_steered_as_by_hand_and_those_still_zero_keep_their_base_decay():
    model, optimizer, decay = attached(min_eigenvalues=RANK)
    expected = multipliers(model, A)
    take_step(model, optimizer, 0)
    assert found_decays(model, optimizer, A) == pytest.approx(expected, rel=1e-3)
    assert found_decays(model, optimizer, B) == dict.fromkeys(B, 1.0)
    records = {record.name: record for record in decay.records}
    assert all(records[name].eigenvalue_count == RANK and not records[name].note for name in A)
    assert all("zero" in records[name].note for name in B)
    take_step(model, optimizer, 1)
    expected = multipliers(model, [*A, *B])
    take_step(model, optimizer, 2)
    assert decay.step == 3
    assert found_decays(model, optimizer, [*A, *B]) == pytest.approx(expected, rel=1e-3)


def test_roles_tell_the_two_halves_of_an_adapter_and_what_they_adapt():
    _, _, decay = attached(min_eigenvalues=RANK)
    decay.refresh()
    roles = {record.name: record.role for record in decay.records}
    assert {roles[name] for name in A if ".q_proj" in name} == {"attn.q.lora_A"}
    assert {roles[name] for name in B if ".v_proj" in name} == {"attn.v.lora_B"}


def test_the_weights_that_adapters_sit_on_are_frozen():
    _, _, decay = attached(min_eigenvalues=RANK)
    decay.refresh()
    base = [r for r in decay.records if "lora" not in r.name and ("proj" in r.name or "mlp" in r.name)]
    assert len(base) == 14 and {record.note for record in base} == {"frozen"}
    assert set(decay.multipliers) == {*A, *B}


def test_short_spectra_stay_out_unless_asked_for():
    for options in ({}, {"min_eigenvalues": RANK + 1}):
        notes = {record.name: record.note for record in alphadecay.analyze(adapted(), **options)}
        assert all(str(RANK) in notes[name] for name in [*A, *B])
