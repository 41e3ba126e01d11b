"""Places of labels beside points, so that none lies on another or on a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Of the figures' 11 pixel font, a little more than the mean character.
_CHARACTER, _LINE, _GAP = 6.7, 14.0, 9.0
# Overlapping area that a label accepts rather than go one gap further from its point.
_FAR = 30.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def text_width(text: str) -> float:
    """About how many pixels a label is wide."""
    return _CHARACTER * len(text)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart until neighbours are `gap` away, in their order, with the least change.

    They stay in [low, high] where there is room for them; where there is not, they are spaced evenly over it.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    # Least squares with the order kept: less the spacing, places must ascend, and pooling adjacent violators
    # solves that exactly.
    groups: list[list[float]] = []
    for rank, index in enumerate(order):
        groups.append([wanted[index] - rank * gap, 1])
        while len(groups) > 1 and groups[-2][0] >= groups[-1][0]:
            value, count = groups.pop()
            groups[-1] = [
                (groups[-1][0] * groups[-1][1] + value * count) / (groups[-1][1] + count),
                groups[-1][1] + count,
            ]
    flat = [value for value, count in groups for _ in range(int(count))]
    top = high - (len(wanted) - 1) * gap
    places = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        places[index] = min(max(flat[rank], low), top) + rank * gap
    return places


def beside_points(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    width: float,
    height: float,
    lines: Sequence[Box] = (),
) -> list[tuple[float, float]]:
    """Place the left middle of a label beside each point, in pixels, y downwards.

    Each label in turn takes, of places around its point, the nearest that overlaps least with labels already
    placed, with the points, with lines and with what is outside of the picture.
    """
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    placed: list[Box] = []
    found = []
    for (x, y), text in zip(points, texts, strict=True):
        size = text_width(text)
        candidates = []
        for ring in (1.0, 1.6, 2.4, 3.4, 4.6):
            away, up = _GAP * ring, _LINE * ring
            around = [(x + away, y + dy) for dy in (0.0, -up * 0.7, up * 0.7)]
            around += [(x - away - size, y + dy) for dy in (0.0, -up * 0.7, up * 0.7)]
            around += [(x - size / 2, y - up), (x - size / 2, y + up)]
            candidates += [(place, _FAR * (ring - 1)) for place in around]
        best, least = candidates[0][0], float("inf")
        for (left, middle), far in candidates:
            box = Box(left, middle - _LINE / 2, left + size, middle + _LINE / 2)
            inside = box.overlap(Box(0, 0, width, height))
            # What is outside is cut off, which is worst.
            cost = far + 4 * (size * _LINE - inside)
            cost += sum(box.overlap(other) for other in (*placed, *marks, *lines))
            if cost < least - 1e-6:
                best, least = (left, middle), cost
        placed.append(Box(best[0], best[1] - _LINE / 2, best[0] + size, best[1] + _LINE / 2))
        found.append(best)
    return found
