"""Places of labels beside points, without overlaps between labels and points where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Pixels in the figures' font of 11 pixels: width of a character (a little above the mean), height of a line,
# distance between a point and its label.
_CHARACTER, _LINE, _GAP = 6.7, 14.0, 9.0
# The cost of one more gap between a label and its point, as an overlapping area in square pixels.
_FAR = 30.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def text_width(text: str) -> float:
    """Return the approximate width of a label in pixels."""
    return _CHARACTER * len(text)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart until neighbours are `gap` apart, with the least change in the sum of squares.

    The order is kept. The places stay in [low, high]; if there is too little room, they are spaced evenly
    over it.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    # This is isotonic regression of the places minus the spacing, and pooling adjacent violators solves it
    # exactly.
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
    """Return the place of the middle of each label's left edge, in pixels; y grows downwards.

    The labels are placed one after the other. Each takes the place around its point with the least cost:
    overlap with earlier labels, points and lines, area outside of the picture, and distance from the point.

    Args:
        points: x and y of each point.
        texts: the label of each point.
        width: width of the picture.
        height: height of the picture.
        lines: boxes around lines.

    """
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    placed: list[Box] = []
    places = []
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
            # A part outside of the picture is cut off, so its area counts four times.
            cost = far + 4 * (size * _LINE - inside)
            cost += sum(box.overlap(other) for other in (*placed, *marks, *lines))
            if cost < least - 1e-6:
                best, least = (left, middle), cost
        placed.append(Box(best[0], best[1] - _LINE / 2, best[0] + size, best[1] + _LINE / 2))
        places.append(best)
    return places
