"""Validation: each token once, whatever the batch size and the number of processes."""

import pytest
import torch
from ranks import on_ranks
from texts import ALONE, END, read_texts, save_tokenizer, write_c4

from llama.data import TextOptions, open_text, validation_batches
from llama.sequences import batch_of
from llama.validation import ValidationBatches
from runtime.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_c4(tmp_path_factory.mktemp("c4"), validation=70)


def expected_tokens(folder):
    texts = read_texts(folder, "validation").values()
    return [token for text in texts for token in [*text.encode(), END]]


def shares(folder, ranks=1, batch_size=4, **changed):
    options = TextOptions(data_path=str(folder), tokenizer="bytes", batch_size=batch_size, max_length=64, **changed)
    text = open_text(options, ALONE)
    whole = validation_batches(options, text, ALONE)
    if ranks == 1:
        return [whole]
    rows = torch.stack(
        [torch.cat([(labels != -100).sum()[None], text[None], ids]) for ids, labels, text in rows_of([whole])]
    )
    return [ValidationBatches(rows.int(), text.tokenizer, batch_size, rank=rank, ranks=ranks) for rank in range(ranks)]


def rows_of(shared):
    """Ids, labels and bytes of all sequences, in the order in which they are defined."""
    each = [[row for batch in own for row in zip(*batch.values(), strict=True)] for own in shared]
    return [each[n % len(each)][n // len(each)] for n in range(sum(map(len, each)))]


def kept(rows):
    return torch.cat([labels[labels != -100] for _, labels, _ in rows]).tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_every_token_is_validated_once_in_the_order_of_the_files(folder, ranks, batch_size):
    found = shares(folder, ranks, batch_size)
    rows, expected = rows_of(found), expected_tokens(folder)
    assert kept(rows) == expected and all(own.tokens == len(expected) for own in found)
    lengths = [(labels != -100).sum().item() for _, labels, _ in rows]
    assert set(lengths[:-1]) == {64} and lengths[-1] == len(expected) % 64 > 0
    ids, labels, _ = rows[-1]
    assert set(ids[lengths[-1] :].tolist()) == {257} and set(labels[lengths[-1] :].tolist()) == {-100}


@pytest.mark.parametrize("ranks", [1, 2, 3, 500])
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_most_batches_is_the_number_of_the_rank_that_has_the_most(folder, ranks, batch_size):
    found = shares(folder, ranks, batch_size)
    assert {own.max_batches for own in found} == {max(len(list(own)) for own in found)}


@pytest.mark.parametrize("target", [2, 63, 64, 65, 1000])
@pytest.mark.parametrize("pack", [True, False])
def test_validation_ends_exactly_at_the_target(folder, target, pack):
    (found,) = shares(folder, target_eval_tokens=target, pack=pack)
    rows = rows_of([found])
    assert len(kept(rows)) == found.tokens == target
    if pack:
        assert kept(rows) == expected_tokens(folder)[:target]


def test_without_packing_each_validation_document_is_a_sequence(folder):
    rows, texts = rows_of(shares(folder, pack=False)), list(read_texts(folder, "validation").values())
    assert [labels[labels != -100].tolist() for _, labels, _ in rows] == [[*t.encode()[:63], END] for t in texts]
    assert any(len(text.encode()) > 63 for text in texts)


@pytest.mark.parametrize("pack", [True, False])
def test_the_bytes_of_a_sequence_are_those_of_the_text_that_is_predicted(folder, pack):
    """A slow twin that decodes: neither the first token, nor ends, nor what is cut off count."""
    for ids, labels, text in rows_of(shares(folder, pack=pack)):
        predicted = [token for token in labels[1:].tolist() if token not in (-100, END)]
        assert int(text) == len(bytes(predicted)) and len(ids) == 64


def test_one_long_sequence_stands_for_all_bytes_but_those_of_its_first_token(folder, tmp_path):
    options = TextOptions(data_path=str(folder), tokenizer=str(save_tokenizer(tmp_path)), max_length=50_000)
    text = open_text(options, ALONE)
    (row,) = rows_of([validation_batches(options, text, ALONE)])
    texts = list(read_texts(folder, "validation").values())
    first = text.tokenizer.byte_counts(texts[:1])[0][0]
    assert int(row[2]) == sum(len(each.encode()) for each in texts) - first


def test_a_tokenizer_whose_bytes_do_not_fit_its_ids_is_noticed(folder, monkeypatch):
    monkeypatch.setattr("llama.tokenizers.ByteTokenizer.byte_counts", lambda *_: [[1]] * 64)
    with pytest.raises(ValueError, match="bytes: .* ids with the end, but 1 counts of bytes"):
        shares(folder)


@pytest.mark.parametrize("pack", [True, False])
def test_text_without_a_predicted_token_is_refused_before_training(folder, pack):
    with pytest.raises(UserError, match="--target_eval_tokens 1: none is predicted, as the first of a sequence never"):
        shares(folder, target_eval_tokens=1, pack=pack)


def test_validation_can_be_gone_through_again(folder):
    (found,) = shares(folder)
    assert kept(rows_of([found])) == kept(rows_of([found]))


def test_padding_that_is_also_the_end_of_sequence_hides_no_end():
    ids = torch.tensor([5, 6, 1]).numpy()
    batch = batch_of([ids, ids[:1]], 4, pad_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 1, 1], [5, 1, 1, 1]]
    assert batch["labels"].tolist() == [[5, 6, 1, -100], [5, -100, -100, -100]]


@pytest.mark.slow
def test_processes_share_documents_and_validation_and_all_hear_of_bad_files(tmp_path):
    first, second = on_ranks("text_shares", 2, tmp_path)
    (folder,) = tmp_path.glob("*_c4")
    assert not set(first["names"]) & set(second["names"])
    assert sorted(first["names"] + second["names"]) == sorted(read_texts(folder, "train"))
    write_c4(folder, shards=2)  # the validation files as they were
    expected = [ids.tolist() for ids, _, _ in rows_of(shares(folder, batch_size=4))]
    rows = [found["rows"][n // 2] for n, found in enumerate([first, second] * len(expected)) if n < len(expected)]
    assert rows == expected and first["most_batches"] == second["most_batches"] == -(-len(first["rows"]) // 4)
    assert first["error"] == second["error"] and "--max_bad_lines 100: 101 lines" in first["error"]
    assert first["here_only"] is second["here_only"] is False
