"""The density above which dense attention is faster than these kernels, from measured times.

    python -m longspan.analysis.break_even experiments/attention_speed/gpu.jsonl

writes ``break_even.json`` beside this file, a row for each architecture, block and head dimension that was
measured. The kernels' time over that of torch's dense attention (the faster of cuDNN and flash, causal where
the pattern is), forward and backward, is close to a straight line in the share of the pairs of tokens that
are kept. The row holds where the line that fits the cells best crosses 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

TABLE = Path(__file__).with_name("break_even.json")
# Part of a device's name -> its architecture, as longspan_kernels.triton_backend.kernel_configs names it.
ARCHITECTURES = {"H100": (9, 0), "H200": (9, 0), "GH200": (9, 0), "A100": (8, 0), "B200": (10, 0)}


@dataclass(frozen=True)
class BreakEven:
    """The break-even density of one architecture, block and head dimension, in bfloat16.

    Attributes:
        architecture: compute capability.
        block: tokens a block.
        head_dim: dimension of a head.
        density: share of the pairs of tokens that causality allows, above which dense attention is faster; at
            most 1, which means that it never is.
        measured_to: the largest share that was measured; a larger ``density`` is extrapolated.
        cells: number of measured cells.
        lengths: tokens of their sequences.
        devices: what they were measured on.

    """

    architecture: tuple[int, int]
    block: int
    head_dim: int
    density: float
    measured_to: float
    cells: int
    lengths: tuple[int, ...]
    devices: tuple[str, ...]


def compute(records: Iterable[Mapping[str, Any]]) -> list[BreakEven]:
    """Fit the measured cells of ``experiments/attention_speed``; what was measured at one share is left out.

    Args:
        records: one a cell, as ``gpu.jsonl`` holds them; of a cell that occurs twice the last counts.

    Raises:
        ValueError: a device whose architecture is not known here.

    """
    cells: dict[tuple[Any, ...], dict[str, tuple[float, float, Mapping[str, Any]]]] = {}
    for record in records:
        longspan, dense = _milliseconds(record["longspan"]), _dense_milliseconds(record)
        if longspan is None or dense is None:
            continue
        key = (architecture_of_name(record["device"]), record["block"], record["dim"])
        cells.setdefault(key, {})[record["cell"]] = (_share_kept(record), longspan / dense, record)
    rows = []
    for (architecture, block, head_dim), group in sorted(cells.items()):
        shares, times, of_cells = zip(*group.values(), strict=True)
        if len(set(shares)) < 2:
            continue
        slope, start = np.polyfit(shares, times, 1)
        if slope <= 0:
            continue
        rows.append(
            BreakEven(
                architecture,
                block,
                head_dim,
                round(min(1.0, max(0.0, (1 - start) / slope)), 4),
                round(max(shares), 4),
                len(shares),
                tuple(sorted({record["length"] for record in of_cells})),
                tuple(sorted({record["device"] for record in of_cells})),
            )
        )
    return rows


def look_up(architecture: Any, block: int, head_dim: int) -> BreakEven | None:
    """Find the row of the committed table; None where nothing was measured, so that nothing is guessed."""
    for row in table():
        if (row.architecture, row.block, row.head_dim) == (architecture, block, head_dim):
            return row
    return None


def table(path: Path = TABLE) -> list[BreakEven]:
    """Read the committed table."""
    rows = json.loads(path.read_text())["rows"]
    tuples = ("architecture", "lengths", "devices")
    return [BreakEven(**{**row, **{name: tuple(row[name]) for name in tuples}}) for row in rows]


def architecture_of_name(device: str) -> tuple[int, int]:
    """Compute capability of a device by its name; raises ValueError for one that is not known here."""
    for part, architecture in ARCHITECTURES.items():
        if part in device:
            return architecture
    raise ValueError(
        f"device must be one of {', '.join(ARCHITECTURES)}, got {device!r}: add its architecture"
    )


def _share_kept(record: Mapping[str, Any]) -> float:
    length = record["length"]
    pairs = length * (length + 1) // 2 if record["causal"] else length**2
    return record["forward_flops"] / (4 * record["dim"] * record["heads"] * record["batch"] * pairs)


def _dense_milliseconds(record: Mapping[str, Any]) -> float | None:
    times = [_milliseconds(one) for one in record["dense"].values()]
    return min((one for one in times if one is not None), default=None)


def _milliseconds(timed: Mapping[str, Any]) -> float | None:
    """Mean of the rounds, None where there are none or one failed."""
    return fmean(timed["both_ms"]) if timed.get("both_ms") and "failed" not in timed else None


def main(arguments: list[str]) -> None:
    """Write the table from a file of measured cells."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m longspan.analysis.break_even CELLS.jsonl")
    lines = Path(arguments[0]).read_text().splitlines()
    rows = compute(json.loads(line) for line in lines)
    TABLE.write_text(as_json(rows))
    for row in rows:
        print(f"{row.architecture} blocks of {row.block}, heads of {row.head_dim}: {row.density:.1%}")


def as_json(rows: list[BreakEven]) -> str:
    """Write the rows as the committed file holds them, a line each."""
    lines = ",\n  ".join(json.dumps(asdict(row)) for row in rows)
    return f'{{"rows": [\n  {lines}\n]}}\n'


if __name__ == "__main__":
    main(sys.argv[1:])
