"""What runs are compared by: names of quantities, units, where they stand in a result, how to write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from longspan.analysis.comparison.runs import Run
from longspan.analysis.comparison.series import Setting, density
from longspan.analysis.comparison.statistics import Estimate


@dataclass(frozen=True)
class Quantity:
    """A number of a run.

    Attributes:
        key: a short name.
        label: for a heading.
        unit: behind the label; "" for none.
        scale: a value times this is in the unit.
        digits: behind the point, in the unit.
        of: gives it for a run, or None.
        lower_is_better: None where neither is.

    """

    key: str
    label: str
    unit: str
    of: Callable[[Run], float | None]
    scale: float = 1.0
    digits: int = 4
    lower_is_better: bool | None = None

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def write(self, value: float, sign: bool = False) -> str:
        """Write a value in the unit."""
        return f"{value * self.scale:{'+' if sign else ''},.{self.digits}f}".replace("-", "−")

    def write_estimate(self, found: Estimate | None, sign: bool = False) -> str:
        """Write a mean with its interval, if it has one and not all values are the same."""
        if found is None:
            return "–"
        text = self.write(found.mean, sign)
        return f"{text} ± {self.write(found.half or 0.0)}" if found.varies else text


def _metric(key: str) -> Callable[[Run], float | None]:
    return lambda run: (run.result.get("metrics") or {}).get(key)


def _throughput(key: str) -> Callable[[Run], float | None]:
    return lambda run: (run.result.get("throughput") or {}).get(key)


def _cost(key: str) -> Callable[[Run], float | None]:
    return lambda run: (run.result.get("cost") or {}).get(key)


LOSS = Quantity("val_loss", "validation loss", "nats/token", _metric("val_loss"), lower_is_better=True)
BITS = Quantity("bits_per_byte", "bits per byte", "", _metric("bits_per_byte"), lower_is_better=True)
ACCURACY = Quantity("accuracy", "accuracy", "%", _metric("accuracy"), 100, 1, lower_is_better=False)
DENSITY = Quantity("density", "density", "% of blocks", density, 100, 1)
SPEED = Quantity(
    "tokens_per_second", "speed", "1,000 tokens/s", _throughput("tokens_per_second"), 1e-3, 1, False
)
MEMORY = Quantity("peak_memory", "peak memory", "GiB", _throughput("peak_memory_bytes"), 2**-30, 2, True)
FLOPS = Quantity("flops", "compute", "PFLOP", _cost("flops"), 1e-15, 2, True)
ALL = (LOSS, BITS, ACCURACY, DENSITY, SPEED, MEMORY, FLOPS)

_SIZES = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


def in_fitting_unit(value: float) -> tuple[float, str]:
    """The scale and the name of the unit in which that many floating-point operations are a short number."""
    for size, name in _SIZES:
        if value >= size:
            return 1 / size, name
    return 1.0, "FLOP"


def quantities(setting: Setting) -> list[Quantity]:
    """Those quantities that any run of a setting has, in units that fit it."""
    found = []
    for quantity in ALL:
        values = [value for run in setting.runs if (value := quantity.of(run)) is not None]
        if not values:
            continue
        if quantity is FLOPS:
            scale, unit = in_fitting_unit(max(values))
            quantity = Quantity("flops", "compute", unit, quantity.of, scale, 2, True)
        elif quantity is SPEED and max(values) < 10_000:
            quantity = Quantity("tokens_per_second", "speed", "tokens/s", quantity.of, 1, 0, False)
        found.append(quantity)
    return found


def qualities(setting: Setting) -> list[Quantity]:
    """The quantities that say how well the runs of a setting learned.

    Of text the loss (bits per byte are the loss in another unit, over one tokenizer); of a task, which has no
    bytes, accuracy and the loss.
    """
    known = {quantity.key: quantity for quantity in quantities(setting)}
    keys = (LOSS.key,) if BITS.key in known else (ACCURACY.key, LOSS.key)
    return [known[key] for key in keys if key in known]
