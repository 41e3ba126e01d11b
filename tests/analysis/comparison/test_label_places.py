"""Labels that keep out of each other's way."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from longspan.analysis.comparison.label_places import Box, beside_points, spread, text_width

wanted_places = st.lists(st.floats(-20, 120), min_size=1, max_size=7)


@given(wanted_places, st.floats(0.5, 10))
def test_spread_keeps_order_distance_and_bounds(wanted, gap):
    places = spread(wanted, gap, 0, 100)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    ordered = [places[index] for index in order]
    assert all(second - first >= gap - 1e-9 for first, second in pairwise(ordered))
    assert min(places) >= -1e-9
    assert max(places) <= 100 + 1e-9


@given(st.lists(st.integers(0, 100).map(float), min_size=2, max_size=5, unique=True), st.integers(1, 12))
def test_spread_is_the_least_change(wanted, gap):
    wanted.sort()
    places = spread(wanted, gap, 0, 100)
    found = optimize.minimize(
        lambda x: ((x - wanted) ** 2).sum(),
        np.linspace(0, 100, len(wanted)),
        bounds=[(0, 100)] * len(wanted),
        constraints={"type": "ineq", "fun": lambda x: np.diff(x) - gap},
        method="SLSQP",
    )
    assert places == pytest.approx(list(found.x), abs=0.05)


def test_spread_without_room_is_even():
    assert spread([5.0, 5.0, 5.0], 10, 0, 10) == pytest.approx([0, 5, 10])
    assert spread([], 10, 0, 10) == []


def test_labels_lie_on_nothing_where_there_is_room():
    points = [(100.0, 100.0), (112.0, 101.0), (104.0, 112.0), (290.0, 20.0), (5.0, 250.0)]
    texts = ["bigbird", "variable", "bslongformer", "local_sliding_window", "dense"]
    places = beside_points(points, texts, 300, 260)
    boxes = [Box(x, y - 7, x + text_width(text), y + 7) for (x, y), text in zip(places, texts, strict=True)]
    for number, box in enumerate(boxes):
        assert box.left >= 0
        assert box.right <= 300
        assert all(box.overlap(other) == 0 for other in boxes[:number])
        assert all(box.overlap(Box(x - 4, y - 4, x + 4, y + 4)) == 0 for x, y in points)
