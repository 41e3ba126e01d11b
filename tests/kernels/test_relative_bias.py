"""Biases by distance: the formulas of their papers, and attention with them against dense attention."""

import math

import pytest
import torch

from longspan import Alibi, DenseSparsityConfig, SparseSelfAttention, T5Buckets
from longspan_kernels import block_sparse_attention


def distances(q_len, k_len):
    """Key position minus query position; the last query meets the last key."""
    return torch.arange(k_len) - (torch.arange(q_len)[:, None] + k_len - q_len)


def bucket_of(distance, buckets, bidirectional, max_distance):
    """T5's bucket of one distance, as its paper's code has it, in Python's numbers."""
    bucket = 0
    if bidirectional:
        buckets //= 2
        bucket = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return bucket + distance
    grown = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact))
    return bucket + min(grown, buckets - 1)


def as_bias(relative, q_len, k_len):
    """The dense ``[heads, q_len, k_len]`` that a relative bias stands for."""
    where = distances(q_len, k_len)
    if isinstance(relative, Alibi):
        return -relative.slopes[:, None, None] * where.abs()
    number = relative.table.shape[0]
    buckets = where.apply_(
        lambda distance: bucket_of(distance, number, relative.bidirectional, relative.max_distance)
    )
    return relative.table[buckets].permute(2, 0, 1)


def table(buckets=8, heads=2, **options):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(buckets, heads, generator=generator, dtype=torch.float64)
    return T5Buckets(x.requires_grad_(), **options)


BIASES = {
    "both ways": lambda: table(max_distance=9),
    "backwards": lambda: table(bidirectional=False, max_distance=20),
    "t5": lambda: table(32),
    "alibi": lambda: Alibi.of(2),
}


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64), (8, 9), (64, 256)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_transformers(buckets, max_distance, bidirectional):
    attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    span = torch.arange(-max_distance, max_distance + 1)
    expected = attention._relative_position_bucket(span, bidirectional, buckets, max_distance)
    mine = T5Buckets(torch.zeros(buckets, 1), bidirectional, max_distance).buckets()
    assert mine.dtype == torch.int32
    torch.testing.assert_close(mine.long(), expected)
    # Farther than that, all are as far.
    far = attention._relative_position_bucket(span * 1000, bidirectional, buckets, max_distance)
    assert {far[0].item(), far[-1].item()} == {mine[0].item(), mine[-1].item()}


def test_slopes_are_those_of_the_paper():
    torch.testing.assert_close(Alibi.of(8).slopes, torch.tensor([2.0**-n for n in range(1, 9)]))
    sixteen = torch.tensor([2.0 ** (-n / 2) for n in range(1, 17)])
    torch.testing.assert_close(Alibi.of(16).slopes, sixteen)
    # Twelve heads: those of eight, then every other of sixteen.
    torch.testing.assert_close(Alibi.of(12).slopes, torch.cat([Alibi.of(8).slopes, sixteen[0:8:2]]))


@pytest.mark.parametrize("lengths", [(23, 23), (9, 23), (23, 9)])
@pytest.mark.parametrize("name", BIASES)
def test_as_dense(kit, name, lengths):
    relative = BIASES[name]()
    layout = kit.random_layout(2, *lengths, 4, causal=name == "backwards", density=0.7, seed=2)
    q, k, v = kit.tensors(2, 2, 1, *lengths)
    options = {"key_padding_mask": torch.arange(lengths[1]).expand(2, -1) != 3, "window": (15, None)}
    bias = as_bias(relative, *lengths).to(q.dtype)
    out, lse = block_sparse_attention(q, k, v, layout, relative_bias=relative, return_lse=True, **options)
    expected, expected_lse = kit.dense_attention(q, k, v, layout, bias=bias, **options)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)
    leaves = [q, k, v] + ([relative.table] if isinstance(relative, T5Buckets) else [])
    weight = torch.randn_like(out)
    for mine, theirs in zip(
        torch.autograd.grad((out * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs.nan_to_num(0.0))


def test_gradcheck(kit):
    layout = kit.random_layout(2, 10, 13, 4, causal=True, lead=1, seed=1)
    q, k, v = kit.tensors(2, 2, 1, 10, 13, dim=3)
    bias = torch.randn(2, 1, 13, dtype=torch.float64, requires_grad=True)

    def attend(q, k, v, bias, numbers):
        relative = T5Buckets(numbers, max_distance=6)
        options = {"dropout_p": 0.3, "dropout_seed": 3}
        return block_sparse_attention(q, k, v, layout, bias=bias, relative_bias=relative, **options)

    assert torch.autograd.gradcheck(attend, (q, k, v, bias, table().table))


@pytest.mark.parametrize("name", BIASES)
def test_compiles_whole(kit, name):
    layout = kit.random_layout(2, 16, 16, 4)
    inputs = [x.detach() for x in kit.tensors(1, 2, 2, 16, 16)]
    relative = BIASES[name]()

    def attend(q, k, v, relative):
        return block_sparse_attention(q, k, v, layout, relative_bias=relative)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, relative), attend(*inputs, relative))
    if isinstance(relative, T5Buckets):
        grads = [
            torch.autograd.grad(function(*inputs, relative).square().sum(), relative.table)[0]
            for function in (compiled, attend)
        ]
        torch.testing.assert_close(*grads)


