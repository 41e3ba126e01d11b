"""The tables themselves, against the definition of each method."""

import pytest
import torch

from longspan.positions.learned import METHODS, extend_table, interpolate, tile, truncate_and_normal, zero

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OPTIONS = {"interpolate": [{"mode": "linear"}, {"mode": "cubic"}], "truncate-and-normal": [{"seed": 3}]}
CASES = [(method, options) for method in METHODS for options in OPTIONS.get(method, [{}])]


def table(rows: int, width: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("length", [10, 11, 19, 20, 37])
def test_tile_repeats_and_cuts(length):
    trained = table(10)
    made = tile(trained, length)
    assert made.shape == (length, 6)
    for position in range(length):
        assert torch.equal(made[position], trained[position % 10])


@pytest.mark.parametrize("length", [11, 25, 40])
def test_linear_interpolation_is_that_of_numpy(length):
    import numpy as np

    trained = table(10, dtype=torch.float64)
    made = interpolate(trained, length)
    where = np.arange(length) * 9 / (length - 1)
    for column in range(6):
        expected = np.interp(where, np.arange(10), trained[:, column].numpy())
        np.testing.assert_allclose(made[:, column].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("length", [11, 25, 40])
def test_cubic_interpolation_is_cubic_convolution(length):
    """Keys' kernel with a = -0.75, rows beyond the ends repeated."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    trained = table(10, dtype=torch.float64)
    made = interpolate(trained, length, mode="cubic")
    for position in range(length):
        where = position * 9 / (length - 1)
        base = int(where)
        weights = {row: kernel(where - row) for row in range(base - 1, base + 3)}
        expected = sum(weight * trained[min(max(row, 0), 9)] for row, weight in weights.items())
        torch.testing.assert_close(made[position], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation_keeps_the_ends_and_passes_through_the_trained_rows(mode):
    trained = table(10, dtype=torch.float64)
    made = interpolate(trained, 28, mode=mode)
    torch.testing.assert_close(made[::3], trained, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_interpolation_of_half_precision_is_rounded_once(mode, dtype):
    trained = table(10, dtype=dtype)
    exact = interpolate(trained.float(), 37, mode=mode)
    assert torch.equal(interpolate(trained, 37, mode=mode), exact.to(dtype))


def test_normal_rows_have_the_spread_of_the_trained_ones():
    trained = table(500) * torch.tensor([0.1, 1, 2, 3, 4, 5]) + torch.tensor([5.0, 4, 3, 2, 1, 0])
    made = truncate_and_normal(trained, 20_000, seed=1)
    assert torch.equal(made[:500], trained)
    torch.testing.assert_close(made[500:].std(0), trained.std(0), rtol=0.05, atol=0)
    assert ((made[500:].mean(0) - trained.mean(0)).abs() < 0.05 * trained.std(0)).all()
    assert torch.equal(made, truncate_and_normal(trained, 20_000, seed=1))
    assert not torch.equal(made[500:], truncate_and_normal(trained, 20_000, seed=2)[500:])


def test_a_single_trained_row_has_no_spread():
    trained = table(1)
    assert torch.equal(truncate_and_normal(trained, 4), trained.expand(4, -1))


def test_zero_rows():
    trained = table(10)
    made = zero(trained, 15)
    assert torch.equal(made[:10], trained)
    assert not made[10:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("method", "options"), CASES)
def test_reserved_rows_dtype_and_length(method, options, dtype):
    trained = table(12, dtype=dtype)
    made = extend_table(trained, 2, 23, method, **options)
    assert made.shape == (25, 6)
    assert made.dtype == dtype
    assert torch.equal(made[:2], trained[:2])
    assert torch.equal(made[2:], METHODS[method](trained[2:], 23, **options))
    assert made.isfinite().all()


@pytest.mark.parametrize(("method", "options"), CASES)
def test_the_same_length_is_the_same_table(method, options):
    trained = table(12)
    made = extend_table(trained, 2, 10, method, **options)
    assert torch.equal(made, trained)
    assert made.data_ptr() != trained.data_ptr()


def test_refusals():
    with pytest.raises(ValueError, match=r"max_positions must be at least 10, .* got 9"):
        extend_table(table(12), 2, 9, "tile")
    with pytest.raises(ValueError, match="'spline'"):
        extend_table(table(12), 2, 20, "spline")
    with pytest.raises(ValueError, match="'tile' has no option mode; its options: none"):
        extend_table(table(12), 2, 20, "tile", mode="linear")
    with pytest.raises(ValueError, match="has no option sede; its options: seed"):
        extend_table(table(12), 2, 20, "truncate-and-normal", sede=1)
    with pytest.raises(ValueError, match="mode must be linear or cubic, got 'nearest'"):
        extend_table(table(12), 2, 20, "interpolate", mode="nearest")
