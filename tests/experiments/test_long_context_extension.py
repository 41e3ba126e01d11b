"""The extension experiment, at a size of seconds: every cell, once, and again from where it stopped."""

import json
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "long_context_extension"


@pytest.fixture
def run(warm_python):
    def command(out, *options):
        line = [warm_python, str(FOLDER / "extend.py"), "--scale", "tiny", "--out", str(out), *options]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return command


@pytest.mark.slow
def test_every_cell_once(run, tmp_path):
    (tmp_path / "README.md").write_text("before\n<!-- tiny: begin -->\nold\n<!-- tiny: end -->\nafter\n")
    run(tmp_path)
    lines = (tmp_path / "tiny.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    kinds = {record["cell"]["kind"] for record in records}
    assert kinds == {"short", "extended", "scratch", "untrained", "rotary-short", "rotary"}
    for record in records:
        measured = [record[when] for when in ("before", "after") if when in record]
        assert measured
        # A byte has eight bits, and a model of some steps little less to say of it.
        assert all(5 < one["bits_per_byte"] < 9 for one in measured), record
        length = 128 * record["cell"].get("factor", 1)
        assert all(len(one["by_position"]) * 128 == length for one in measured)
    tiled = [r for r in records if r["cell"].get("method") == "tile" and "warned" in r]
    warned = {record["cell"]["pattern"]: record["warned"] for record in tiled}
    assert warned["full attention"]
    assert not warned["local_sliding_window"]

    # Cut in the middle of a sweep, it goes on with what is missing.
    (tmp_path / "tiny.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    printed = run(tmp_path)
    again = (tmp_path / "tiny.jsonl").read_text().splitlines()
    assert again[:-1] == lines[:-1]
    assert json.loads(again[-1])["cell"] == records[-1]["cell"]
    assert printed.count('"cell"') == 1
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!-- tiny: begin -->\n2")
    assert readme.endswith("<!-- tiny: end -->\nafter\n")
    assert readme.count("| bigbird |") == 5
    assert "old" not in readme
    assert run(tmp_path, "--table").startswith("20")
