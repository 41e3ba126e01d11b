"""Keep a run's record here and draw its loss: `python experiments/first_run/draw.py logs/runs/RUN`.

With a second folder, of a run by the same command, what that one reached is kept beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
# What identifies the run and what it reached; paths belong to the machine.
KEPT = (
    "name",
    "date",
    "device",
    "precision",
    "versions",
    "seconds",
    "steps",
    "tokens",
    "tokens_per_step",
    "seq_len",
)
KEPT += ("model", "objective", "patterns", "corpus", "metrics", "throughput", "overrides")


def main() -> None:
    """Copy the figures of a run, draw its loss curve, print the table of the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("repeat", type=Path, nargs="?", help="folder of a second run by the same command")
    arguments = parser.parse_args()
    run = arguments.run
    result = json.loads((run / "result.json").read_text())
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    curves = {
        name: [(float(row["step"]) + 1, float(row[name])) for row in rows if row[name]]
        for name in ("train/loss", "val/loss")
    }
    kept = {key: result[key] for key in KEPT}
    if arguments.repeat is not None:
        again = json.loads((arguments.repeat / "result.json").read_text())
        kept["repeat"] = {key: again[key] for key in ("date", "seconds", "steps", "overrides")}
        kept["repeat"] |= {key: again["metrics"][key] for key in ("train_loss", "val_loss")}
    (HERE / "result.json").write_text(json.dumps(kept | {"curves": curves}, indent=1) + "\n")

    figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    ax.plot(*zip(*curves["train/loss"], strict=True), color="#9db4c8", linewidth=1, label="training")
    ax.plot(*zip(*curves["val/loss"], strict=True), "o-", color="#1f4e79", markersize=4, label="validation")
    entropy = result["metrics"]["byte_entropy"]
    ax.axhline(entropy, color="#b5532a", linestyle="--", linewidth=1, label="entropy of the held-out bytes")
    ax.set(xlabel="step", ylabel="nats a byte")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.savefig(HERE / "loss.png", dpi=160)

    metrics, config = result["metrics"], result["config"]
    validated = config["trainer"]["limit_val_batches"] * config["data"]["validation_batch_size"]
    print("| | |\n| --- | --- |")
    for label, value in (
        ("model", f"{result['model']['name']}, {result['model']['parameters']:,} parameters"),
        ("pattern", ", ".join(f"{p['name']}, {p['density']:.1%} of the blocks" for p in result["patterns"])),
        (
            "tokens",
            f"{result['tokens']:,} in {result['steps']} steps, sequences of {result['seq_len']:,} bytes",
        ),
        (
            "validation loss",
            f"{metrics['val_loss']:.4f} nats a byte, {metrics['bits_per_byte']:.3f} bits a byte, "
            f"on {validated} held-out sequences",
        ),
        ("entropy of the byte frequencies of the held-out text", f"{entropy:.4f} nats a byte"),
        ("speed", f"{result['throughput']['tokens_per_second']:,.0f} tokens a second"),
        ("time", f"{result['seconds']:.0f} s"),
        ("device", result["device"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())),
        ("date", result["date"][:10]),
    ):
        print(f"| {label} | {value} |")


if __name__ == "__main__":
    main()
