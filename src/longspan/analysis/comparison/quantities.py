"""The quantities of a comparison: names, units, location in a result, and format."""

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
        key: short name.
        label: name in a heading.
        unit: unit after the label; "" for none.
        of: returns the value of a run; None if the run does not have it.
        scale: factor from a value to the unit.
        digits: decimals in the unit.
        lower_is_better: None if neither direction is better.

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
        """Label and unit, for a heading."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def write(self, value: float, sign: bool = False) -> str:
        """Format a value in the unit."""
        return f"{value * self.scale:{'+' if sign else ''},.{self.digits}f}".replace("-", "−")

    def write_estimate(self, estimate: Estimate | None, sign: bool = False) -> str:
        """Format a mean, with its interval if there is one and the values are not all equal."""
        if estimate is None:
            return "–"
        text = self.write(estimate.mean, sign)
        return f"{text} ± {self.write(estimate.half or 0.0)}" if estimate.varies else text


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
    """Return factor and name of the largest unit in which a number of operations is at least 1."""
    for size, name in _SIZES:
        if value >= size:
            return 1 / size, name
    return 1.0, "FLOP"


def quantities(setting: Setting) -> list[Quantity]:
    """Return the quantities that at least one run of a setting has, in units that suit its values."""
    present = []
    for quantity in ALL:
        values = [value for run in setting.runs if (value := quantity.of(run)) is not None]
        if not values:
            continue
        if quantity is FLOPS:
            scale, unit = in_fitting_unit(max(values))
            quantity = Quantity("flops", "compute", unit, quantity.of, scale, 2, True)
        elif quantity is SPEED and max(values) < 10_000:
            quantity = Quantity("tokens_per_second", "speed", "tokens/s", quantity.of, 1, 0, False)
        present.append(quantity)
    return present


def qualities(setting: Setting) -> list[Quantity]:
    """Return the quantities that measure the quality of the models of a setting.

    For text this is the loss alone, since bits per byte are the loss in another unit for a given tokenizer.
    For a task, which has no bytes, these are accuracy and loss.
    """
    known = {quantity.key: quantity for quantity in quantities(setting)}
    keys = (LOSS.key,) if BITS.key in known else (ACCURACY.key, LOSS.key)
    return [known[key] for key in keys if key in known]
