"""The page in a browser: its tables are filled and sort, nothing is wider than the window, nothing goes wrong."""

import json
import re
import shutil
import subprocess

import pytest
from fake_comparison import IMAGES, STRATEGIES, TEXT, Effects, fill, grid_of

from comparison.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --dump-dom"
).split()
# Clicks every header twice and writes down what the columns show then, as numbers where cells have them.
SCRIPT = """
const found = {errors, wide: document.documentElement.scrollWidth - document.documentElement.clientWidth, tables: []};
const column = (table, i) => [...table.tBodies[0].rows].map(row => row.cells[i].dataset.value ?? null);
for (const table of document.querySelectorAll("table")) {
  const each = {title: table.caption.textContent, before: table.tBodies[0].textContent, columns: []};
  const tag = (row, i) => row.dataset.place = i;
  [...table.tHead.rows[0].cells].forEach((header, i) => {
    [...table.tBodies[0].rows].forEach(tag);
    const states = [];
    for (const click of [1, 2]) {
      header.querySelector("button").click();
      const places = [...table.tBodies[0].rows].map(row => Number(row.dataset.place));
      states.push({sort: header.getAttribute("aria-sort"), values: column(table, i), places});
    }
    each.columns.push(states);
  });
  each.sorted = [...table.tHead.rows[0].cells].map(header => header.getAttribute("aria-sort"));
  found.tables.push(each);
}
found.images = [...document.images].map(image => image.naturalWidth);
const out = document.createElement("pre");
out.id = "found";
out.textContent = encodeURIComponent(JSON.stringify(found));
document.body.append(out);
"""
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the browser finds on a page with two settings and a failed run."""
    folder = tmp_path_factory.mktemp("page")
    domains = {"digits": {**IMAGES, "search": {"weight_decay": [0.1, 0.5, 10]}}, "text": TEXT}
    strategies = {name: STRATEGIES[name] for name in ("none", "uniform", "alphadecay")}
    grid = grid_of(folder, strategies, domains=domains)
    runs = fill(grid, folder, Effects({"alphadecay": 2.0}), failed=["digits/uniform/weight_decay=10/seed1"])
    page = write_report(grid, runs, folder, folder / "report")[0].read_text()
    opening = "<script>const errors = []; window.onerror = message => { errors.push(String(message)); };</script>"
    ending = f"<script>window.onload = () => {{ {SCRIPT} }};</script></body>"
    copy = folder / "copy.html"
    copy.write_text(page.replace("<body>", f"<body>{opening}").replace("</body>", ending))
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=500,900", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    encoded = re.search(r'<pre id="found">([^<]*)</pre>', done.stdout)
    assert encoded, done.stderr[-2000:]
    from urllib.parse import unquote

    return len(runs), json.loads(unquote(encoded.group(1)))


def key(text):
    try:
        return (0, float(text))
    except ValueError:
        return (1, text)


@pytest.mark.slow
def test_tables_are_filled_and_figures_shown(seen):
    runs, found = seen
    titles = [table["title"] for table in found["tables"]]
    own = ["Strategies at their best", "Tuned against tuned", "At equal base decay", "Every point of the search"]
    assert titles == [*own, *own, "All runs"] and all(table["before"].strip() for table in found["tables"])
    assert len(found["tables"][-1]["columns"][0][0]["values"]) == runs
    assert len(found["images"]) == 12 and min(found["images"]) > 100


def test_headers_sort_numbers_as_numbers_up_then_down_with_empty_cells_last(seen):
    for table in seen[1]["tables"]:
        for up, down in table["columns"]:
            assert (up["sort"], down["sort"]) == ("ascending", "descending")
            for state, downwards in ((up, False), (down, True)):
                values = [value for value in state["values"] if value is not None]
                assert state["values"] == values + [None] * (len(state["values"]) - len(values))
                if all(key(value)[0] == 0 for value in values):
                    assert values == sorted(values, key=key, reverse=downwards), table["title"]
    decays = seen[1]["tables"][3]["columns"][1][0]["values"]
    assert decays.index("2.0" if "2.0" in decays else "0.5") < decays.index("10.0")


def test_sorting_keeps_the_order_among_equals(seen):
    for table in seen[1]["tables"]:
        for states in table["columns"]:
            for state in states:
                by_value = {}
                for value, place in zip(state["values"], state["places"], strict=True):
                    by_value.setdefault(value, []).append(place)
                assert all(places == sorted(places) for places in by_value.values())


def test_only_the_last_clicked_header_is_marked_as_sorted(seen):
    for table in seen[1]["tables"]:
        assert table["sorted"] == ["none"] * (len(table["sorted"]) - 1) + ["descending"]


def test_the_page_is_no_wider_than_a_small_window_and_raises_no_error(seen):
    assert seen[1]["wide"] <= 0 and seen[1]["errors"] == []
