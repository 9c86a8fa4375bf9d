"""Language models: their configs, what is refused, writing for transformers and starting from what it wrote."""

import json
import math
import warnings

import pytest
import torch
import transformers
from texts import ALONE, save_tokenizer, write_c4
from tiny import ROOT
from tiny_text import TINY_TEXT, changed_config, run_text, task_of

from llama.models import LanguageModelOptions, build_model, read_config
from llama.probes import require_causal, require_plain_head
from runtime.checkpoints import find_checkpoint
from runtime.errors import UserError

CONFIGS = sorted((ROOT / "llama" / "configs").glob("*.json"))
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64} | dict.fromkeys(
    ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"), ...
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_pad_with_no_token_and_transformers_has_nothing_to_say(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = read_config(str(path))
    values = json.loads(path.read_text())
    assert config.pad_token_id is None and values["pad_token_id"] is None
    assert (config.bos_token_id or 0) >= 0 and 0 <= (config.eos_token_id or 0) < config.vocab_size
    assert config.hidden_size % config.num_attention_heads == 0
    assert config.tie_word_embeddings == (config.model_type == "gpt2")


PUBLISHED_SIZES = {"60m": (512, 1376, 8, 8), "130m": (768, 2048, 12, 12), "350m": (1024, 2736, 16, 24)}
PUBLISHED_SIZES |= {"1b": (2048, 5461, 32, 24)}


@pytest.mark.parametrize("size", PUBLISHED_SIZES)
def test_configs_have_the_published_sizes(size):
    config = read_config(str(ROOT / "llama" / "configs" / f"llama_{size}.json"))
    found = (config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_hidden_layers)
    assert found == PUBLISHED_SIZES[size]
    assert (config.vocab_size, config.initializer_range, config.max_position_embeddings) == (32_000, 0.02, 1024)


def test_no_row_of_the_embedding_is_zeroed():
    model = build_model(LanguageModelOptions(model_config=str(ROOT / "tests" / "helpers" / "tiny_llama.json")))
    assert model.get_input_embeddings().weight.abs().sum(1).min() > 0
    assert model.get_input_embeddings().padding_idx is None


def test_positions_stay_in_float32_where_weights_do_not():
    options = LanguageModelOptions(model_config=str(ROOT / "tests" / "helpers" / "tiny_llama.json"), pure_bf16=True)
    model = build_model(options)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


def test_a_model_that_looks_ahead_is_refused_and_one_that_does_not_passes():
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    for is_decoder in (True, False):
        model = transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=260, is_decoder=is_decoder, **sizes))
        if is_decoder:
            require_causal(model, "--model_config x")
            continue
        with pytest.raises(UserError, match="--model_config x: not a causal language model: its predictions depend on"):
            require_causal(model, "--model_config x")


def test_logits_that_are_bent_have_no_chunked_loss():
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    values = {"vocab_size": 260, "num_key_value_heads": 1, "head_dim": 32, **sizes}
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**values, final_logit_softcapping=0.1))
    require_causal(model, "x")
    with pytest.raises(UserError, match="--chunked_loss true: this model's logits are more than one matrix product"):
        require_plain_head(model)


def logits(model):
    ids = (torch.arange(32) * 7 % 250)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


EXPORTED = {
    "llama": ({}, []),
    "bfloat16": ({}, ["--pure_bf16"]),
    "chunked": ({}, ["--chunked_loss", "--activation_checkpointing"]),
    "tied": ({"tie_word_embeddings": True}, []),
    "split": (GPT2, ["--split_qkv"]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "words"), EXPORTED.values(), ids=EXPORTED)
def test_what_is_exported_predicts_the_same_and_can_be_gone_on_from(tmp_path, config, words):
    config, folder = changed_config(tmp_path / "config", **config), tmp_path / "exported"
    common = [*TINY_TEXT, *words]
    first = [*common, "--model_config", config, "--max_steps", "2", "--export_hf", folder]
    assert run_text(*first, "--output_dir", tmp_path / "run") == 0
    dtype = torch.bfloat16 if "--pure_bf16" in words else torch.float32
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    task, _ = task_of(*common, "--model_config", config, alone=ALONE)
    task.learner.plain.load_state_dict(find_checkpoint(tmp_path / "run")[0].model_weights())
    assert torch.equal(logits(theirs), logits(task.learner.plain))
    task.stream.close()
    # Its own config counts: the sizes that --model_config would have play no part.
    again, _ = task_of(*common, "--init_from", folder, "--model_config", "llama/configs/llama_1b.json", alone=ALONE)
    ours = again.learner.plain.state_dict()
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours[name], weight), name
    again.stream.close()
    on = [*common, "--init_from", folder, "--num_training_steps", "2", "--output_dir", tmp_path / "second"]
    assert run_text(*on) == 0 and run_text("--eval", *common, "--init_from", folder) == 0
    assert transformers.AutoTokenizer.from_pretrained(folder)("ß")["input_ids"] == [195, 159]


def test_a_tokenizer_of_transformers_is_exported_with_the_model(tmp_path):
    folder, config = tmp_path / "exported", changed_config(tmp_path / "config", vocab_size=400)
    words = ["--dataset", "c4", "--data_path", write_c4(tmp_path / "c4"), "--model_config", config]
    words += ["--tokenizer", save_tokenizer(tmp_path / "tokenizer"), "--export_hf", folder, "--max_steps", "1"]
    assert run_text(*TINY_TEXT, *words, "--output_dir", tmp_path / "run") == 0
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert theirs("def parse(words):")["input_ids"] == ours("def parse(words):")["input_ids"]


def test_evaluating_a_checkpoint_can_export_it(tmp_path):
    assert run_text(*TINY_TEXT, "--max_steps", "1", "--output_dir", tmp_path / "run") == 0
    assert run_text("--eval", "--resume", tmp_path / "run", "--export_hf", tmp_path / "exported") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").state_dict()
    ours = find_checkpoint(tmp_path / "run")[0].model_weights()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert math.isfinite(float(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")).sum()))
