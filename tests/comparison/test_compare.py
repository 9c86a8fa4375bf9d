"""compare.py as its users start it."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest
from sources import attributes_read
from tiny import ROOT

import compare
from runtime.errors import exit_status

TINY = """
seeds: [0, 1]
strategies:
  uniform: {decay: uniform}
  alphadecay: {decay: alphadecay}
domains:
  digits:
    program: main.py
    search: {weight_decay: [0.3]}
    options: {data_set: digits, input_size: 16, model: vit_tiny_patch16_224, drop_path: 0.1, batch_size: 240,
      model_kwargs: {patch_size: 8, embed_dim: 64, depth: 2, num_heads: 2}, epochs: EPOCHS, warmup_epochs: 1, lr: 1e-3,
      optimizer: adamw, decay_interval: 3, aa: none, num_workers: 0}
"""


@pytest.fixture
def grid(tmp_path):
    """Writes the tiny grid with a text in it replaced."""

    def write(old="EPOCHS", new="2"):
        path = tmp_path / "tiny.yaml"
        path.write_text(TINY.replace(old, new).replace("EPOCHS", "2"))
        return path

    return write


def call(*words, monkeypatch):
    """compare.py in this process; its runs are processes all the same."""
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, words)])
    return exit_status(compare.main)


def rows_of(folder):
    header, *rows = (line.split(",") for line in (folder / "report" / "results.csv").read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "error: give --preset (quick, smoke) or --config FILE"),
        (["--preset", "quick", "--config", "x.yaml"], "error: --config x.yaml: not together with --preset quick"),
        (["--preset", "quik"], "error: --preset quik: must be one of quick, smoke (did you mean quick?)"),
        (["--preset", "smoke", "--jobs", "0"], "error: --jobs 0: must be at least 1"),
        (["--preset", "smoke", "--submit", "slurm", "--jobs", "2"], "error: --jobs 2: with --submit"),
        (["--preset", "smoke", "--sedes", "2"], "error: unknown option --sedes"),
        (["--preset", "smoke", "--report_only"], "error: --output_dir "),
        (
            ["--preset", "smoke", "--report_only", "--retry_failed"],
            "error: --retry_failed true: not together with --report_only",
        ),
        (["--config", "nowhere.yaml"], "error: --config nowhere.yaml: cannot be read"),
    ],
)
def test_a_bad_command_line_is_one_line_and_writes_nothing(words, said, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    assert call(*words, "--output_dir", folder, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1 and not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr: 1e-3", "lr: -1", "run digits/uniform/weight_decay=0.3/seed0: --lr -1.0: must be above 0"),
        ("optimizer: adamw", "optimiser: adamw", "unknown option --optimiser; did you mean --optimizer?"),
        ("vit_tiny_patch16_224", "vit_tinny", "run digits/alphadecay/weight_decay=0.3/seed0: --model vit_tinny"),
        ("optimizer: adamw", "optimizer: adamwww", "timm has no such optimizer; close: adamw"),
        ("embed_dim: 64", "embed_dim: 32", "--decay alphadecay: "),
    ],
)
def test_what_no_run_could_do_is_said_before_any_starts(old, new, said, grid, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    assert call("--config", grid(old, new), "--output_dir", folder, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1 and not folder.exists()


def test_without_its_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("runtime.extras.find_spec", lambda name: None if name == "rich" else object())
    assert call("--preset", "smoke", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "error: compare.py needs rich: pip install '.[compare]'\n"


def test_a_dry_run_lists_the_runs_with_commands_that_work_and_writes_nothing(grid, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    assert call("--config", grid(), "--output_dir", folder, "--dry_run", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert said.count("(waiting)") == 4 and "4 runs in 1 settings: digits" in said and not folder.exists()
    command = said.splitlines()[1].split()
    assert command[1] == str(ROOT / "main.py") and command[-4] == "--output_dir"


@pytest.mark.slow
def test_an_output_folder_that_cannot_be_made_is_one_line(grid, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    words = ("--config", grid(), "--output_dir", tmp_path / "file" / "out")
    assert call(*words, monkeypatch=monkeypatch) == 2
    assert "error: --output_dir" in capsys.readouterr().err


def test_a_comparison_goes_on_from_the_file_it_kept(grid, tmp_path):
    described = compare.read_grid(grid())
    compare.keep_source(described, tmp_path)
    kept = tmp_path / "grid.yaml"
    compare.keep_source(compare.read_grid(kept), tmp_path)
    assert kept.read_bytes() == described.source.read_bytes()


def test_under_nohup_a_closed_terminal_ends_nothing(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with compare.ended_by_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_option_goes_unread():
    unread = {each.name for each in fields(compare.CompareOptions)} - attributes_read([ROOT / "compare.py"])
    assert unread == set()


def start(path, folder, *words):
    """compare.py, which Ctrl-C reaches even if the tests run in the background."""
    command = [sys.executable, "compare.py", "--config", str(path), "--output_dir", str(folder), *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def finish(call, seconds=600):
    """Its exit status and what it said."""
    output, _ = call.communicate(timeout=seconds)
    return call.returncode, output


def weights_of(folder):
    """The final weights of each run, as bytes, by run."""
    found = {}
    for path in sorted(folder.glob("runs/**/checkpoints/step_*/model.safetensors")):
        found[str(path.relative_to(folder).parents[2])] = path.read_bytes()  # the newest comes last
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("EPOCHS", "8"))
    assert finish(start(path, folder / "out", "--jobs", "2"))[0] == 0
    return folder / "out"


@pytest.mark.proof
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGKILL, signal.SIGINT],
    ids=lambda number: number.name,
)
def test_an_interrupted_comparison_goes_on_to_the_same_bits(number, whole, grid, tmp_path):
    path, folder = grid("EPOCHS", "8"), tmp_path / "out"
    first = start(path, folder, "--jobs", "1")
    for seed in (0, 1):  # the second run is under way
        log = folder / f"runs/digits/uniform/weight_decay=0.3/seed{seed}/log.jsonl"
        while not (log.exists() and log.read_text().count("\n") > 1):
            assert first.poll() is None
            time.sleep(0.05)
    first.send_signal(number)
    status, output = finish(first, 120)
    assert status == {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    if number != signal.SIGKILL:
        assert "the same command resumes them" in output and "Traceback" not in output
    kept = (folder / "runs/digits/uniform/weight_decay=0.3/seed0/summary.json").stat().st_mtime_ns
    status, output = finish(start(path, folder, "--jobs", "2"))
    assert status == 0 and "4 runs, 1 of them ended before" in output
    assert (folder / "runs/digits/uniform/weight_decay=0.3/seed0/summary.json").stat().st_mtime_ns == kept
    assert weights_of(folder) == weights_of(whole) and len(weights_of(whole)) == 4
    values = [(row["strategy"], row["seed"], row["value"]) for row in rows_of(whole)]
    assert [(row["strategy"], row["seed"], row["value"]) for row in rows_of(folder)] == values


@pytest.mark.slow
def test_failures_of_two_processes_are_told_apart_listed_and_only_retried_when_asked(grid, tmp_path):
    text = grid().read_text().replace("program: main.py", "program: main.py\n    processes: 2").replace("[0, 1]", "[0]")
    text = text.replace("{decay: alphadecay}", "{decay: alphadecay, lr: 1e30}").replace("lr: 1e-3,", "")
    path, folder = tmp_path / "two.yaml", tmp_path / "out"
    path.write_text(text.replace("batch_size: 240", "batch_size: 120"))
    status, output = finish(start(path, folder))
    assert status == 1 and "1 runs failed, 0 are not done; --retry_failed" in output
    assert output.count("failed: digits/alphadecay/weight_decay=0.3/seed") == 1 and "  | stopped: " in output
    states = [("uniform", "finished"), ("alphadecay", "diverged")]
    assert [(row["strategy"], row["state"]) for row in rows_of(folder)] == states
    finished, failed = (folder / f"runs/digits/{name}/weight_decay=0.3/seed0/output.txt" for name, _ in states)
    assert "--nproc_per_node=2" in finished.read_text() and "run folder" in finished.read_text()
    assert finish(start(path, folder, "--retry_failed"))[0] == 1
    assert [log.read_text().count("$ ") for log in (finished, failed)] == [1, 2]


@pytest.mark.proof
def test_the_smoke_preset_compares_all_strategies_in_both_domains(tmp_path):
    folder = tmp_path / "smoke"
    command = [sys.executable, "compare.py", "--preset", "smoke", "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    rows = rows_of(folder)
    assert {(row["domain"], row["state"]) for row in rows} == {("digits", "finished"), ("text", "finished")}
    assert len(rows) == 2 * (1 + 6 * 2) and len({row["strategy"] for row in rows}) == 7
    page = (folder / "report" / "report.html").read_text()
    assert all(row["strategy"] in page and row["strategy"] in done.stdout for row in rows)
    assert json.loads((folder / rows[0]["folder"] / "summary.json").read_text())["acc1"] == float(rows[0]["value"])
