"""The comparison of patterns, at a size of seconds: cut in the middle, gone on with, reported."""

import json
import runpy
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "pattern_comparison"
CELLS = [f"{objective}/{pattern}/0" for pattern in ("dense", "bigbird") for objective in ("clm", "mlm")]


@pytest.fixture
def run(warm_python):
    def command(out, *options):
        line = [warm_python, str(FOLDER / "study.py"), "--scale", "tiny", "--out", str(out), *options]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return command


def test_every_pattern_of_the_plan_is_an_option_of_train():
    plan = runpy.run_path(str(FOLDER / "plan.py"), run_name="plan_of_patterns")
    options = {path.stem for path in (FOLDER.parents[1] / "conf" / "sparsity").glob("*.yaml")}
    assert set(plan["PATTERNS"]) <= options
    assert len(set(plan["PATTERNS"]) - {"dense"}) >= 6
    assert plan["GPU"].seq_len == 8192
    assert len(plan["trainings"](plan["GPU"])) == 2 * 3 * len(plan["PATTERNS"])


@pytest.mark.slow
def test_the_study_is_made_cut_and_gone_on_with(run, tmp_path):
    (tmp_path / "README.md").write_text("before\n<!-- tiny: begin -->\nold\n<!-- tiny: end -->\nafter\n")
    run(tmp_path, "--no-report", "--processes", "1")
    lines = (tmp_path / "tiny.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["name"] for record in records] == CELLS
    alone = json.loads((tmp_path / "tiny_alone.json").read_text())
    assert set(alone) == {f"{o}/{p}/alone" for o in ("clm", "mlm") for p in ("dense", "bigbird")}
    for record in records:
        result = record["result"]
        timed = alone[record["name"].rpartition("/")[0] + "/alone"]
        assert result["throughput"] == timed["throughput"]
        assert result["tokens"] == 4 * 2 * 128
        assert [point["step"] for point in record["curves"]["val"]] == [2, 4]
        assert record["curves"]["val"][-1]["seconds"] == pytest.approx(
            4 * timed["throughput"]["step_seconds"]
        )
        assert record["curves"]["val"][-1]["flops"] == result["cost"]["flops"] > 0
        assert record["evaluation"]["by_position"]
    assert str(tmp_path) not in (tmp_path / "tiny.jsonl").read_text()

    # Cut before its last run was kept: that alone is read again from its folder, and trained no further.
    (tmp_path / "tiny.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    printed = run(tmp_path)
    again = [json.loads(line) for line in (tmp_path / "tiny.jsonl").read_text().splitlines()]
    assert [record["name"] for record in again] == CELLS
    assert again[-1]["result"]["metrics"] == records[-1]["result"]["metrics"]
    assert again[:-1] == records[:-1]
    assert [line for line in printed.splitlines() if line.startswith(("clm/", "mlm/"))] == [
        f"{CELLS[-1]}: {records[-1]['result']['metrics']['val_loss']:.4f} nats a token"
    ]
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!-- tiny: begin -->\n2")
    assert readme.endswith("<!-- tiny: end -->\nafter\n")
    assert readme.count("| bigbird |") == 4
    assert "old" not in readme
    assert "Speed and memory are those of a run of 5 steps" in readme
    for figure in ("loss", "differences", "tradeoffs_val_loss", "evaluation"):
        for objective in ("clm", "mlm"):
            name = f"tiny/{objective}_python_source_128_{figure}.png"
            assert f"({name})" in readme
            assert (tmp_path / name).is_file()
    assert (tmp_path / "tiny" / "comparison.html").is_file()
