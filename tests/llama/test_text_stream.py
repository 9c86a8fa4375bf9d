"""The training stream: every document of a rank once an epoch, in a seeded order, and no token lost."""

import numpy as np
import pytest
import torch
from texts import END, ranks, read_texts, same, save_tokenizer, stream_of, take, write_c4

from llama import stream as stream_room
from llama.data import TextOptions
from runtime.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_c4(tmp_path_factory.mktemp("c4"))  # 3 shards of 20, 19 and 18 documents, about 12,000 bytes


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def tokens(batches):
    """All tokens that are no padding, in their order."""
    return torch.cat([batch["labels"][batch["labels"] != -100] for batch in batches]).tolist()


def epochs(stream, count):
    """The texts of the first epochs, as sets do not show repetitions: a list for each."""
    drawn = [[] for _ in range(count)]
    while (document := stream.documents.draw()).epoch < count:
        drawn[document.epoch].append(document.text)
    return drawn


# Which documents


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("buffer", [1, 8, 1000])
def test_each_epoch_every_document_is_on_exactly_one_rank_and_once(folder, count, buffer):
    everything = sorted(read_texts(folder, "train").values())
    shares = [epochs(stream_of(folder, ranks(r, count), shuffle_buffer=buffer), 3) for r in range(count)]
    for epoch in range(3):
        assert sorted(sum((share[epoch] for share in shares), [])) == everything
    for share in shares:
        assert set(share[0]) == set(share[1]) == set(share[2]) != set()  # a rank's own documents are its own for ever


def test_names_are_those_of_the_documents(folder):
    stream, by_name = stream_of(folder), read_texts(folder, "train")
    for _ in range(200):
        document = stream.documents.draw()
        assert by_name[document.name] == document.text


def test_order_changes_with_seed_and_epoch_and_repeats_with_the_same(folder):
    first, again, other = (epochs(stream_of(folder, seed=seed), 2) for seed in (0, 0, 1))
    assert first == again and first[0] != first[1] and first[0] != other[0]


def test_files_come_in_another_order_in_other_epochs_and_with_other_seeds(folder):
    def orders(seed):
        drawn, by_text = epochs(stream_of(folder, seed=seed, shuffle_buffer=1), 8), read_texts(folder, "train")
        names = {text: name.split(":")[0] for name, text in by_text.items()}
        return [tuple(dict.fromkeys(names[text] for text in epoch)) for epoch in drawn]

    assert len(set(orders(0))) > 2 and orders(0) == orders(0) != orders(1)


def test_the_buffer_mixes_documents_of_different_places(folder):
    plain = list(read_texts(folder, "train").values())
    far, near = (epochs(stream_of(folder, shuffle_buffer=size), 1)[0] for size in (1000, 1))
    steps = {name: np.abs(np.diff([plain.index(text) for text in drawn])) for name, drawn in (("f", far), ("n", near))}
    assert np.median(steps["n"]) == 1 and np.median(steps["f"]) > 8


@pytest.mark.parametrize("pack", [True, False])
def test_order_and_tokens_do_not_depend_on_the_batch_size(folder, pack):
    small, large = stream_of(folder, batch_size=3, pack=pack), stream_of(folder, batch_size=12, pack=pack)
    assert torch.equal(
        torch.cat([batch["input_ids"] for batch in take(small, 40)]),
        torch.cat([batch["input_ids"] for batch in take(large, 10)]),
    )


def test_how_many_documents_are_tokenized_at_once_changes_nothing(folder, monkeypatch):
    monkeypatch.setattr(stream_room, "ENCODED_AT_ONCE", 3)
    few = take(stream_of(folder), 60)
    monkeypatch.setattr(stream_room, "ENCODED_AT_ONCE", 100)
    assert same(take(stream_of(folder), 60), few)


def test_fewer_documents_than_ranks_are_refused_in_one_line(tmp_path):
    write_c4(tmp_path, shards=1, documents=2)
    with pytest.raises(UserError, match=r"^--data_path \S+: no training document for process 0, 1, 2 of 3 \(counted"):
        stream_of(tmp_path, ranks(2, 3))
    assert stream_of(tmp_path, ranks(1, 3)).next()["input_ids"].shape == (4, 64)


# Sequences


def test_packing_loses_no_token_and_invents_none(folder):
    batches, stream = take(stream_of(folder), 60), stream_of(folder)
    assert all(batch["input_ids"].shape == batch["labels"].shape == (4, 64) for batch in batches)
    assert all(batch["input_ids"].dtype == batch["labels"].dtype == torch.int64 for batch in batches)
    assert all(torch.equal(batch["input_ids"], batch["labels"]) for batch in batches)
    expected = b""
    while len(expected) < 60 * 4 * 64:
        expected += stream.documents.draw().text.encode() + b"\xff"  # no UTF-8 has this byte: it stands for the end
    found = [255 if token == END else token for token in tokens(batches)]
    assert bytes(found) == expected[: len(found)]


def test_without_packing_each_document_is_a_sequence_cut_and_padded_as_published(folder, unigram):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    published = AutoTokenizer.from_pretrained(unigram)
    published.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    plain, stream = stream_of(folder, tokenizer=unigram), stream_of(folder, tokenizer=unigram, pack=False)
    lengths = set()
    for batch in take(stream, 10):
        drawn = [plain.documents.draw().text for _ in range(4)]
        expected = published(drawn, max_length=64, truncation=True, padding="max_length", return_tensors="pt")
        labels = expected["input_ids"].clone()
        labels[labels == published.pad_token_id] = -100
        assert torch.equal(batch["input_ids"], expected["input_ids"]) and torch.equal(batch["labels"], labels)
        lengths |= set((labels != -100).sum(1).tolist())
    assert 64 in lengths and min(lengths) < 64


@pytest.mark.parametrize("pack", [True, False])
def test_counts_are_those_of_the_batches_handed_out(folder, pack):
    stream = stream_of(folder, pack=pack)
    batches = take(stream, 20)
    assert stream.counts["tokens"] == len(tokens(batches))
    assert stream.counts["tokens"] + stream.counts["pads"] == 20 * 4 * 64
    assert stream.counts["documents"] == tokens(batches).count(END) and stream.batches == 20
    assert (stream.counts["pads"] == 0) == pack and (pack or stream.counts["documents"] == 20 * 4)
    assert stream.counts["epoch"] == (0 if pack else 79 // 57)


# The optimizer step


@pytest.mark.parametrize(("total", "count", "steps"), [(None, 1, 1), (None, 4, 1), (48, 1, 4), (48, 2, 2), (48, 4, 1)])
def test_micro_steps_make_the_total_batch(total, count, steps):
    assert TextOptions(batch_size=12, total_batch_size=total).micro_steps(count) == steps


def test_a_total_batch_that_micro_steps_cannot_make_is_refused_in_one_line():
    with pytest.raises(
        UserError, match="^--total_batch_size 512: is not a multiple of --batch_size 100 x 2 processes$"
    ):
        TextOptions(batch_size=100, total_batch_size=512).micro_steps(2)
    with pytest.raises(UserError, match="^--total_batch_size 8: is not a multiple of --batch_size 12$"):
        TextOptions(batch_size=12, total_batch_size=8).micro_steps(1)
