"""Reads the file of an offline run of Weights & Biases: protocol buffers in LevelDB's format of logs."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7


@dataclass
class OfflineRun:
    """What was logged."""

    name: str = ""
    group: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of a `.wandb` file; its checksums are checked."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = HEADER, b""
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # no room for a header: padding
            position += left
            continue
        checksum, length = (
            int.from_bytes(data[position : position + 4], "little"),
            data[position + 4 : position + 6],
        )
        kind = data[position + 6]
        end = position + HEADER + int.from_bytes(length, "little")
        assert zlib.crc32(data[position + 6 : end]) == checksum
        parts += data[position + HEADER : end]
        position = end
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read(run_dir: Path) -> OfflineRun:
    """Read the one offline run below a run's directory."""
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    run = OfflineRun()
    for record in records(path):
        if record.HasField("run"):
            run.name, run.group, run.project = (
                record.run.display_name,
                record.run.run_group,
                record.run.project,
            )
            run.tags = list(record.run.tags)
            _update(run.config, record.run.config.update)
        elif record.HasField("config"):
            _update(run.config, record.config.update)
        elif record.HasField("summary"):
            _update(run.summary, record.summary.update)
        elif record.HasField("history"):
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            run.history.append(row)
            run.summary.update(row)
        elif record.HasField("exit"):
            run.exit_code = record.exit.exit_code
    return run


def _update(into: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = into
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
