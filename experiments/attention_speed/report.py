"""What the measured cells say: derived figures, the targets, a table and two drawings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from suite import GLOBAL, PATTERNS, SMALL_WINDOW, quick

STEP = 3.5  # forward and backward take so many times the operations of the forward
Record = dict[str, Any]


def load(path: Path) -> list[Record]:
    """Read the records, the last of each cell, in the order of their first."""
    found: dict[str, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        found[record["cell"]] = record
    return list(found.values())


def mean_ms(one: Record | None, kind: str) -> float | None:
    """Mean of the rounds, None where there are none or a round failed."""
    if one is None or "failed" in one or not one.get(kind):
        return None
    return fmean(one[kind])


def best(group: dict[str, Record], kind: str) -> tuple[str, float] | None:
    """Return the fastest of a group and its time."""
    times = {name: mean_ms(one, kind) for name, one in group.items()}
    alive = [(name, ms) for name, ms in times.items() if ms is not None]
    return min(alive, key=lambda pair: pair[1], default=None)


def derive(record: Record) -> Record:
    """Figures of one cell: rates in TFLOP/s, speed-ups, fractions; None where a part is missing."""
    pairs = record["length"] * (record["length"] + 1) // 2 if record["causal"] else record["length"] ** 2
    dense_flops = 4 * record["dim"] * pairs * record["heads"] * record["batch"]
    found: Record = {"keys_per_query": record["density"] * record["length"]}
    for kind, factor in (("forward", 1.0), ("both", STEP)):
        mine = mean_ms(record["longspan"], f"{kind}_ms")
        flops = record["forward_flops"] * factor
        rival = best(record["flex"], f"{kind}_ms")
        # At a size of 16 the backward runs only after the compiler's list of configurations is replaced.
        public = best(
            {n: o for n, o in record["flex"].items() if kind == "forward" or n != "flex16"}, f"{kind}_ms"
        )
        full = best(record["dense"], f"{kind}_ms")
        cudnn = mean_ms(record["dense"].get("cudnn") or record["dense_of_shape"].get("cudnn"), f"{kind}_ms")
        rate = flops / mine / 1e9 if mine else None
        found[kind] = {
            "ms": mine,
            "tflops": rate,
            "flex": rival[0] if rival else None,
            "flex_ms": rival[1] if rival else None,
            "flex_tflops": flops / rival[1] / 1e9 if rival else None,
            "speedup": rival[1] / mine if rival and mine else None,
            "speedup_public": public[1] / mine if public and mine else None,
            "dense_ms": full[1] if full else None,
            "dense_speedup": full[1] / mine if full and mine else None,
            "of_cudnn": rate / (dense_flops * factor / cudnn / 1e9) if rate and cudnn else None,
        }
    forward = found["forward"]["ms"]
    if forward and record["copy_bandwidth"] and found["keys_per_query"] <= SMALL_WINDOW:
        # Each of query, key, value and context crosses the memory bus once.
        found["of_copy"] = record["io_bytes"] / (forward * 1e-3) / record["copy_bandwidth"]
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean."""
    return math.exp(fmean(math.log(value) for value in values))


