"""compare.py: grids of strangers, and folders that it did not begin. Damaged runs: test_compare_damage.py."""

import copy

import yaml

from attacks.attack import BAD_JSON, Attack, put

GRID = {
    "strategies": {"uniform": {}},
    "domains": {"digits": {"program": "main.py", "options": {"data_set": "digits", "optimizer": "adamw"}}},
}
CALL = "--config {here}/grid.yaml --output_dir {here}/out --dry_run"
ESCAPE = "\x1b[2J"


def _grid(options=None, **top):
    grid = copy.deepcopy(GRID) | top
    grid["domains"]["digits"]["options"] |= options or {}
    return lambda here: put(here / "grid.yaml", yaml.safe_dump(grid))


def _raw(text: str | bytes):
    return lambda here: put(here / "grid.yaml", text)


ATTACKS = [
    *(Attack(f"grid: {kind}", "compare.py", CALL, "grid.yaml", _raw(content))
      for kind, content in BAD_JSON.items()),
    *(Attack(f"grid, option {name}: {value}", "compare.py", CALL, "run digits/uniform/seed0", _grid({name: value}))
      for name, value in (
          ("output_dir", "x"), ("output_dir=x", "y"), ("resume", "x"), ("config", "x"), ("overwrite", True),
          ("no_dry_run", True), ("--lr", 1), ("lr --overwrite", 1), ("cutmix_minmax", ["0", "1", "--overwrite"]),
          ("model_kwargs", {"--resume": "x"}), ("model_kwargs", ["-x"]), ("lr", None), ("lr", {"a": {"b": 1}}),
          ("nonsense", 1), ("lr", -1), ("lr", [1, 2]),
      )),
    Attack("grid, checkpoint_path", "compare.py", CALL, "model_kwargs",
           _grid({"model_kwargs": {"checkpoint_path": "evil.pt"}})),
    Attack("grid, an escape", "compare.py", CALL, "control character", _raw('title: "\\e[2J"\n')),
    Attack("grid, seeds", "compare.py", CALL, "seeds: has 2000", _grid(seeds=list(range(2000)))),
    Attack("grid, seeds beyond 64 bits", "compare.py", CALL, "64 bits", _grid(seeds=[2**64])),
    Attack("grid, seeds of text", "compare.py", CALL, "seeds", _grid(seeds=["0"])),
    Attack("grid, jobs that run commands", "compare.py", CALL, "slurm_setup", _grid(slurm={"slurm_setup": ["true"]})),
    Attack("grid, code", "compare.py", CALL, "constructor", _raw("title: !!python/object/apply:os.system ['true']\n")),
    Attack("grid, aliases", "compare.py", CALL, "after aliases are expanded",
           _raw("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
               f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)))),
    Attack("grid, a folder", "compare.py", CALL, "grid.yaml", lambda here: (here / "grid.yaml").mkdir()),
    Attack("grid, an endless file", "compare.py", CALL, "no regular file",
           lambda here: (here / "grid.yaml").symlink_to("/dev/zero")),
    Attack("grid, a long one", "compare.py", CALL, "longer than", _raw("a: " + "b" * 1_000_001)),
    Attack("grid, a long name", "compare.py", CALL, "makes no folder", _grid(strategies={"uniform": {},
             "n" * 300: {"decay": "awd"}})),
    Attack("grid, a name of dots", "compare.py", CALL, "makes no folder", _grid(strategies={"uniform": {},
             "..": {"decay": "awd"}})),
    Attack("no Slurm", "compare.py", CALL.replace("--dry_run", "--submit slurm"), "--submit slurm: ", _grid()),
    Attack("a comparison of nothing", "compare.py", CALL.replace("--dry_run", "--report_only"), "has no run",
             _grid()),
    Attack("a comparison in a file", "compare.py", CALL.replace("--dry_run", "--threads 1"),
           "is a file, or is inside one",
           lambda here: (_grid()(here), put(here / "out", ""))[0]),
    Attack("a run of another", "compare.py", CALL, "is not part of this comparison",
           lambda here: (_grid()(here), put(here / "out/runs/digits/uniform/seed0/config.json", "{}"))[0]),
    Attack("a run begun otherwise", "compare.py", CALL, "was begun with program",
           lambda here: (_grid()(here), put(here / "out/runs/digits/uniform/seed0/cell.json", {"program": ESCAPE}))[0]),
    Attack("no preset", "compare.py", "--preset nonsense", "--preset"),
    Attack("neither preset nor grid", "compare.py", "", "--preset"),
    Attack("no jobs", "compare.py", "--preset smoke --jobs 0", "--jobs"),
    Attack("jobs twice", "compare.py", "--preset smoke --submit slurm --jobs 3", "--jobs"),
]  # fmt: skip
