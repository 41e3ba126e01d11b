"""Extend a pretrained model eight and thirty-two times, with each method, and see what it costs and gives.

    python experiments/long_context_extension/extend.py                  # one CUDA GPU; run again to go on
    python experiments/long_context_extension/extend.py --scale cpu      # two cores, some minutes
    python experiments/long_context_extension/extend.py --table          # only the tables, from what is there
    python experiments/long_context_extension/extend.py --cells '^(scratch|rotary)'   # some, on a second GPU

A small model is pretrained on short sequences of Python source. Then each cell of `plan.cells` starts from
it: positions extended, attention made sparse, bits per byte of held-out text at the new length before and
after a little training there. Every cell is a line of ``<scale>.jsonl``; those that are there are left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch
from drawing import draw
from learning import Text, evaluate, train
from plan import SCALES, Scale, cells, name_of
from tables import write_tables

import longspan
from longspan.data.objective import is_causal
from longspan.models import build_model

HERE = Path(__file__).parent


def fresh(scale: Scale, architecture: str, positions: int, text: Text, objective: str) -> Any:
    """A model with random weights, the same in every process."""
    torch.manual_seed(0)
    tokenizer = text.tokenizer
    return build_model(
        architecture, objective, tokenizer.vocab_size, positions, scale.hidden, scale.layers, scale.heads,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


class Experiment:
    """The parts that cells share: text, device, and the pretrained models, kept in a folder."""

    def __init__(self, scale: Scale, folder: Path, device: torch.device) -> None:
        self.scale, self.folder, self.device = scale, folder, device
        self._texts: dict[str, Text] = {}

    def text(self, objective: str) -> Text:
        if objective not in self._texts:
            self._texts[objective] = Text(self.scale.packages, objective)
        return self._texts[objective]

    def pretrained(self, rotary: bool) -> tuple[Any, dict[str, Any]]:
        """The short model, trained at the first call and read from the folder later."""
        scale = self.scale
        objective = "clm" if rotary else scale.objective
        architecture = "llama" if rotary else scale.architecture
        model = fresh(scale, architecture, scale.trained, self.text(objective), objective).to(self.device)
        path = self.folder / f"{architecture}.pt"
        if path.exists():
            saved = torch.load(path, map_location=self.device, weights_only=True)
            model.load_state_dict(saved["model"])
            return model, saved["trained"]
        trained = self._train(model, objective, scale.trained, scale.pretrain, scale.lr)
        partial = path.with_suffix(".part")
        torch.save({"model": model.state_dict(), "trained": trained}, partial)
        partial.rename(path)
        return model, trained

    def _train(self, model: Any, objective: str, length: int, steps: int, lr: float) -> dict[str, Any]:
        return train(
            model, self.text(objective), length=length, tokens=self.scale.tokens, steps=steps, lr=lr,
            device=self.device,
        )  # fmt: skip

    def evaluate(self, model: Any, objective: str, length: int) -> dict[str, Any]:
        scale = self.scale
        return evaluate(
            model, self.text(objective), length=length, bucket=scale.trained,
            sequences=scale.sequences * max(scale.factors) * scale.trained // length, device=self.device,
        )  # fmt: skip

    def measure(self, cell: dict[str, Any]) -> dict[str, Any]:
        """Make one cell's measurements."""
        scale, kind = self.scale, cell["kind"]
        rotary = kind.startswith("rotary")
        objective = "clm" if rotary else scale.objective
        if kind in ("short", "rotary-short"):
            model, trained = self.pretrained(rotary)
            return {"pretraining": trained, "before": self.evaluate(model, objective, scale.trained)}
        length = cell["factor"] * scale.trained
        attention = "unidirectional" if is_causal(objective) else "bidirectional"
        if kind == "scratch":
            model = fresh(scale, scale.architecture, length, self.text(objective), objective).to(self.device)
            longspan.sparsify(model, scale.patterns(attention)[cell["pattern"]])
            steps = scale.pretrain + scale.more  # as many tokens as pretraining and extension together
            trained = self._train(model, objective, length, steps, scale.lr)
            return {"training": trained, "after": self.evaluate(model, objective, length)}
        model, _ = self.pretrained(rotary)
        if kind == "rotary":
            if cell["method"] != "none":
                longspan.extend(model, length, cell["method"])
            return {"before": self.evaluate(model, objective, length)}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pattern = scale.patterns(attention).get(cell["pattern"])  # none: full attention
            longspan.extend(model, length, cell["method"], sparsity=pattern)
        found: dict[str, Any] = {"warned": any("method 'tile'" in str(one.message) for one in caught)}
        found["before"] = self.evaluate(model, objective, length)
        if kind == "extended":
            found["training"] = self._train(model, objective, length, scale.more, scale.more_lr)
            found["after"] = self.evaluate(model, objective, length)
        return found


def processor() -> str:
    """Name the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description="Extend a pretrained model and measure it.")
    parser.add_argument("--scale", choices=SCALES, default="gpu")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results and of the models")
    parser.add_argument("--cells", help="only cells whose name, as extended/8/bigbird/tile, this finds")
    parser.add_argument("--minutes", type=float, help="begin no cell after so long")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.cells and not any(
        re.search(options.cells, name_of(cell)) for cell in cells(SCALES[options.scale])
    ):
        parser.error(f"--cells: {options.cells!r} finds no cell")
    path = options.out / f"{options.scale}.jsonl"
    scale = SCALES[options.scale]
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not options.table:
        if options.scale == "gpu" and not torch.cuda.is_available():
            raise SystemExit("--scale gpu needs a CUDA device; --scale cpu runs on two cores")
        device = torch.device("cuda" if options.scale == "gpu" else "cpu")
        models = options.out / "models" / options.scale
        models.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(scale, models, device)
        started = time.perf_counter()
        known = [record["cell"] for record in done]
        for cell in cells(scale):
            if cell in known or not re.search(options.cells or "", name_of(cell)):
                continue
            if options.minutes and time.perf_counter() - started > 60 * options.minutes:
                break
            begun = time.perf_counter()
            torch.manual_seed(1)
            record = {
                "cell": cell, **experiment.measure(cell), "seconds": time.perf_counter() - begun,
                "date": date.today().isoformat(), "torch": torch.__version__,
                "longspan": longspan.__version__,
                "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
                "threads": torch.get_num_threads(),
            }  # fmt: skip
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            done.append(record)
            print(json.dumps({"cell": cell, "seconds": round(record["seconds"], 1)}), flush=True)
    write_tables(done, scale, options.scale, options.out)
    draw(done, scale, options.out / f"{options.scale}.png")


if __name__ == "__main__":
    main()
