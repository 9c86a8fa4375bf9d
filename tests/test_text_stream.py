"""The training stream: every document of a rank once an epoch, no token lost, and an exact way back to any position."""

import io
import random

import numpy as np
import pytest
import torch
from texts import ALONE, c4_lines, paragraphs, read_texts, save_tokenizer, write_c4, write_shard

from llama import stream as stream_room
from llama.data import TextOptions, open_text, train_stream
from runtime.errors import UserError
from runtime.processes import Ranks

END = 256  # of the bytes tokenizer


class SomeRanks(Ranks):
    """One of several ranks, which all look for themselves; none is waited for."""

    is_main = True

    def gather(self, value):
        return [value] * self.count


def ranks(rank, count):
    return SomeRanks(rank, count, torch.device("cpu"))


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """Documents are tokenized by few at once, so that positions within an epoch are within shard and buffer too."""
    monkeypatch.setattr(stream_room, "ENCODED_AT_ONCE", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_c4(tmp_path_factory.mktemp("c4"))  # 3 shards of 20, 19 and 18 documents, about 12,000 bytes


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def stream_of(folder, where=ALONE, seed=0, remembered_steps=1, **changed):
    small = {"tokenizer": "bytes", "max_length": 64, "batch_size": 4, "shuffle_buffer": 8}
    options = TextOptions(**{"data_path": str(folder), **small, **changed})
    text = open_text(options, where)
    return train_stream(options, text, where, seed=seed, remembered_steps=remembered_steps)


def take(stream, batches):
    return [stream.next() for _ in range(batches)]


def tokens(batches):
    """All tokens that are no padding, in their order."""
    return torch.cat([batch["labels"][batch["labels"] != -100] for batch in batches]).tolist()


def texts(batches):
    """The whole documents of a packed stream of bytes, in their order; the last, unfinished one is left out."""
    found, current = [], []
    for token in tokens(batches):
        if token == END:
            found.append(bytes(current).decode())
            current = []
        else:
            current.append(token)
    return found


def epochs(stream, count):
    """The texts of the first epochs, as sets do not show repetitions: a list for each."""
    drawn = [[] for _ in range(count)]
    while (document := stream.documents.draw()).epoch < count:
        drawn[document.epoch].append(document.text)
    return drawn


def saved(state):
    """A state that has been on the disk."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in ("input_ids", "labels")
    )


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


# The way back

CUTS = (0, 1, 2, 7, 31, 60, 83)  # batches before the state is taken; an epoch is about 50 of them
KINDS = {
    "packed": {},
    "padded": {"pack": False},
    "all in the buffer": {"shuffle_buffer": 1000},
    "no buffer": {"shuffle_buffer": 1},
    "short sequences": {"max_length": 7, "batch_size": 1},
    "long sequences": {"max_length": 900, "batch_size": 1},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("where", [(0, 1), (1, 2), (3, 4)], ids=["alone", "by shards", "by lines"])
def test_a_stream_goes_on_exactly_from_any_position_also_twice_in_a_row(folder, kind, where):
    whole = stream_of(folder, ranks(*where), **kind)
    batches, names, counts = [], [], []
    for _ in range(max(CUTS) + 20):
        batches.append(whole.next())
        names.append(whole.names)
        counts.append(dict(whole.counts))
    assert counts[-1]["epoch"] >= 1 or kind.get("max_length") == 7
    for cut in CUTS:
        first = stream_of(folder, ranks(*where), **kind)
        take(first, cut)
        second = stream_of(folder, ranks(*where), **kind)
        second.load(saved(first.state()))
        assert same(take(second, 5), batches[cut : cut + 5])
        third = stream_of(folder, ranks(*where), **kind)
        third.load(saved(second.state()))
        assert same(take(third, 15), batches[cut + 5 : cut + 20])
        assert third.names == names[cut + 19] and third.counts == counts[cut + 19]


def test_a_state_can_be_taken_at_every_batch_and_changes_nothing(folder):
    plain, watched = stream_of(folder), stream_of(folder)
    expected, found = take(plain, 70), []
    for _ in range(70):
        found.append(watched.next())
        watched.state()
    assert same(found, expected)


def plain(state):
    """A state with its tensors as lists, to compare."""
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


def test_a_stream_that_went_on_has_the_state_of_one_that_was_not_stopped(folder):
    first, second = stream_of(folder), stream_of(folder)
    take(first, 33), take(second, 20)
    second.load(saved(second.state()))
    take(second, 13)
    assert plain(first.state()) == plain(second.state())


def test_a_stream_goes_back_to_a_state_of_its_own_while_it_prepares_the_next_batch(folder):
    stream = stream_of(folder)
    take(stream, 11)
    state = saved(stream.state())
    expected = take(stream, 30)
    stream.load(state)
    assert same(take(stream, 30), expected)


def test_a_stream_with_bad_lines_goes_on_exactly_and_keeps_count_of_them(tmp_path, capsys):
    write_c4(tmp_path, shards=2)
    lines = [c4_lines([text]) if n % 3 else b"broken\n" for n, text in enumerate(paragraphs()[:30])]
    write_shard(tmp_path, "train", 0, 2, b"".join(lines))
    whole = stream_of(tmp_path, shuffle_buffer=3)  # bad lines 1, 4, 7 ... of the first file
    batches, counts = [], []
    for _ in range(60):
        batches.append(whole.next())
        counts.append(whole.counts["bad_lines"])
    assert counts[0] < counts[-1] == 10 and len(set(counts)) > 3
    for cut in (3, 10, 40):
        first, second = stream_of(tmp_path, shuffle_buffer=3), stream_of(tmp_path, shuffle_buffer=3)
        take(first, cut)
        second.load(saved(first.state()))
        assert same(take(second, 20), batches[cut : cut + 20]) and second.counts["bad_lines"] == counts[cut + 19]


def test_the_last_steps_batches_can_be_had_again_with_the_documents_in_them(folder):
    by_name = read_texts(folder, "train")
    stream = stream_of(folder, total_batch_size=8, remembered_steps=2)
    batches = take(stream, 10)  # five steps of two
    for step in (3, 4):
        again, names = stream.again(step)
        assert same(again, batches[2 * step : 2 * step + 2])
        for batch, sequences in zip(again, names, strict=True):
            for ids, documents in zip(batch["input_ids"].tolist(), sequences, strict=True):
                shown = [part for part in bytes([255 if i == END else i for i in ids]).split(b"\xff") if part]
                sources = [by_name[name].encode() for name in documents.split(", ")]
                assert all(any(part in source for source in sources) for part in shown)
    assert stream.names == names[-1]
    for step in (2, 5):
        with pytest.raises(ValueError, match=f"step {step} are not remembered"):
            stream.again(step)


def test_the_process_own_random_state_is_left_alone(folder):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    take(stream_of(folder), 60)
    assert states() == before


def test_a_sentencepiece_like_tokenizer_resumes_as_exactly(folder, unigram):
    whole = take(stream_of(folder, tokenizer=unigram), 60)
    first, second = stream_of(folder, tokenizer=unigram), stream_of(folder, tokenizer=unigram)
    take(first, 25)
    second.load(saved(first.state()))
    assert same(take(second, 35), whole[25:])


# The optimizer step


@pytest.mark.parametrize(("total", "count", "steps"), [(None, 1, 1), (None, 4, 1), (48, 1, 4), (48, 2, 2), (48, 4, 1)])
def test_micro_steps_make_the_total_batch(total, count, steps):
    assert TextOptions(batch_size=12, total_batch_size=total).micro_steps(count) == steps


def test_a_total_batch_that_micro_steps_cannot_make_is_refused_in_one_line():
    with pytest.raises(UserError, match="^--total_batch_size 512: is no multiple of --batch_size 100 x 2 processes$"):
        TextOptions(batch_size=100, total_batch_size=512).micro_steps(2)
    with pytest.raises(UserError, match="^--total_batch_size 8: is no multiple of --batch_size 12$"):
        TextOptions(batch_size=12, total_batch_size=8).micro_steps(1)
