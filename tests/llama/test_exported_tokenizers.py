"""Exports of models of bytes and characters: transformers gives our ids, and the export trains on."""

import json
import shutil
import sys

import pytest
import torch
import transformers
from test_text_files import ODD, nasty, write
from texts import ALONE, save_tokenizer
from tiny_text import CONFIG, TINY_TEXT, run_text, task_of

from llama.tokenizers import ByteTokenizer, CharTokenizer, HubTokenizer, load_tokenizer
from runtime.errors import UserError

TEXTS = [
    "", " ", "a", "  two  blanks ", "\n", "\r\n\n\t \x0b\x0c", "\x00\x01\x1b[0m\x7f\x80\x9f", "\ufeff \ufffd\uffff",
    "</s>", "<pad>", "a</s>b<pad> <unk><s>[UNK]", "\u2028\u2029\x85\u3000", "Straße 中 Ġ Ċ ▁ ## Âł", "e\u0301 é ﬁ ① Å",
    "👩\u200d👩\u200d👧 😀🏽 🇩🇪", "don't can't , . ! ? 1 000", "שלום مرحبا", "\U0010ffff\U000e0001", "x" * 3000, ODD,
    "".join(map(chr, range(0x250))),
]  # fmt: skip
ALPHABET = "".join(sorted(set("".join(TEXTS))))
OURS = {"bytes": ByteTokenizer(), "chars": CharTokenizer(ALPHABET)}


@pytest.fixture(scope="module", params=[(kind, model) for kind in OURS for model in ("llama", "gpt2")], ids=str)
def exported(request, tmp_path_factory):
    """One of our tokenizers, and the folder with it beside the config of a model."""
    kind, model = request.param
    folder = tmp_path_factory.mktemp("exported")
    (folder / "config.json").write_text(json.dumps({"model_type": model}))
    OURS[kind].for_transformers().save_pretrained(folder)
    return OURS[kind], folder


def test_transformers_gives_exactly_our_ids_and_the_text_back(exported):
    ours, folder = exported
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert theirs(text)["input_ids"] == theirs.encode(text, add_special_tokens=False) == ids.tolist(), repr(text)
        assert theirs.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text, repr(text)
    assert theirs(TEXTS)["input_ids"] == [ids.tolist() for ids in ours.encode(TEXTS)]
    assert (len(theirs), theirs.eos_token_id) == (ours.vocab_size, ours.eos_id)


def test_every_code_point_has_its_bytes(exported):
    ours, folder = exported
    if isinstance(ours, ByteTokenizer):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        text = "".join(chr(point) for point in range(0, sys.maxunicode + 1, 97) if not 0xD800 <= point < 0xE000)
        assert theirs(text)["input_ids"] == list(text.encode()) and theirs.decode(list(text.encode())) == text


def test_it_loads_back_as_what_it_was(exported):
    ours, folder = exported
    again = load_tokenizer(str(folder))
    assert type(again) is type(ours) and again.fingerprint == ours.fingerprint and again.name == str(folder)
    assert (again.eos_id, again.pad_id, again.highest) == (ours.eos_id, ours.pad_id, ours.highest)
    for ids, before in zip(again.encode(TEXTS), ours.encode(TEXTS), strict=True):
        assert ids.tolist() == before.tolist()


def test_a_character_outside_the_alphabet_is_an_error_in_transformers_too(tmp_path):
    CharTokenizer("ab").for_transformers().save_pretrained(tmp_path)
    with pytest.raises(Exception, match="UNK"):
        transformers.AutoTokenizer.from_pretrained(tmp_path)("abc")


def test_tokenizers_of_others_are_taken_as_they_are(tmp_path):
    assert isinstance(load_tokenizer(str(save_tokenizer(tmp_path / "unigram"))), HubTokenizer)
    CharTokenizer("ab").for_transformers().save_pretrained(tmp_path / "chars")
    path = tmp_path / "chars" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"] = {"a": 1, "b": 0}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="has no end-of-sequence token"):  # ids in another order are not ours
        load_tokenizer(str(tmp_path / "chars"))


@pytest.fixture(scope="module", params=["bytes", "chars"])
def run(request, tmp_path_factory):
    """The words of a run on a text, and its export."""
    folder = tmp_path_factory.mktemp(request.param)
    words = [*TINY_TEXT, "--dataset", "text", "--data_path", write(folder, nasty(30_000)), "--tokenizer", request.param]
    more = ["--max_steps", "2", "--output_dir", folder / "run", "--export_hf", folder / "export"]
    assert run_text(*words, *more) == 0
    return words, folder / "export", folder / "run"


def test_an_export_trains_on_with_its_own_tokenizer(run, tmp_path, capsys):
    words, folder, before = run
    on = [*words, "--init_from", folder, "--tokenizer", folder, "--max_steps", "1"]
    assert run_text(*on, "--output_dir", tmp_path / "run", "--export_hf", tmp_path / "again") == 0
    assert (tmp_path / "again" / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    tasks = [task_of(*words, *more, alone=ALONE)[0] for more in (["--init_from", folder], on[-6:])]
    assert torch.equal(*[task.stream.next()["input_ids"] for task in tasks])
    for task in tasks:
        task.stream.close()
    numbers = []
    for name in (words[-1], folder):
        capsys.readouterr()
        assert run_text("--eval", "--resume", before, "--tokenizer", name) == 0
        numbers.append(capsys.readouterr().out)
    assert numbers[0] == numbers[1]


def test_an_export_on_other_characters_is_refused_unless_it_brings_them(run, tmp_path, capsys):
    words, folder, _ = run
    is_chars = words[-1] == "chars"
    text = words[-3].read_bytes().decode()
    other = write(tmp_path, text.replace("a", "e"))
    as_many = write(tmp_path, text.replace("a", "q"), "as_many.txt")
    start = [*words, "--init_from", folder, "--data_path", other, "--max_steps", "1"]
    capsys.readouterr()
    assert run_text(*start, "--data_path", as_many, "--output_dir", tmp_path / "run") == (2 if is_chars else 0)
    assert not is_chars or f"--init_from {folder} was trained with --tokenizer {folder}" in capsys.readouterr().err
    assert run_text(*start, "--tokenizer", folder, "--output_dir", tmp_path / "own") == 0
    unknown = write(tmp_path, text + "Q", "unknown.txt")
    capsys.readouterr()
    assert run_text("--eval", *start, "--tokenizer", folder, "--data_path", unknown) == (2 if is_chars else 0)
    if is_chars:
        said = capsys.readouterr().err
        assert f"--tokenizer {folder}: 'Q' is not among its" in said and said.count("\n") == 1
        assert run_text("--model_config", CONFIG, "--dataset", "stdlib", "--tokenizer", folder) == 2
        assert "its tokens are characters, which go with --dataset text" in capsys.readouterr().err


def test_another_tokenizer_beside_the_model_is_no_reason_to_refuse(run, tmp_path):
    words, folder, _ = run
    for name, content in (("unigram", None), ("broken", "{")):
        model = shutil.copytree(folder, tmp_path / name)
        if content is None:
            save_tokenizer(model)
        else:
            (model / "tokenizer.json").write_text(content)
        assert run_text("--eval", *words, "--init_from", model) == 0
