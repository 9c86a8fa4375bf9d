"""The transformers causal language model of a run: build it from a config file, load it from a folder, export it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import alphadecay
from llama.chunked import give_summed_loss
from llama.options import LanguageModelOptions
from llama.probes import require_causal, require_plain_head
from llama.tokenizers import Tokenizer
from runtime.errors import UserError, first_line
from runtime.files import json_of
from runtime.processes import Ranks
from runtime.runfolder import make_folders, read_json, remove_empty
from runtime.sharded import whole_on_main

NOT_HASHED = ("architectures", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


def build_model(options: LanguageModelOptions) -> nn.Module:
    """Build the model with random weights from torch's global generator, or load it from `init_from`.

    Raises:
        UserError: If the config or the weights cannot be read or are not those of a causal language model, or if the
            model does not support one of the options.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("language models need transformers: pip install '.[llama]'") from None
    transformers.logging.set_verbosity_error()
    model: Any
    if options.init_from:
        model = _load_folder(options.init_from)
    else:
        config = read_config(options.model_config)
        try:
            model = transformers.AutoModelForCausalLM.from_config(config)
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError, ZeroDivisionError) as error:
            raise UserError(f"--model_config {options.model_config}: {first_line(error)}") from error
    model.config.use_cache = False
    source = f"--init_from {options.init_from}" if options.init_from else f"--model_config {options.model_config}"
    require_causal(model.float(), source)
    if options.activation_checkpointing:
        # This is its name since transformers 5.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if options.chunked_loss:
        require_plain_head(model)
        give_summed_loss(model)
    if options.pure_bf16:
        for p in model.parameters():  # buffers, such as rotary frequencies, keep the dtype that transformers gives them
            p.data = p.data.to(torch.bfloat16)
    if options.split_qkv:
        try:
            alphadecay.split_qkv(model)
        except ValueError as error:
            raise UserError(f"--split_qkv: {error}") from error
    return model


def read_config(path: str, option: str = "--model_config") -> Any:
    """Read a transformers config from a JSON file, or from config.json in a folder. Errors name `option`.

    Raises:
        UserError: If there is no config, or it is not that of a causal language model.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    try:
        values = json_of(file)
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{option} {path}: not JSON ({error})") from error
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"{option} {path}: model_type {model_type!r} is not a causal language model of transformers")
    for name in ("vocab_size", "max_position_embeddings"):
        if isinstance(values.get(name), int) and values[name] < 1:
            raise UserError(f"{option} {path}: {name} {values[name]}: must be at least 1")
    try:
        return transformers.AutoConfig.for_model(**values)
    except Exception as error:  # transformers raises its own classes and those of huggingface_hub
        raise UserError(f"{option} {path}: {first_line(error)}") from error


def _load_folder(folder: str) -> nn.Module:
    import transformers

    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"--init_from {folder}: not a transformers folder, it has no config.json")
    read_config(folder, "--init_from")
    _check_shard_index(Path(folder))
    try:
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        model, loading_info = load(folder, use_safetensors=True, local_files_only=True, output_loading_info=True)
    except Exception as error:  # as in read_config, and safetensors' own for a truncated file
        raise UserError(f"--init_from {folder}: {first_line(error)}") from error
    for key, problem in (("missing_keys", "lacks"), ("unexpected_keys", "has weights that the model lacks:")):
        names = sorted(map(str, loading_info.get(key) or ()))
        if names:
            rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"--init_from {folder}: {problem} {', '.join(names[:3])}{rest}")
    return model


def _check_shard_index(folder: Path) -> None:
    """Raise UserError if an index of shards names anything other than files in its own folder."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    names = read_json(index, "an index of shards").get("weight_map")
    if not isinstance(names, dict):
        raise UserError(f"--init_from {folder}: {index.name} has no weight_map")
    for name in sorted(set(map(str, names.values()))):
        if name != Path(name).name or not (folder / name).is_file():
            raise UserError(f"--init_from {folder}: {index.name} names {name!r}, which is not a file in that folder")


def vocabulary_size(model: nn.Module) -> int:
    """Number of token ids that the model has embeddings for."""
    return model.get_input_embeddings().num_embeddings  # type: ignore[operator]


def max_positions(model: nn.Module) -> int | None:
    """Largest number of tokens per sequence; None if the config does not say."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def config_hash(model: Any) -> str:
    """A hash of the config, without values that only describe its origin or storage."""
    values = model.config.to_dict()
    hashed = {name: value for name, value in values.items() if name not in NOT_HASHED}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_export(folder: Path, sources: Sequence[str], overwrite: bool) -> None:
    """Raise UserError if a transformers folder must not be written to `folder`. Writes nothing.

    Args:
        folder: Folder of the export.
        sources: Folders that are never replaced: the run's own and that of --init_from.
        overwrite: Whether files of an earlier export may be replaced.
    """
    for source in filter(None, sources):
        if folder.resolve() == Path(source).resolve():
            raise UserError(f"--export_hf {folder}: is the folder of the run or of --init_from")
    try:
        remove_empty(make_folders(folder))
        has_files = folder.exists() and any(folder.iterdir())
    except OSError as error:
        raise UserError(f"--export_hf {folder}: cannot be written: {error.strerror}") from error
    if has_files and not overwrite:
        raise UserError(
            f"--export_hf {folder}: is not empty; give another folder, or --overwrite to replace files there"
        )


def export(model: nn.Module, tokenizer: Tokenizer, folder: Path, ranks: Ranks) -> None:
    """Write a transformers folder: safetensors, config and tokenizer.

    All ranks must call this; the main process writes.
    """
    weights = whole_on_main(model.state_dict(), ranks.is_main)
    if ranks.is_main:
        weights = {name: tensor.cpu() for name, tensor in weights.items()}
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        tokenizer.for_transformers().save_pretrained(folder)
    ranks.wait()


def flops_per_token(model: nn.Module, length: int) -> float:
    """Floating-point operations of training per token: 6 x weights + 12 x layers x hidden size x length.

    Source: PaLM (arXiv 2204.02311), appendix B. Weights are the entries of all matrices, except of an input
    embedding that is only a lookup.
    """
    config: Any = model.config
    weights = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    if not config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel()  # type: ignore[operator]
    return 6.0 * weights + 12.0 * config.num_hidden_layers * config.hidden_size * length
