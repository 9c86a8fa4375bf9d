"""Tokenizers: bytes and transformers' own; ids that the model does not know are refused before training."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from texts import paragraphs, save_byte_level_tokenizer, save_tokenizer
from tiny import ROOT

from llama.tokenizers import ByteTokenizer, bytes_up_to, character_bytes, load_tokenizer, require_fits
from runtime.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def unigram(saved):
    return load_tokenizer(str(saved))


def test_bytes_are_the_bytes_of_the_text():
    text, tokenizer = "Straße 中 \x00", load_tokenizer("bytes")
    (ids,) = tokenizer.encode([text])
    assert bytes(ids.tolist()) == text.encode() and ids.dtype == np.int32
    assert {tokenizer.eos_id, tokenizer.pad_id} == {256, 257} and tokenizer.vocab_size == 258


def test_a_saved_tokenizer_gives_the_ids_that_transformers_gives(saved, unigram):
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(saved)
    texts = list(paragraphs()[:50])
    assert [ids.tolist() for ids in unigram.encode(texts)] == [expected.encode(text) for text in texts]
    assert (unigram.pad_id, unigram.eos_id, unigram.vocab_size) == (0, 1, len(expected))


def test_texts_longer_than_any_model_takes_are_no_reason_to_warn(unigram, caplog):
    unigram.fast.model_max_length = 8
    assert len(unigram.encode(["a text of more than eight tokens, " * 100])[0]) > 800 and not caplog.records


@pytest.mark.parametrize("token", ["</s>", "<pad>", "<extra_id_0>", "<extra_id_1>"])
def test_a_text_that_spells_a_special_token_does_not_become_it(unigram, token):
    (ids,) = unigram.encode([f"before {token} behind {token}"])
    words = unigram.encode(["before", "behind"])
    assert set(ids) >= set(np.concatenate(words)) - {2} and not set(ids) & {0, 1, unigram.vocab_size - 1}
    assert max(ids) < unigram.vocab_size - 2


def test_what_the_vocabulary_lacks_is_the_unknown_token(unigram):
    assert 2 in unigram.encode(["a 中 b"])[0]


def test_padding_is_the_end_of_sequence_where_there_is_none(saved, tmp_path):
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(saved)
    fast.pad_token = None
    fast.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_id == 1


def test_ids_beyond_the_models_vocabulary_are_refused_with_the_token(unigram, saved):
    usable = unigram.vocab_size - 2  # as with T5, the model need not know <extra_id_N>
    require_fits(unigram, usable)
    last = unigram.fast.convert_ids_to_tokens(usable - 1)
    with pytest.raises(UserError) as caught:
        require_fits(unigram, usable - 1)
    known = f"the model's last is {usable - 2} (vocab_size {usable - 1})"
    assert str(caught.value) == f"--tokenizer {saved}: token {last!r} has id {usable - 1}, {known}"
    require_fits(ByteTokenizer(), 258)
    with pytest.raises(UserError, match="^--tokenizer bytes: token 'padding' has id 257, the model's last is 256"):
        require_fits(ByteTokenizer(), 257)


def test_an_end_of_sequence_beyond_the_models_vocabulary_is_refused(saved, tmp_path):
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(saved)
    fast.add_special_tokens({"eos_token": "<end>"})
    fast.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"token '<end>' has id {len(fast) - 1}"):
        require_fits(load_tokenizer(str(tmp_path)), len(fast) - 1)


def test_the_fingerprint_is_that_of_the_vocabulary_not_of_the_place(saved, unigram, tmp_path):
    moved = shutil.copytree(saved, tmp_path / "moved")
    assert load_tokenizer(str(moved)).fingerprint == unigram.fingerprint
    (moved / "tokenizer.json").write_text((moved / "tokenizer.json").read_text().replace('"e"', '"\u0113"'))
    assert load_tokenizer(str(moved)).fingerprint != unigram.fingerprint != ByteTokenizer.fingerprint
    assert len(unigram.fingerprint) == len(ByteTokenizer.fingerprint) == 64


def no_end(folder):
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(save_tokenizer(folder))
    fast.eos_token = None
    fast.save_pretrained(folder)


REFUSED = {
    "no such folder": (lambda folder: None, "no such folder$"),
    "an empty folder": (lambda folder: folder.mkdir(), "cannot be loaded, not even from a cache"),
    "a broken file": (
        lambda folder: (save_tokenizer(folder) / "tokenizer.json").write_text("{"),
        "cannot be loaded, not even from a cache",
    ),
    "no end": (no_end, "has no end-of-sequence token$"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_cannot_be_had_is_one_line(tmp_path, make, message):
    make(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(str(tmp_path / "tokenizer"))
    assert str(caught.value).startswith(f"--tokenizer {tmp_path}/tokenizer: ") and "\n" not in str(caught.value)


RUN = """
import sys, torch
from llama.data import TextOptions, open_text, train_stream, validation_batches
from runtime.processes import Ranks
alone, options = Ranks(0, 1, torch.device("cpu")), TextOptions(dataset="stdlib", tokenizer="bytes", batch_size=2)
text = open_text(options, alone)
train_stream(options, text, alone, seed=0).next(), next(iter(validation_batches(options, text, alone)))
print({"transformers", "huggingface_hub", "tokenizers", "datasets"} & set(sys.modules))
sys.modules["transformers"] = None
try:
    open_text(TextOptions(dataset="stdlib", tokenizer="some/name"), alone)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_bytes_of_the_standard_library_need_no_other_package():
    done = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded, said = done.stdout.splitlines()
    assert loaded == "set()"
    assert said.startswith("UserError --tokenizer some/name: needs transformers; pip install '.[llama]'")


