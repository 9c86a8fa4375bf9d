"""A text stream goes on exactly from any position that was saved."""

import io
import random
from concurrent.futures import Future
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from texts import (
    END,
    c4_lines,
    paragraphs,
    ranks,
    read_texts,
    same,
    save_tokenizer,
    stream_of,
    take,
    write_c4,
    write_shard,
)

import main_llama
from llama import stream as stream_room
from runtime.errors import UserError
from runtime.processes import Ranks


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """Documents are tokenized by few at once, so that positions within an epoch are within shard and buffer too."""
    monkeypatch.setattr(stream_room, "ENCODED_AT_ONCE", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_c4(tmp_path_factory.mktemp("c4"))  # 3 shards of 20, 19 and 18 documents, about 12,000 bytes


def saved(state):
    """A state that has been on the disk."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


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


class Eager:
    """A thread that is always ahead."""

    def __init__(self, *_, **__):
        pass

    def submit(self, function):
        future = Future()
        future.set_result(function())
        return future


class Lazy(Eager):
    """A thread that does nothing before it is waited for."""

    def submit(self, function):
        return SimpleNamespace(result=cache(function))


@pytest.mark.parametrize("pace", [Eager, Lazy])
def test_how_far_ahead_the_thread_is_changes_neither_batches_nor_counts_nor_states(tmp_path, monkeypatch, pace):
    write_c4(tmp_path, shards=2)
    write_shard(tmp_path, "train", 0, 2, c4_lines(paragraphs()[:9]) + b"broken\n" * 5 + c4_lines(paragraphs()[9:20]))

    def seen():
        stream = stream_of(tmp_path, shuffle_buffer=2)
        for batches in range(60):
            yield stream.next()["input_ids"].tolist(), dict(stream.counts), stream.names
            if batches % 7 == 3:
                yield plain(stream.state())

    expected = list(seen())
    monkeypatch.setattr(stream_room, "ThreadPoolExecutor", pace)
    assert list(seen()) == expected


def test_the_last_steps_batches_can_be_had_again_with_the_documents_in_them(folder):
    by_name = read_texts(folder, "train")
    stream = stream_of(folder, total_batch_size=8, remembered_steps=2)
    batches = take(stream, 10)  # five steps of two
    for step in (3, 4):
        again, names = stream.batches_of_step(step)
        assert same(again, batches[2 * step : 2 * step + 2])
        for batch, sequences in zip(again, names, strict=True):
            for ids, documents in zip(batch["input_ids"].tolist(), sequences, strict=True):
                shown = [part for part in bytes([255 if i == END else i for i in ids]).split(b"\xff") if part]
                sources = [by_name[name].encode() for name in documents.split(", ")]
                assert all(any(part in source for source in sources) for part in shown)
    assert stream.names == names[-1]
    for step in (2, 5):
        with pytest.raises(ValueError, match=f"step {step} are not remembered"):
            stream.batches_of_step(step)
    state = stream.state()
    take(stream, 4)
    stream.load(state)
    with pytest.raises(ValueError, match="step 4 are not remembered"):
        stream.batches_of_step(4)
    later = take(stream, 2)
    assert same(stream.batches_of_step(5)[0], later)


def test_a_step_is_found_and_pads_are_counted_after_resuming_with_another_batch_size(folder):
    before = stream_of(folder, total_batch_size=8)  # two batches of 4 a step
    take(before, 10)
    stream = stream_of(folder, total_batch_size=8, batch_size=2)  # four of 2
    stream.load(before.state())
    taken = take(stream, 4)  # the first was prepared before
    assert [len(batch["input_ids"]) for batch in taken] == [4, 2, 2, 2]
    assert same(stream.batches_of_step(5)[0], taken) and stream.counts["pads"] == 0


def test_the_process_own_random_state_is_left_alone(folder):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    take(stream_of(folder), 60)
    assert states() == before


def test_a_sentencepiece_like_tokenizer_resumes_as_exactly(folder, tmp_path):
    unigram = str(save_tokenizer(tmp_path))
    whole = take(stream_of(folder, tokenizer=unigram), 60)
    first, second = stream_of(folder, tokenizer=unigram), stream_of(folder, tokenizer=unigram)
    take(first, 25)
    second.load(saved(first.state()))
    assert same(take(second, 35), whole[25:])


def test_text_that_another_number_of_processes_shared_is_refused():
    checkpoint = SimpleNamespace(path="runs/x/checkpoints/step_4", contract=lambda: {"facts": {"world_size": 2}})
    start = SimpleNamespace(checkpoint=checkpoint)
    main_llama.check_streams(start, Ranks(0, 2, torch.device("cpu")))
    main_llama.check_streams(SimpleNamespace(checkpoint=None), Ranks(0, 1, torch.device("cpu")))
    with pytest.raises(UserError, match="step_4: 2 processes saved where they are in the text, so 3 cannot continue"):
        main_llama.check_streams(start, Ranks(0, 3, torch.device("cpu")))