def targets(records: list[Record]) -> list[tuple[str, str, str]]:
    """What has to be reached, and what was: (target, reached, cells)."""
    figures = [(record, derive(record)) for record in records]
    rows: list[tuple[str, str, str]] = []

    def say(
        text: str,
        goal: float,
        value: Callable[[Record, Record], float | None],
        chosen: Callable[[Record], bool],
        how: Callable[[Iterable[float]], float] = min,
    ) -> None:
        values = {r["cell"]: x for r, f in figures if chosen(r) and (x := value(r, f)) is not None}
        if values:
            low = sum(x < goal for x in values.values())
            which = f", {low} below; lowest {min(values, key=lambda name: values[name])}" if low else ""
            rows.append((f"{text}: {goal:g}", f"{how(values.values()):.2f}", f"{len(values)} cells{which}"))

    for kind, name in (("forward", "forward"), ("both", "forward and backward")):
        say(f"{name}: slowest cell against the best FlexAttention", 0.97,
            lambda r, f, kind=kind: f[kind]["speedup"], lambda r: True)  # fmt: skip
        say(f"{name}: geometric mean against the best FlexAttention", 1.6,
            lambda r, f, kind=kind: f[kind]["speedup"], lambda r: True, geometric_mean)  # fmt: skip
    both = lambda r, f: f["both"]["speedup"]  # noqa: E731
    say("global rows and columns, 64K tokens and more", 2.0, both,
        lambda r: r["pattern"] in GLOBAL and r["length"] >= 65536)  # fmt: skip
    say("block 16, all FlexAttention variants", 2.5, both, lambda r: r["block"] == 16)
    say("block 16, without replacing the compiler's list", 2.5,
        lambda r, f: f["both"]["speedup_public"], lambda r: r["block"] == 16)  # fmt: skip
    say("block 32", 2.0, both, lambda r: r["block"] == 32)
    for dim, goal in ((64, 0.85), (128, 0.7)):
        say(f"rate of cuDNN a kept operation, head {dim}, blocks 64 and 128, rows of 8 blocks and more", goal,
            lambda r, f: f["both"]["of_cudnn"],
            lambda r, dim=dim: r["dim"] == dim and r["block"] >= 64 and r["row_blocks"] >= 7.5)  # fmt: skip
    say("small windows, forward, of the bandwidth of a copy", 0.65, lambda r, f: f.get("of_copy"),
        lambda r: r["pattern"] == "local_sliding_window")  # fmt: skip
    return rows


def cell_text(value: float | None, form: str = "{:.2f}") -> str:
    """Show a number, or nothing."""
    return "" if value is None else form.format(value)


