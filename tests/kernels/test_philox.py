"""Dropout's generator against the published vectors, and its mask against Python's integers."""

import pytest
import torch

from longspan_kernels import block_sparse_attention
from longspan_kernels.philox import dropout_threshold, philox4x32

# Known answers that the Random123 library ships for philox4x32-10: counter, key, output.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(kit, counter, key, answer):
    words = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert [int(word) for word in words] == answer
    assert kit.philox_in_integers(counter, key) == answer


def test_broadcasts():
    counter = (torch.arange(3)[:, None], torch.arange(4), torch.tensor(5), torch.tensor(2**32 - 1))
    words = philox4x32(counter, (torch.tensor(1), torch.tensor(2)))
    for i in range(3):
        for j in range(4):
            alone = philox4x32(
                tuple(map(torch.tensor, (i, j, 5, 2**32 - 1))), (torch.tensor(1), torch.tensor(2))
            )
            assert [int(word[i, j]) for word in words] == [int(word) for word in alone]


def test_threshold():
    assert dropout_threshold(0.0) == 0
    assert dropout_threshold(0.5) == 2**31
    assert dropout_threshold(1 - 2**-32) == 2**32 - 1


def _weights(kit, q_len, k_len, block, p, seed, heads=2, batch=1, **options):
    """Read dropout's factors off an attention of equal scores and one-hot values."""
    layout = kit.random_layout(heads, q_len, k_len, block, density=1.0)
    q = torch.zeros(batch, heads, q_len, 1, dtype=torch.float64)
    k = torch.zeros(batch, heads, k_len, 1, dtype=torch.float64)
    v = torch.eye(k_len, dtype=torch.float64).expand(batch, heads, -1, -1)
    return block_sparse_attention(q, k, v, layout, dropout_p=p, dropout_seed=seed, **options) * k_len


@pytest.mark.parametrize("block", [3, 4, 16])
def test_mask_does_not_depend_on_blocks(kit, block):
    weights = _weights(kit, 9, 14, block, 0.3, 99, batch=2)
    keep = kit.dropout_mask(99, 0.3, 2, 2, 9, 14)
    torch.testing.assert_close(weights, keep.double() / 0.7)


def test_more_queries_than_keys(kit):
    """Queries before the first key stand at negative positions, which wrap."""
    weights = _weights(kit, 14, 9, 4, 0.5, 5, causal=False)
    torch.testing.assert_close(weights, kit.dropout_mask(5, 0.5, 1, 2, 14, 9).double() / 0.5)


def test_statistics(kit):
    dropped = _weights(kit, 256, 256, 32, 0.1, 2024, heads=4) == 0
    total = dropped.numel()
    # Five standard deviations of a binomial, and of the counts of one row, column and head.
    assert abs(dropped.double().mean() - 0.1) < 5 * (0.09 / total) ** 0.5
    for sides, number in (((0, 1, 2), 1024), ((0, 1, 3), 1024), ((0, 2, 3), 65536)):
        assert (dropped.double().mean(sides) - 0.1).abs().max() < 5 * (0.09 / number) ** 0.5
    flat = dropped.flatten().double() - 0.1
    for lag in (1, 4, 256):
        assert (flat[lag:] * flat[:-lag]).mean().abs() < 5 * 0.09 / total**0.5


def test_seeds(kit):
    one = _weights(kit, 16, 16, 4, 0.5, 1)
    assert torch.equal(one, _weights(kit, 16, 16, 4, 0.5, torch.tensor(1)))
    assert not torch.equal(one, _weights(kit, 16, 16, 4, 0.5, 2))
    assert not torch.equal(one, _weights(kit, 16, 16, 4, 0.5, 1 + 2**32))
    torch.manual_seed(0)
    drawn = [_weights(kit, 16, 16, 4, 0.5, None) for _ in range(2)]
    assert not torch.equal(*drawn)
    torch.manual_seed(0)
    assert torch.equal(drawn[0], _weights(kit, 16, 16, 4, 0.5, None))


def test_no_seed_is_drawn_without_dropout(kit):
    state = torch.random.get_rng_state()
    _weights(kit, 16, 16, 4, 0.0, None)
    assert torch.equal(state, torch.random.get_rng_state())
