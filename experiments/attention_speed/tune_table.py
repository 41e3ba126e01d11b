"""What `tune.py` has measured: its lines, and the table of the fastest sizes that they give."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longspan_kernels.triton_backend import kernel_configs
from longspan_kernels.triton_backend.kernel_configs import ConfigKey, KernelConfig, KernelConfigs

KERNELS = ("forward", "queries", "keys")


def name_of(kernel: str, dim: int, block: int, size: KernelConfig) -> tuple[Any, ...]:
    """Name a measurement, as `name_of_record` does from its line."""
    return kernel, dim, block, *dataclasses.astuple(size)


def name_of_record(record: dict[str, Any]) -> tuple[Any, ...]:
    """Name what a line has measured."""
    return name_of(record["kernel"], record["dim"], record["block"], KernelConfig(**record["size"]))


def load(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines, but for a last one that a run was cut off in."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number + 1 < len(lines):
                raise ValueError(f"{path}: line {number + 1} is no JSON") from None
    return records


def append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append JSON lines, after ending a line that a run was cut off in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and (text := path.read_text()) and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def ratios(records: Sequence[dict[str, Any]]) -> dict[tuple[ConfigKey, str], dict[KernelConfig, float]]:
    """Give the time of each size over the base's, by kind and kernel.

    Geometric mean over patterns and blocks. A size that was not timed, or has failed, with some block of its
    kind that others were timed with is left out.
    """
    measured: dict[tuple[ConfigKey, str], dict[KernelConfig, dict[int, float]]] = {}
    blocks: dict[tuple[ConfigKey, str], set[int]] = {}
    for record in records:
        place = kernel_configs.config_key(record["dim"], record["block"]), record["kernel"]
        blocks.setdefault(place, set()).add(record["block"])
        if "error" in record or not record["base_ms"]:
            continue
        logs = [math.log(ms / record["base_ms"][name]) for name, ms in record["ms"].items()]
        size = KernelConfig(**record["size"])
        measured.setdefault(place, {}).setdefault(size, {})[record["block"]] = statistics.fmean(logs)
    return {
        place: {
            size: math.exp(statistics.fmean(by_block.values()))
            for size, by_block in sizes.items()
            if by_block.keys() == blocks[place]
        }
        for place, sizes in measured.items()
    }


def literal(size: KernelConfig) -> str:
    """Write a size as Python."""
    numbers = [size.q_tile, size.k_tile, size.stages, size.warps]
    return (
        f"KernelConfig({', '.join(map(str, numbers + ([] if size.registers is None else [size.registers])))})"
    )


def table(records: Sequence[dict[str, Any]]) -> str:
    """Write the fastest sizes: the rows of the table in `kernel_configs.py`, and what they gain, in Markdown.

    Of one GPU, version and source alone, those of the last line. A kernel that was not timed keeps the size
    of the table that is nearest to the architecture.

    """
    if not records:
        return "nothing measured yet"
    fields = ("device", "architecture", "versions", "source")
    last = {name: records[-1][name] for name in fields}
    mine = [record for record in records if all(record[name] == last[name] for name in fields)]
    architecture = last["architecture"]
    architecture = tuple(architecture) if isinstance(architecture, list) else architecture
    found = ratios(mine)
    versions = ", ".join(f"{name} {value}" for name, value in last["versions"].items())
    lines = [f"# {last['device']}; {versions}; sources {last['source']}; {records[-1]['date']}."]
    if len(mine) < len(records):
        lines.append(f"# Left out as of other GPUs, versions or sources: {len(records) - len(mine)} lines.")
    lines.append(f"{architecture!r}: {{")
    rows = []
    for kind in sorted({kind for kind, _ in found}, key=lambda one: (one.dim, one.block)):
        sizes = kernel_configs.nearest_configs(architecture, kind)
        for kernel in KERNELS:
            timed = found.get((kind, kernel))
            if not timed:
                continue
            best = min(timed, key=lambda size, timed=timed: timed[size])
            sizes = dataclasses.replace(sizes, **{kernel: best})
            blocks = f"from {kind.block}" if kind.block == kernel_configs.BLOCKS[-1] else kind.block
            rows.append(
                f"| {kernel} | {kind.dim} | {blocks} | `{literal(best)}` | {timed[best]:.3f} | {len(timed)} |"
            )
        four = ", ".join(literal(getattr(sizes, one.name)) for one in dataclasses.fields(KernelConfigs))
        lines.append(f"    {kind!r}: KernelConfigs({four}),")
    lines += [
        "}",
        "",
        "| kernel | head dimension | block | fastest | time over the base's | sizes timed |",
        "| --- | ---: | --- | --- | ---: | ---: |",
        *rows,
    ]
    return "\n".join(lines)
