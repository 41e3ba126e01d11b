"""Time of a training step at lengths up to 131,072 tokens, with dense, FlexAttention's and our attention.

    python experiments/training_speed/speed.py

BERT-base (masked, 15 % of the tokens scored) and GPT-2 small (causal), batch 1, bfloat16 autocast, fused
AdamW, no dropout, logits of scored positions alone. Each cell (model, eager or compiled, length, attention)
appends a line to speed.jsonl and is not measured again; a cell that fails is recorded with its error. The
tables of README.md are written from that file at the end.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from step_attentions import install
from step_tables import write_tables
from torch import Tensor

import longspan
from longspan.data.objective import is_causal
from longspan.models import build_model
from longspan.models.head import split_head
from longspan.training.chunked_loss import chunk_loss_sum, chunked_loss, scored_positions
from longspan.training.optim import AdamW

HERE = Path(__file__).parent
LENGTHS = (4096, 16384, 65536, 131072)
# In the order of what is asked first, so that a run cut short has the rows that matter.
FIRST = ("longspan:bigbird", "none", "dense", "flex:bigbird")
REST = ("longspan:bslongformer", "longspan:local_sliding_window", "longspan:variable", "longspan:fixed")
REST_FLEX = tuple(name.replace("longspan", "flex") for name in REST)
# (objective, vocabulary, pad token)
MODELS: dict[str, tuple[str, int, int | None]] = {"bert": ("mlm", 30522, 0), "gpt2": ("clm", 50257, None)}


@dataclass(frozen=True)
class Sizes:
    """What the tiny run makes smaller."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    warmup: int = 3
    # A cell takes at least `least` steps, and more while `seconds` are not over, up to `most`.
    least: int = 5
    most: int = 30
    seconds: float = 5.0
    chunk: int = 8192


TINY = Sizes(width=64, layers=2, heads=2, warmup=1, least=2, most=2, chunk=64)


@dataclass(frozen=True)
class Cell:
    """One measurement; `key` names it in the file and for --cells."""

    model: str
    mode: str
    length: int
    attention: str

    @property
    def key(self) -> str:
        """model/mode/length/attention."""
        return f"{self.model}/{self.mode}/{self.length}/{self.attention}"


def all_cells(
    lengths: tuple[int, ...] = LENGTHS, modes: tuple[str, ...] = ("eager", "compiled")
) -> list[Cell]:
    """Every cell, most wanted first."""
    return [
        Cell(model, mode, length, attention)
        for group in (FIRST, REST, REST_FLEX)
        for model in MODELS
        for mode in modes
        for length in lengths
        for attention in group
    ]


def batches(cell: Cell, device: torch.device, count: int = 4) -> list[tuple[Tensor, ...]]:
    """(input ids, labels), drawn at random: what the words are changes no time."""
    objective, vocabulary, _ = MODELS[cell.model]
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        labels = torch.randint(vocabulary, (1, cell.length), generator=generator)
        ids = labels.clone()
        if not is_causal(objective):
            hidden = torch.rand(labels.shape, generator=generator) < 0.15
            ids[hidden] = 103  # [MASK]
            labels[~hidden] = -100
        else:
            labels = labels.roll(-1, 1)
        made.append(tuple(x.to(device) for x in (ids, labels)))
    return made


def make_step(
    cell: Cell, sizes: Sizes, device: torch.device, attention: dict[str, Any]
) -> Callable[[], None]:
    """A function that does one training step, on the next of a few batches."""
    objective, vocabulary, pad = MODELS[cell.model]
    torch.manual_seed(0)
    with device:
        model = build_model(
            cell.model, objective, vocabulary, cell.length, sizes.width, sizes.layers, sizes.heads,
            pad_token_id=pad,
        )  # fmt: skip
    attention["install"](model)
    optimizer = AdamW(lr=1e-4, fused=True)(model)
    backbone, head = split_head(model)
    summed = chunk_loss_sum
    if cell.mode == "compiled":
        backbone.compile(dynamic=False, options=attention["compile_options"])
        # The last chunk is shorter, by another number each time.
        summed = torch.compile(chunk_loss_sum, dynamic=True)
    upcoming = _endless(batches(cell, device))

    def step() -> None:
        ids, labels = next(upcoming)
        positions = scored_positions(labels)
        with attention["context"](), torch.autocast(device.type, torch.bfloat16):
            hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
            loss = chunked_loss(head, hidden, labels, positions, sizes.chunk, summed)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _endless(items: list[Any]) -> Iterator[Any]:
    while True:
        yield from items


