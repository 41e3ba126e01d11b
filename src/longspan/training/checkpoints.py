"""Finds the checkpoint that `ckpt_path` means."""

from __future__ import annotations

from pathlib import Path

from longspan.records.run_folder import CHECKPOINTS_FOLDER

# The names that may stand for a file.
NAMES = ("last", "best")


def resolve_checkpoint(ckpt_path: str | None, run_dir: str | Path, output_root: str | Path) -> Path | None:
    """Return the checkpoint to start from; None when `ckpt_path` is None.

    `last` and `best` are `checkpoints/last.ckpt` and `checkpoints/best.ckpt` of the run in `run_dir` where it
    has one, and otherwise the most recently written file of that name of the runs in `output_root`. Anything
    else is the path of a file, or of a run's directory, which stands for its last checkpoint.

    Args:
        ckpt_path: None, "last", "best", or a path.
        run_dir: the directory of the run that asks.
        output_root: the folder in which the runs lie, a folder each.

    Raises:
        FileNotFoundError: when there is no such checkpoint.

    """
    if ckpt_path is None:
        return None
    if ckpt_path in NAMES:
        own = Path(run_dir) / CHECKPOINTS_FOLDER / f"{ckpt_path}.ckpt"
        if own.is_file():
            return own
        found = list(Path(output_root).glob(f"*/{CHECKPOINTS_FOLDER}/{ckpt_path}.ckpt"))
        if not found:
            raise FileNotFoundError(
                f"ckpt_path={ckpt_path}: no {CHECKPOINTS_FOLDER}/{ckpt_path}.ckpt in {run_dir}, nor in any "
                f"run in {output_root}; train first, or give the path of a checkpoint"
            )
        return max(found, key=lambda path: path.stat().st_mtime_ns)
    path = Path(ckpt_path)
    if path.is_dir():
        path = path / CHECKPOINTS_FOLDER / "last.ckpt"
    if not path.is_file():
        raise FileNotFoundError(
            f"ckpt_path={ckpt_path}: there is no file {path}; give {', '.join(NAMES)}, the path of a "
            "checkpoint, or the directory of a run"
        )
    return path
