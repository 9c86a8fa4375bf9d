"""Records are a list that shows itself: as text, in a notebook, in pandas and as figures."""

import copy
import pickle
import sys
from dataclasses import asdict, fields, replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from recipes import block_model

from alphadecay import SpectrumRecord, SpectrumRecords, analyze
from alphadecay.command import output as analysis_output
from alphadecay.figures.records import FIGURES

MEASURED = ("blocks.0.proj", "blocks.0.fc1", "blocks.0.fc2", "blocks.1.proj", "blocks.1.fc1", "blocks.1.fc2")


@pytest.fixture(scope="module")
def records():
    return analyze(block_model())


@pytest.fixture(scope="module")
def other():
    return analyze(block_model(width=96))


def many(count):
    return SpectrumRecords(SpectrumRecord(f"layers.{i}.fc", "fc", (64, 64), 4096, 64, alpha=2.5) for i in range(count))


class Cells(HTMLParser):
    """The texts of an HTML table's cells, row by row, and every tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_analyze_keeps_the_eigenvalues_that_were_fitted():
    seen = {}
    records = analyze(block_model(), on_record=lambda record, eigs: seen.update({record.name: eigs}))
    assert list(records.spectra) == list(MEASURED) and all(records.spectra[name] is seen[name] for name in seen)
    assert all(eigs.dtype == np.float64 and (np.diff(eigs) >= 0).all() for eigs in records.spectra.values())
    assert [len(records.spectra[r.name]) for r in records if not r.note] == [64] * 6


def test_records_are_a_list(records):
    assert isinstance(records, list) and records == list(records) and list(records) == records
    assert records != records[1:] and records[-1] is list(records)[-1]
    assert SpectrumRecords(records).spectra == records.spectra
    assert SpectrumRecords() == [] and SpectrumRecords().spectra == {}


def test_a_slice_is_of_the_same_class_and_has_its_own_eigenvalues_alone(records):
    part = records[1:3]
    assert type(part) is SpectrumRecords and part == list(records)[1:3]
    assert list(part.spectra) == list(MEASURED[:2])


@pytest.mark.parametrize(
    "again", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy, copy.copy, lambda r: r.copy(), lambda r: r[:]]
)
def test_copies_are_equal_and_of_the_same_class(records, again):
    found = again(records)
    assert found is not records and type(found) is SpectrumRecords and found == records
    assert list(found.spectra) == list(records.spectra)
    assert all((found.spectra[name] == eigs).all() for name, eigs in records.spectra.items())


def test_a_record_is_found_where_it_was_before():
    from alphadecay.analysis import SpectrumRecord as before

    assert before is SpectrumRecord


def test_the_table_has_one_line_a_matrix_with_columns_below_each_other(records):
    head, rule, *lines = str(records).splitlines()
    assert head.split("  ")[0].strip() == "module" and head.endswith("note") and len(lines) == len(records)
    starts = [i for i in range(len(rule)) if rule[i] == "-" and (i == 0 or rule[i - 1] == " ")]
    for record, line in zip(records, lines, strict=True):
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        alpha = "-" if record.alpha is None else f"{record.alpha:.3f}"
        assert (cells[0], cells[3], cells[-1]) == (record.name, alpha, record.note)
    assert repr(records) == str(records)


def test_no_records_are_said_to_be_none():
    assert str(SpectrumRecords()) == repr(SpectrumRecords()) == SpectrumRecords()._repr_html_() == "no weight matrix"


def test_of_hundreds_print_shows_all_and_the_rest_first_and_last():
    records = many(300)
    assert len(str(records).splitlines()) == 302
    shown = repr(records).splitlines()
    assert len(shown) < 70 and shown[-1] == "60 of 300 matrices; print() shows all"
    assert {"layers.0.fc", "layers.29.fc", "...", "layers.270.fc", "layers.299.fc"} <= {
        line.split()[0] for line in shown if line
    }
    assert len(Cells(records._repr_html_()).rows) == 301


def test_the_html_table_says_what_the_text_says(records):
    rows = Cells(records._repr_html_()).rows
    assert [" ".join(row).split() for row in rows] == [
        line.split() for i, line in enumerate(str(records).splitlines()) if i != 1
    ]


def test_the_html_table_is_escaped_and_needs_nothing_from_elsewhere(records):
    nasty = replace(records[1], name="<script>alert(1)</script>", role='a"b', note="x < y & z")
    text = SpectrumRecords([nasty])._repr_html_()
    cells = Cells(text)
    assert cells.rows[1][0] == nasty.name and cells.rows[1][-1] == nasty.note
    assert {tag for tag, _ in cells.tags} == {"div", "style", "table", "thead", "tbody", "tr", "th", "td"}
    assert all(set(attributes) <= {"class"} for _, attributes in cells.tags)
    assert not any(word in text for word in ("http", "url(", "@import", "#"))  # "#": no colour of its own


def test_pandas_gets_every_field_of_every_record(records):
    frame = records.to_pandas()
    assert list(frame.columns) == [field.name for field in fields(SpectrumRecord)] and len(frame) == len(records)
    for record, row in zip(records, frame.to_dict("records"), strict=True):
        assert {k: None if v != v else v for k, v in row.items()} == asdict(record)


def test_columns_are_of_one_kind_whatever_the_records():
    kinds = analyze(block_model()).to_pandas().dtypes
    for records in (SpectrumRecords(), many(2)):
        frame = records.to_pandas()
        assert frame.dtypes["alpha"] == frame.dtypes["grad_norm"] == kinds["grad_norm"] == np.float64
        assert frame.dtypes["parameters"] == np.int64 and list(frame.columns) == list(kinds.index)


@pytest.mark.parametrize(("package", "use"), [("pandas", lambda r: r.to_pandas()), ("matplotlib", lambda r: r.plot())])
def test_a_package_that_is_missing_is_named_in_one_line_with_what_to_install(monkeypatch, package, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^\w+\(\) needs {package}: pip install {package}$"):
        use(many(2))


def test_every_figure_of_the_command_can_be_drawn():
    drawn = {name for name in vars(analysis_output) if name.startswith(("alpha_", "spectra_"))} - {"alpha_changes"}
    assert drawn == set(FIGURES)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_shows_itself_in_a_notebook_and_leaves_the_users_style(records, other, figure):
    before = dict(matplotlib.rcParams)
    options = {"other": other} if figure == "alpha_change" else {"role": "fc1"} if figure == "spectra_of_role" else {}
    drawn = records.plot(figure, **options)
    assert dict(matplotlib.rcParams) == before
    assert pickle.loads(pickle.dumps(drawn))._repr_png_().startswith(b"\x89PNG")
    sizes = {label.get_size() for ax in drawn.axes for label in (*ax.get_xticklabels(), *ax.get_yticklabels())}
    assert sizes <= {6.0, 7.0}, "ticks have print size when drawn outside its style"


def test_models_are_compared_under_their_labels(records, other):
    beside = records.plot("alpha_by_role", other, labels=("before", "after"))
    assert [text.get_text() for text in beside.legends[0].get_texts()] == ["before", "after"]
    changed = records.plot("alpha_change", other, labels=("before", "after"))
    assert any(ax.get_ylabel().endswith("from after") for ax in changed.axes)
    texts = [text.get_text() for text in changed.axes[0].texts]
    theirs = {record.name: record.alpha for record in other}
    assert texts == [f"{r.alpha - theirs[r.name]:+.2f}" for r in records if r.alpha is not None]


def test_a_role_with_more_than_24_modules_has_more_pages():
    found = many(25)
    eigs = np.linspace(0.1, 1.0, 64)
    records = SpectrumRecords((replace(r, frobenius_norm=1.0) for r in found), {r.name: eigs for r in found})
    second = records.plot("spectra_of_role", page=2)  # the only role need not be named
    assert [ax.get_title() for ax in second.axes] == ["layers.24"]
    with pytest.raises(ValueError, match="^page=3: fc has 2 pages"):
        records.plot("spectra_of_role", page=3)


OTHERS = "choose from alpha_by_depth, alpha_by_role, alpha_change"
REFUSED = {
    "unknown": ({"figure": "alpha"}, "figure='alpha' is unknown; choose from " + ", ".join(FIGURES)),
    "no other": ({"figure": "alpha_change"}, "figure='alpha_change' needs other=.*; without, choose from alpha_by"),
    "no role": ({"figure": "spectra_of_role"}, "role= is missing; choose from proj, fc1, fc2"),
    "bad role": ({"figure": "spectra_of_role", "role": "qkv"}, "role= 'qkv' is unknown; choose from proj, fc1, fc2"),
    "no page": ({"figure": "spectra_of_role", "role": "fc1", "page": 0}, "page=0: fc1 has 1 page"),
    "idle role": ({"role": "fc1"}, "role= is not used by figure='alpha_by_depth', only by spectra_of_role"),
    "idle page": ({"page": 2}, "page= is not used by figure='alpha_by_depth', only by spectra_of_role"),
    "idle other": ({"other": []}, "other= is not used by figure='alpha_by_depth', only by alpha_change and"),
    "strangers": ({"figure": "alpha_change", "other": many(2)}, "other= has none of these modules"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_one_line_that_names_the_argument(records, case):
    options, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as error:
        records.plot(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("figure", ["spectra_by_role", "spectra_of_role"])
def test_missing_eigenvalues_are_said_to_be_missing(records, figure):
    part = SpectrumRecords(list(records), {name: records.spectra[name] for name in MEASURED[:4]})
    for kept, lacking in ((part, "2 of 6"), (SpectrumRecords(list(records)), "6 of 6")):
        with pytest.raises(ValueError, match=rf"^figure='{figure}' needs eigenvalues, which {lacking} .*{OTHERS}$"):
            kept.plot(figure)
    with pytest.raises(ValueError, match="and no matrix was measured$"):
        records[:1].plot(figure)


def test_labels_tell_two_models_apart(records, other):
    with pytest.raises(ValueError, match="labels=.* are the same"):
        records.plot("alpha_by_role", other, labels=("a", "a"))
