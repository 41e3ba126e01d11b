"""The break-even density, above which dense attention is faster than these kernels, from measured times.

    python -m longspan.analysis.break_even experiments/attention_speed/gpu.jsonl

writes ``break_even.json`` beside this file, with one row per measured architecture, block and head dimension.
The time of the kernels divided by that of torch's dense attention (the faster of cuDNN and flash, causal if
the pattern is), forward and backward, is close to a linear function of the share of kept token pairs. The row
holds the share at which the least-squares line is 1.
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
        block: tokens per block.
        head_dim: dimension of a head.
        density: share of the allowed token pairs above which dense attention is faster; 1 if it never is.
        measured_to: largest measured share; a larger ``density`` is extrapolated.
        cells: number of measured cells.
        lengths: measured sequence lengths in tokens.
        devices: names of the measured devices.

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
    """Fit the measured cells of ``experiments/attention_speed``; groups with a single share are skipped.

    Args:
        records: one per cell, in the form of ``gpu.jsonl``; the last one of a repeated cell counts.

    Raises:
        ValueError: the architecture of a device is unknown.

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
        shares, times, cell_records = zip(*group.values(), strict=True)
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
                tuple(sorted({record["length"] for record in cell_records})),
                tuple(sorted({record["device"] for record in cell_records})),
            )
        )
    return rows


def look_up(architecture: Any, block: int, head_dim: int) -> BreakEven | None:
    """Return the row of the committed table, or None if there is no measurement."""
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
    """Return the compute capability of a device by its name; raise ValueError for an unknown device."""
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
    """Return the mean of the rounds, or None if there are none or one failed."""
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
    """Return the text of the committed file, one line per row."""
    lines = ",\n  ".join(json.dumps(asdict(row)) for row in rows)
    return f'{{"rows": [\n  {lines}\n]}}\n'


if __name__ == "__main__":
    main(sys.argv[1:])