def test_what_is_kept_serves_every_later_call(kit):
    """Evaluate, count fake tensors, then train: none may find what was made for another alone."""
    from torch._subclasses import FakeTensorMode

    layout = kit.random_layout(2, 12, 12, 4)
    q, k, v = (x.detach() for x in kit.tensors(1, 2, 2, 12, 12))
    with torch.inference_mode():
        relative = table(16, max_distance=11)
        before = block_sparse_attention(q, k, v, layout, relative_bias=relative)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (q, k, v)]
        numbers = mode.from_tensor(torch.randn(16, 2, dtype=torch.float64))
        out = block_sparse_attention(*fakes, layout, relative_bias=T5Buckets(numbers, max_distance=10))
        assert type(out).__name__ == "FakeTensor"
    for distance in (10, 11):
        relative = table(16, max_distance=distance)
        assert type(relative.buckets()) is torch.Tensor
        out = block_sparse_attention(q, k, v, layout, relative_bias=relative)
        assert torch.autograd.grad(out.sum(), relative.table)[0].isfinite().all()
    torch.testing.assert_close(out, before)


def test_through_the_module(kit):
    q, k, v = kit.tensors(1, 2, 2, 12, 12)
    relative = table(max_distance=5)
    module = SparseSelfAttention(DenseSparsityConfig(2, 4))
    expected = module(q, k, v, rpe=as_bias(relative, 12, 12))
    torch.testing.assert_close(module(q, k, v, relative_bias=relative), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: T5Buckets(torch.zeros(8)),
            r"table must be .* \[num_buckets, heads\], got .* \[8\]",
        ),
        (lambda: T5Buckets(torch.zeros(8, 2).long()), "table must be floating point .* got torch.int64"),
        (lambda: T5Buckets(torch.zeros(6, 2)), "multiple of 4 buckets with bidirectional=True, got 6"),
        (
            lambda: T5Buckets(torch.zeros(3, 2), False),
            "of 2 buckets with bidirectional=False, got 3",
        ),
        (lambda: T5Buckets(torch.zeros(8, 2), max_distance=2), "max_distance must be .* over 2, .* got 2"),
        (lambda: Alibi(torch.zeros(2, 2)), r"slopes must be floating point \[heads\], got .* \[2, 2\]"),
        (lambda: Alibi.of(0), "heads must be at least 1, got 0"),
        (lambda: Alibi.of(3), "relative_bias.slopes is for 3 heads, but q has 2"),
        (lambda: table(heads=1), "relative_bias.table is for 1 heads, but q has 2"),
        (lambda: Alibi(torch.ones(2, requires_grad=True)), "relative_bias.slopes requires a gradient"),
        (lambda: "alibi", "relative_bias must be T5Buckets, Alibi or None, got 'alibi'"),
    ],
)
def test_refused(kit, make, message):
    layout = kit.random_layout(2, 8, 8, 4)
    q, k, v = kit.tensors(1, 2, 2, 8, 8)
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(q, k, v, layout, relative_bias=make())
