"""Functions of `on_ranks.py` in several processes."""

import json
from pathlib import Path

from forked import forked


def on_ranks(what, ranks, folder):
    """What a function of on_ranks.py returns on each of some processes."""
    store = folder / f"store_{what}_{ranks}"
    done = forked(ranks, what, ranks, store, program="tests/helpers/on_ranks.py", timeout=180)
    assert done.codes == [0] * ranks, done.stderr[-2000:]
    return [json.loads(Path(f"{store}_{rank}.json").read_text()) for rank in range(ranks)]
