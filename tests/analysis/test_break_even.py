"""The break-even densities are those of the measured cells, and of nothing else."""

import json
from pathlib import Path

import pytest

from longspan.analysis import break_even

CELLS = Path(__file__).parents[2] / "experiments" / "attention_speed" / "gpu.jsonl"


def cell(name, share, longspan_ms, dense_ms, *, block=64, causal=False, device="NVIDIA H100", dim=64):
    length, heads, batch = 1024, 2, 3
    pairs = length * (length + 1) // 2 if causal else length**2
    return {
        "cell": name,
        "device": device,
        "block": block,
        "dim": dim,
        "heads": heads,
        "batch": batch,
        "length": length,
        "causal": causal,
        "forward_flops": 4 * dim * heads * batch * share * pairs,
        "longspan": {"both_ms": [longspan_ms - 1, longspan_ms + 1]},
        "dense": {"flash": {"both_ms": [2 * dense_ms]}, "cudnn": {"both_ms": [dense_ms]}},
    }


def test_the_committed_table_is_that_of_the_committed_cells():
    records = [json.loads(line) for line in CELLS.read_text().splitlines()]
    command = "python -m longspan.analysis.break_even experiments/attention_speed/gpu.jsonl"
    assert break_even.TABLE.read_text() == break_even.as_json(break_even.compute(records)), f"run {command}"
    assert break_even.table() == break_even.compute(records)


def test_no_measured_cell_contradicts_the_committed_table():
    seen = 0
    for line in CELLS.read_text().splitlines():
        record = json.loads(line)
        row = break_even.look_up((9, 0), record["block"], record["dim"])
        pairs = record["length"] * (record["length"] + 1) / 2 if record["causal"] else record["length"] ** 2
        share = record["forward_flops"] / (4 * record["dim"] * record["heads"] * record["batch"] * pairs)
        ours = sum(record["longspan"]["both_ms"]) / 3
        dense = min(sum(one["both_ms"]) / 3 for one in record["dense"].values())
        assert row is not None
        assert (share > row.density) == (ours > dense), record["cell"]
        seen += ours > dense
    assert seen, "a cell in which dense attention is faster, or the test holds nothing"


def test_the_line_through_the_cells_crosses_one_at_the_break_even():
    # 0.1 + 1.2 share: 1 at 0.75; causal cells count by the pairs that they may keep.
    records = [cell(str(share), share, 100 * (0.1 + 1.2 * share), 100) for share in (0.1, 0.5)]
    records.append(cell("causal", 1.0, 100 * 1.3, 100, causal=True))
    (row,) = break_even.compute(records)
    assert row.density == pytest.approx(0.75, abs=1e-4)
    assert (row.measured_to, row.cells, row.lengths) == (1.0, 3, (1024,))
    # The last record of a cell counts.
    (again,) = break_even.compute([cell("0.1", 0.1, 900, 100), *records])
    assert again == row


def test_faster_throughout_is_one_and_what_cannot_be_fitted_is_left_out():
    (row,) = break_even.compute([cell("a", 0.1, 10, 100), cell("b", 1.0, 90, 100)])
    assert row.density == 1.0
    assert break_even.compute([cell("a", 0.1, 10, 100), cell("b", 0.1, 11, 100)]) == []
    failed = cell("c", 0.9, 50, 100)
    failed["longspan"] = {"failed": "out of memory"}
    assert break_even.compute([cell("a", 0.1, 10, 100), failed]) == []


def test_nothing_is_said_of_what_was_not_measured():
    assert break_even.look_up((9, 0), 64, 64) is not None
    assert break_even.look_up((8, 0), 64, 64) is None
    assert break_even.look_up((9, 0), 64, 48) is None
    assert break_even.look_up((9, 0), 48, 64) is None
    assert break_even.look_up(None, 64, 64) is None
    with pytest.raises(ValueError, match="got 'Radeon'"):
        break_even.compute([cell("a", 0.1, 10, 100, device="Radeon")])


def test_the_command_writes_the_table(tmp_path, monkeypatch, capsys):
    cells = tmp_path / "cells.jsonl"
    records = [cell("a", 0.1, 10, 100), cell("b", 1.0, 125, 100)]
    cells.write_text("\n".join(json.dumps(record) for record in records))
    monkeypatch.setattr(break_even, "TABLE", tmp_path / "table.json")
    break_even.main([str(cells)])
    assert break_even.table(tmp_path / "table.json") == break_even.compute(records)
    assert "blocks of 64, heads of 64: 80.4%" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="usage"):
        break_even.main([])
