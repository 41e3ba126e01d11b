"""A drawing of bits per byte by position: before and after training, and of rotary positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plan import METHODS, ROTARY, Scale

LABELS = {"truncate-and-normal": "drawn"}


def draw(records: list[dict[str, Any]], scale: Scale, path: Path) -> bool:
    """Draw the smallest factor under BSLongformer; gives False where a cell is missing."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = {tuple(record["cell"].values()): record for record in records}
    factor = scale.factors[0]
    learned = [("extended", factor, "bslongformer", method) for method in METHODS]
    scratch = ("scratch", factor, "bslongformer")
    rotary = [("rotary", factor, method) for method in ROTARY]
    if not all(cell in found for cell in (*learned, scratch, *rotary, ("short",), ("rotary-short",))):
        return False
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", sharey=True)
    for ax, when, title in zip(
        axes,
        ("before", "after"),
        ("positions extended, no training", f"{scale.more} steps later"),
        strict=False,
    ):
        for number, cell in enumerate(learned):
            _line(ax, found[cell][when], LABELS.get(cell[3], cell[3]), f"C{number}")
        if when == "after":
            _line(ax, found[scratch][when], "from scratch", "0.55")
        ax.axhline(found["short",]["before"]["bits_per_byte"], color="k", linestyle=":", linewidth=1)
        ax.set_title(f"{scale.architecture}, {scale.objective}, BSLongformer: {title}", fontsize=9)
    for number, cell in enumerate(rotary):
        _line(axes[2], found[cell]["before"], cell[2], f"C{number + 5}")
    axes[2].axhline(found["rotary-short",]["before"]["bits_per_byte"], color="k", linestyle=":", linewidth=1)
    axes[2].set_title("llama, clm, full attention: rotary, no training", fontsize=9)
    for ax in axes:
        ax.axvline(scale.trained, color="0.8", linewidth=0.8, zorder=0)
        ax.set_xlabel("position")
        ax.legend(fontsize=8, title="dotted: the short model", title_fontsize=7)
    axes[0].set_ylabel("bits per byte")
    axes[0].set_ylim(bottom=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _line(ax: Any, measured: dict[str, Any], label: str, color: str) -> None:
    values, bucket = measured["by_position"], measured["bucket"]
    ax.plot([(place + 0.5) * bucket for place in range(len(values))], values, color=color, label=label)
