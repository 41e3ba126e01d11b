"""The table and the figure of what was measured, with confidence intervals over the seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from plan import Scale

START, END = "<!-- {}: begin -->", "<!-- {}: end -->"
# Panels beside each other in the figure at most.
_COLUMNS = 5
# Student's t, two-sided 95%, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: list[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95% confidence interval (Student's t); None for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, _T.get(len(values) - 1, 1.96) * spread / math.sqrt(len(values))


def _of(records: list[dict[str, Any]], task: str, pattern: str) -> list[dict[str, Any]]:
    found = [r for r in records if r["cell"]["task"] == task and r["cell"]["pattern"] == pattern]
    return sorted(found, key=lambda record: record["cell"]["seed"])


def _percent(value: float, half: float | None = None) -> str:
    return f"{100 * value:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def tables(records: list[dict[str, Any]], scale: Scale) -> str:
    """Write the Markdown of a scale's results."""
    if not records:
        return "Not measured yet."
    last = records[-1]
    lines = [
        f"{last['date']}, {last['device']}, torch {last['torch']}, longspan {last['longspan']}. "
        f"Causal Llamas of {scale.layers} layers, {scale.hidden} wide, blocks of {scale.block}; accuracy in %"
        + (", 95% intervals over the seeds." if scale.seeds > 1 else ", one seed."),
    ]
    for task, lesson in scale.lessons.items():
        shown = [(name, _of(records, task, name)) for name in scale.patterns if _of(records, task, name)]
        if not shown:
            continue
        lines += [
            "",
            f"**{task}**, {lesson.seq_len:,} tokens, at most {lesson.steps:,} steps of {lesson.batch} "
            f"sequences; chance {_percent(lesson.chance)}%",
            "",
            "| pattern | density | seeds | reachable | predicted at most | accuracy | steps |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, own in sorted(shown, key=lambda one: -interval([r["accuracy"] for r in one[1]])[0]):
            said = own[0]["predicted"]
            ceiling = "" if said["ceiling"] is None else _percent(said["ceiling"])
            reached = _percent(*interval([record["accuracy"] for record in own]))
            steps = round(sum(record["steps"] for record in own) / len(own))
            lines.append(
                f"| {name} | {said['density']:.3f} | {len(own)} | {_percent(said['reach'])} | {ceiling} "
                f"| {reached} | {steps:,} |"
            )
    return "\n".join(lines)


def draw(records: list[dict[str, Any]], scale: Scale, path: Path) -> None:
    """Draw accuracy by distance of each pattern, and what reachability predicts, a panel each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = [
        task for task in scale.lessons
        if any(r["cell"]["task"] == task and r["by_distance"] for r in records)
    ]  # fmt: skip
    names = [name for name in scale.patterns if any(r["cell"]["pattern"] == name for r in records)]
    if not tasks:
        return
    rows = math.ceil(len(names) / _COLUMNS)
    columns = math.ceil(len(names) / rows)
    size = (2.0 * columns + 0.6, 2.0 * rows * len(tasks) + 0.7)
    figure, axes = plt.subplots(
        rows * len(tasks), columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for empty in axes.flat:
        empty.set_axis_off()
    for first, task in zip(range(0, rows * len(tasks), rows), tasks, strict=True):
        chance = scale.lessons[task].chance
        for number, name in enumerate(names):
            row, column = divmod(number, columns)
            axis, own = axes[first + row][column], _of(records, task, name)
            axis.set_axis_on()
            axis.set_title(f"{task}: {name}", fontsize=8)
            axis.set_xscale("symlog", base=2, linthresh=1)
            axis.set_ylim(-0.03, 1.05)
            axis.tick_params(labelsize=7)
            if not own:
                continue
            said = own[0]["predicted"]["by_distance"]
            ceilings = [one["reach"] + (1 - one["reach"]) * chance for one in said]
            middles = [(one["from"] + one["to"] - 1) / 2 for one in said]
            axis.plot(middles, ceilings, "--", color="#b3541e", linewidth=1.2, label="reachable")
            measured = [
                interval([b["accuracy"] for r in own for b in r["by_distance"] if b["from"] == one["from"]])
                for one in said
            ]
            means, halves = [one[0] for one in measured], [one[1] or 0.0 for one in measured]
            low = [max(0.0, mean - half) for mean, half in zip(means, halves, strict=True)]
            high = [min(1.0, mean + half) for mean, half in zip(means, halves, strict=True)]
            axis.fill_between(middles, low, high, color="#1f4e79", alpha=0.2, linewidth=0)
            axis.plot(middles, means, "o-", color="#1f4e79", markersize=3, linewidth=1.2, label="measured")
            if column == 0:
                axis.set_ylabel("accuracy", fontsize=8)
    axes[0][0].legend(fontsize=7, loc="lower left")
    figure.supxlabel("tokens back to the answer", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_tables(records: list[dict[str, Any]], scale: Scale, name: str, folder: Path) -> None:
    """Print the tables, put them into the README where it has a place for them, and draw the figure."""
    text = tables(records, scale)
    print(text)
    if records:
        draw(records, scale, folder / f"{name}.png")
    readme = folder / "README.md"
    if not readme.exists():
        return
    start, end = START.format(name), END.format(name)
    whole = readme.read_text()
    if start in whole:
        head, _, rest = whole.partition(start)
        tail = rest.partition(end)[2]
        readme.write_text(f"{head}{start}\n{text}\n{end}{tail}")
