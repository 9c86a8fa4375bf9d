"""A refresh gives the same bits in whatever precision the loop computes, and changes no global switch meanwhile."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from by_hand import BASE, backward, block_names, multipliers
from recipes import block_model
from torch.utils._python_dispatch import TorchDispatchMode

import alphadecay

NAMES = block_names(2)


@pytest.fixture(autouse=True)
def precision_is_restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def autocast(dtype):
    return lambda: torch.autocast("cpu", dtype)


class Precision:
    """Matrix products of this precision inside, what it was outside."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.name)

    def __exit__(self, *_):
        torch.set_float32_matmul_precision(self.before)


CONTEXTS = {
    "autocast to bf16": autocast(torch.bfloat16),
    "autocast to fp16": autocast(torch.float16),
    "high": lambda: Precision("high"),
    "medium": lambda: Precision("medium"),
}


class Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def refreshes(context, steps=7, kind=alphadecay.AlphaDecay, **options):
    """Multipliers, records and scores of each refresh where only the optimizer's step is inside the context."""
    model, found = block_model(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=BASE)
    kind(
        model, optimizer, **options,
        on_refresh=lambda decay: found.append((decay.step, decay.multipliers, decay.records, decay.scores)),
    )  # fmt: skip
    for step in range(steps):
        backward(model, step)
        with context():
            optimizer.step()
    return found, [p.detach().clone() for p in model.parameters()]


OPTIONS = {
    "at once": {"interval": 3},
    "with a lag": {"interval": 3, "lag": 2},
    "windows": {"interval": 3, "window": "farms"},
    "a searched tail": {"interval": 3, "fit": "goodness-of-fit"},
    "gradients": {"interval": 3, "metric": "grad_norm"},
    "gradients over weights": {"interval": 3, "metric": "grad_to_weight"},
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_refresh_gives_the_same_bits_as_in_full_precision(options, context):
    plain, weights = refreshes(Nothing, **OPTIONS[options])
    found, same_weights = refreshes(CONTEXTS[context], **OPTIONS[options])
    assert found == plain and len(plain) >= 2
    assert all(torch.equal(a, b) for a, b in zip(weights, same_weights, strict=True))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kind", [alphadecay.AWD, alphadecay.AdaDecay], ids=lambda kind: kind.__name__)
def test_so_do_the_kinds_that_measure_gradients(kind, context):
    plain, weights = refreshes(Nothing, 3, kind)
    found, same_weights = refreshes(CONTEXTS[context], 3, kind)
    assert found == plain and plain
    assert all(torch.equal(a, b) for a, b in zip(weights, same_weights, strict=True))


@pytest.mark.parametrize("context", CONTEXTS)
def test_analyze_gives_the_same_bits_as_in_full_precision(context):
    model = block_model()
    plain = alphadecay.analyze(model)
    with CONTEXTS[context]():
        assert alphadecay.analyze(model) == plain


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_refresh_gives_is_what_it_is_by_hand(context):
    model = block_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=BASE)
    decay = alphadecay.AlphaDecay(model, optimizer)
    expected = multipliers(model, NAMES)
    backward(model, 0)
    with CONTEXTS[context]():
        optimizer.step()
    assert decay.multipliers == pytest.approx(expected, rel=1e-4)


def switches():
    """What one thread could change under another."""
    return {
        "float32 products": torch.get_float32_matmul_precision(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "products by backend": [
            getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # since torch 2.9
            for backend in (torch.backends.cuda, torch.backends.mkldnn)
        ],
    }


class Watched(TorchDispatchMode):
    """Asks another thread for its switches at each operation of this one."""

    def __init__(self):
        super().__init__()
        self.thread, self.seen, self.names = ThreadPoolExecutor(1), [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        now = self.thread.submit(switches).result()
        if now not in self.seen:
            self.seen.append(now)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("inside", ["nothing", *CONTEXTS])
@pytest.mark.parametrize("set_before", ["highest", "medium"])
def test_another_thread_sees_no_switch_change_while_spectra_are_measured(set_before, inside):
    model = block_model(1)
    torch.set_float32_matmul_precision(set_before)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=BASE)
    decay = alphadecay.AlphaDecay(model, optimizer)
    with CONTEXTS.get(inside, Nothing)():
        with ThreadPoolExecutor(1) as thread:
            before = thread.submit(switches).result()
        own = switches()
        with Watched() as watched:
            decay.refresh()
        assert switches() == own  # and in this thread all is as it was
    assert watched.seen == [before]
    assert {"linalg_eigh", "_linalg_eigh", "_linalg_eigvals", "linalg_svd", "_linalg_svd"} & watched.names