def table(records: list[Record], launch: Record | None) -> str:
    """Markdown: the machine, the targets, a row a cell."""
    first = records[-1]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines = [f"{first['date']}, {first['device']}; {versions}."]
    if first["copy_bandwidth"]:
        lines[0] += f" A copy reaches {first['copy_bandwidth'] / 1e12:.2f} TB/s."
    if launch:
        lines[0] += (
            f" Forward launch with a cached plan: {launch['longspan_us']:.0f} µs "
            f"({launch['longspan_no_grad_us']:.0f} µs without gradients; dense {launch['dense_us']:.0f} µs)."
        )
    rows = targets(records)
    if rows:
        lines += ["", "| target | reached | over |", "| --- | ---: | --- |"]
        lines += [f"| {text} | {value} | {over} |" for text, value, over in rows]
    lines += [
        "",
        "ms / TFLOP/s over kept pairs; ° held out of all tuning.",
        "",
        "| pattern | block | head | tokens | kept | forward | FlexAttention | speed-up "
        "| forward and backward | FlexAttention | speed-up "
        "| of cuDNN's rate | faster than dense | of a copy |",
        "| --- " + "| ---: " * 13 + "|",
    ]
    for record in records:
        figures = derive(record)
        cells = [
            record["pattern"] + (" °" if record["held_out"] else ""),
            str(record["block"]),
            str(record["dim"]),
            f"{record['length']:,}",
            f"{record['density']:.2%}",
        ]
        for kind in ("forward", "both"):
            one = figures[kind]
            cells.append(f"{one['ms']:.2f} / {one['tflops']:.0f}" if one["ms"] else "failed")
            rival = one["flex"] and f"{one['flex_ms']:.2f} / {one['flex_tflops']:.0f}"
            if rival and one["flex"] != f"flex{record['block']}":
                rival += f" (mask of {one['flex'].removeprefix('flex')})"
            cells += [rival or "", cell_text(one["speedup"], "{:.2f}x")]
        cells += [
            cell_text(figures["both"]["of_cudnn"]),
            cell_text(figures["both"]["dense_speedup"], "{:.1f}x"),
            cell_text(figures.get("of_copy")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short(records: list[Record]) -> list[Record]:
    """At most some forty rows for a README: of a long run, the cells of the quick one."""
    names = {cell.name for cell in quick()}
    return records if len(records) <= 40 else [record for record in records if record["cell"] in names]


def _draw_time(figures: list[tuple[Record, Record]], path: Path) -> Path:
    """Draw time against length, a drawing a head dimension of which there are several lengths."""
    import matplotlib.pyplot as plt

    measured = {(record["dim"], record["length"]) for record, _ in figures if record["block"] == 64}
    of_dims = [dim for dim, _ in sorted(measured or {(r["dim"], r["length"]) for r, _ in figures})]
    dims = [dim for dim in dict.fromkeys(of_dims) if of_dims.count(dim) > 2] or sorted(set(of_dims))
    figure, axes = plt.subplots(
        1, len(dims), figsize=(5.2 * len(dims), 4.2), layout="constrained", squeeze=False
    )
    for ax, dim in zip(axes[0], dims, strict=True):
        chosen = [(r, f) for r, f in figures if r["dim"] == dim and r["block"] == 64] or [
            (r, f) for r, f in figures if r["dim"] == dim
        ]
        shown = ("bigbird", "bslongformer", "local_sliding_window", "fixed", "dense")
        for number, pattern in enumerate(shown):
            one = [(r["length"], r["batch"], f["both"]) for r, f in chosen if r["pattern"] == pattern]
            one.sort(key=lambda point: point[0])
            for key, style in (("ms", "o-"), ("flex_ms", "x:")):
                points = [(length, both[key] / batch) for length, batch, both in one if both[key]]
                if points:
                    ax.plot(
                        *zip(*points, strict=True),
                        style,
                        color=f"C{number}",
                        label=pattern if key == "ms" else None,
                    )
        full = {
            r["length"]: f["both"]["dense_ms"] / r["batch"]
            for r, f in chosen
            if not r["causal"] and f["both"]["dense_ms"]
        }
        ax.plot(*(zip(*sorted(full.items()), strict=True) if full else ([], [])), "k--", label="torch, dense")
        ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms a sequence, forward and backward")
        lengths = sorted({r["length"] for r, _ in chosen})
        ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
        ax.minorticks_off()
        ax.set_title(f"head dimension {dim}; solid: longspan, dotted: FlexAttention", fontsize=9)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def draw(records: list[Record], folder: Path) -> list[Path]:
    """Draw speed-up against FlexAttention, and of several lengths time against length; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figures = {record["cell"]: (record, derive(record)) for record in records}
    paths = [folder / "speedup.png"]
    if len({record["length"] for record in records}) > 1:
        paths.insert(0, _draw_time(list(figures.values()), folder / "time.png"))

    blocks = sorted({record["block"] for record in records})
    names = [name for name in PATTERNS if any(record["pattern"] == name for record in records)]
    figure, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for number, block in enumerate(blocks):
        for place, name in enumerate(names):
            values = [
                f["both"]["speedup"]
                for r, f in figures.values()
                if r["block"] == block and r["pattern"] == name and f["both"]["speedup"]
            ]
            x = place + (number - (len(blocks) - 1) / 2) * 0.8 / len(blocks)
            if values:
                ax.bar(x, geometric_mean(values), 0.75 / len(blocks), color=f"C{number}", alpha=0.6)
                ax.plot([x] * len(values), values, "k.", markersize=3)
        ax.bar(0, 0, color=f"C{number}", alpha=0.6, label=f"block {block}")
    ax.axhline(1, color="k", linewidth=0.8)
    ax.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    ax.set_ylabel("times faster than the best FlexAttention")
    ax.set_title("forward and backward: geometric mean over lengths and heads, dots the cells", fontsize=9)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(paths[-1], dpi=130)
    plt.close(figure)
    return paths