# The bytes that tokens stand for


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return load_tokenizer(str(save_byte_level_tokenizer(tmp_path_factory.mktemp("byte level"))))


UNUSUAL = [
    "  Hello  Straße 中\x00 x", "a😀b", "ﬁne ½ \u0301e\u0301 trailing   ", "   ", "a\n\nb\t", "",
    "before <extra_id_0> between <|endoftext|></s> behind <|endoftext|>",
]  # fmt: skip


@pytest.mark.parametrize("name", ["bytes", "unigram", "byte_level"])
def test_the_tokens_of_a_text_stand_for_all_of_its_bytes(name, request):
    tokenizer = ByteTokenizer() if name == "bytes" else request.getfixturevalue(name)
    texts = [*paragraphs()[:60], *UNUSUAL]
    for text, ids, counts in zip(texts, tokenizer.encode(texts), tokenizer.byte_counts(texts), strict=True):
        assert len(counts) == len(ids) and sum(counts) == len(text.encode()) and min(counts, default=0) >= 0
    assert tokenizer.byte_counts([]) == []


def test_what_tokens_decode_to_is_what_they_stand_for(byte_level):
    """A slow twin: all tokens up to one, decoded, are as many bytes as those tokens stand for."""
    for text in [*paragraphs()[:20], *UNUSUAL[:4]]:
        (ids,), (counts,) = byte_level.encode([text]), byte_level.byte_counts([text])
        whole = 0
        for end in range(1, len(ids) + 1):
            decoded = byte_level.fast.decode(ids[:end], clean_up_tokenization_spaces=False)
            if not decoded.endswith("\ufffd"):  # else the last token ends within a character
                assert sum(counts[:end]) == len(decoded.encode())
                whole += 1
        assert whole


def test_bytes_are_those_since_the_token_before_and_the_last_ones_to_the_end():
    """Spaces and a dropped token belong to the next token, a split character to its first, the rest to the last."""
    text = "a <x>ß😀  c  "
    assert bytes_up_to(text, [1, 6, 7, 7, 7, 10]).tolist() == [1, 6, 4, 0, 0, 5]
    assert bytes_up_to(text, [7, 6, 10]).tolist() == [11, 0, 5] and bytes_up_to(text, []).tolist() == []


def test_the_bytes_of_characters_are_those_of_utf_8():
    for text in ("", "a\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff", "Straße 中 😀"):
        assert character_bytes(text).tolist() == [len(letter.encode()) for letter in text]


def test_a_dropped_special_tokens_bytes_belong_to_the_next_token(unigram):
    (ids,), (counts,) = unigram.encode(["x<extra_id_0>y"]), unigram.byte_counts(["x<extra_id_0>y"])
    assert unigram.fast.convert_ids_to_tokens(ids.tolist()) == ["▁", "x", "▁", "y"]
    assert counts.tolist() == [1, 0, 13, 0]  # the mark of a word's beginning has the place of its first letter