def timed(step: Callable[[], None], sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Median, fastest and slowest step in ms, and the peak memory in GiB, model and optimizer included."""
    cuda = device.type == "cuda"
    started = begun = time.perf_counter()
    for index in range(sizes.warmup):
        step()
        if cuda:
            torch.cuda.synchronize()
        # The first compiles; steps of a second and more need no third to be warm.
        if index and time.perf_counter() - begun > 1:
            break
        begun = time.perf_counter()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    warm, times = time.perf_counter(), []
    while len(times) < sizes.least or (
        len(times) < sizes.most and time.perf_counter() - warm < sizes.seconds
    ):
        if cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            begin = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - begin))
    return {
        "ms": statistics.median(times),
        "fastest_ms": min(times),
        "slowest_ms": max(times),
        "steps": len(times),
        "warmup_s": warm - started,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def measure(cell: Cell, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """The line of a cell: the first of the attention's variants that works, and how the others failed."""
    failed: dict[str, str] = {}
    heads, dim = sizes.heads, sizes.width // sizes.heads
    causal = is_causal(MODELS[cell.model][0])
    for variant in install(cell.attention, cell.length, heads, dim, causal, device, cell.mode == "compiled"):
        name = variant["name"]
        try:
            step = make_step(cell, sizes, device, variant)
            found = timed(step, sizes, device)
            found["tokens_per_second"] = 1e3 * cell.length / found["ms"]
            return {"variant": name, **found, **({"failed": failed} if failed else {})}
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).strip()[:400]}"
            if "CUDA error" in str(error):
                # The device is of no use to this process any more.
                return {"error": failed, "fatal": True}
        finally:
            step = None
            clean(device)
    return {"error": failed}


def clean(device: torch.device) -> None:
    """Free what a cell held, so that the next one starts as the first."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured(path: Path, retry: bool = False) -> set[str]:
    """Keys that the file has; with `retry` only those that did not fail."""
    if not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["key"] for line in lines if not (retry and "error" in line)}


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for and not yet there; then write the tables."""
    parser = argparse.ArgumentParser(description="Time training steps by length and attention.")
    parser.add_argument("--cells", nargs="+", default=["*"], help="patterns of model/mode/length/attention")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no cell after so long")
    parser.add_argument("--out", type=Path, default=HERE / "speed.jsonl", help="where lines are appended")
    parser.add_argument("--retry", action="store_true", help="measure again what failed")
    parser.add_argument("--list", action="store_true", help="print the cells that would be measured")
    parser.add_argument("--table", action="store_true", help="only write the tables of README.md")
    parser.add_argument("--tiny", action="store_true", help="two small layers on the CPU; writes no table")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        print(write_tables(chosen.out, HERE / "README.md"))
        return
    started = time.monotonic()
    cells = all_cells((256,), ("eager",)) if chosen.tiny else all_cells()
    done = measured(chosen.out, chosen.retry)
    wanted = [
        cell
        for cell in cells
        if cell.key not in done and any(fnmatch.fnmatch(cell.key, pattern) for pattern in chosen.cells)
    ]
    if chosen.list:
        print("\n".join(cell.key for cell in wanted))
        return
    device = torch.device("cpu" if chosen.tiny else "cuda")
    about = {
        "device": "cpu" if chosen.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "longspan": longspan.__version__,
    }
    for index, cell in enumerate(wanted):
        if time.monotonic() - started > 60 * chosen.minutes:
            print(f"time is over; {len(wanted) - index} cells are left, the same command goes on")
            break
        found = measure(cell, TINY if chosen.tiny else Sizes(), device)
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        line = {"key": cell.key, **vars(cell), "date": date, **about, **found}
        with chosen.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(cell.key, f"{found['ms']:.1f} ms" if "ms" in found else found["error"], flush=True)
        if found.get("fatal"):
            raise SystemExit("the device failed; the same command goes on with the next cell")
    if not chosen.tiny:
        print(write_tables(chosen.out, HERE / "README.md"))


if __name__ == "__main__":
    main()
