"""The counts of docs/reliability.md are what the commands beside them collect."""

import re

import pytest
from forked import forked
from tiny import ROOT

ROWS = [line.split(" | ") for line in (ROOT / "docs/reliability.md").read_text().splitlines() if "`pytest " in line]
COLLECT = """
import sys, pytest
sys.exit(pytest.main(["--collect-only", "-q", "-W", "ignore", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def counts():
    """Of each command: how many tests the page says, whether it says "over", the files, and the words after -k."""
    for _, times, _, commands, _ in ROWS:
        for said, command in zip(times.split("; "), commands.split("; "), strict=True):
            if command.startswith("`pytest "):
                files, _, words = command.strip("`").removeprefix("pytest ").partition(" -k ")
                yield int(re.search(r"\d+", said)[0]), "over" in said, files.split(), words.strip('"').split(" or ")


@pytest.mark.slow
def test_every_count_of_tests_is_what_its_command_collects(tmp_path):
    program, said = tmp_path / "collect.py", list(counts())
    program.write_text(COLLECT)
    done = forked(1, *sorted({file for _, _, files, _ in said for file in files}), program=program)
    assert len(said) == 20 and done.returncode == 0, done.stdout[-2000:]
    for count, over, files, words in said:
        tests = [line for line in done.stdout.splitlines() if line.partition("::")[0] in files]
        found = sum(any(word in test for word in words) for test in tests)
        assert found > count if over else found == count, f"{files} -k {words} collects {found}, not {count}"
