"""BlockLayout against dense tensors and plain loops."""

from __future__ import annotations

import copy
import functools
import importlib
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.layout import BlockLayout, stack_heads

SIZES = st.integers(1, 6)
property_test = settings(deadline=None, max_examples=40)  # a busy machine is no failure


@st.composite
def dense_tensors(draw, heads=None, q_blocks=None, k_blocks=None):
    shape = (heads or draw(SIZES), q_blocks or draw(SIZES), k_blocks or draw(SIZES))
    size = math.prod(shape)
    bits = draw(st.integers(0, 2**size - 1))
    return torch.tensor([bits >> n & 1 for n in range(size)]).reshape(shape)


@st.composite
def pairs_of_layouts(draw):
    shape = (draw(SIZES), draw(SIZES), draw(SIZES))
    block, causal = draw(st.integers(1, 4)), draw(st.booleans())
    lead = draw(st.integers(0, block - 1))
    return tuple(
        BlockLayout.from_dense(draw(dense_tensors(*shape)), block, causal=causal, lead=lead) for _ in range(2)
    )


@property_test
@given(dense_tensors(), st.integers(1, 9), st.booleans(), st.data())
def test_dense_and_back(dense, block, causal, data):
    lead = data.draw(st.integers(0, block - 1))
    layout = BlockLayout.from_dense(dense, block, causal=causal, lead=lead)
    assert torch.equal(layout.to_dense(), dense)
    assert (layout.heads, layout.q_blocks, layout.k_blocks) == tuple(dense.shape)
    assert (layout.block, layout.causal, layout.lead) == (block, causal, lead)
    assert layout.nnz == int(dense.sum())
    assert layout.density == pytest.approx(float(dense.double().mean()))
    for tensor in (layout.row_offsets, layout.columns, layout.head_layouts):
        assert tensor.dtype == torch.int32
        assert tensor.device.type == "cpu"


@property_test
@given(dense_tensors())
def test_equal_heads_are_stored_once(dense):
    distinct = {head.numpy().tobytes() for head in dense}
    layout = BlockLayout.from_dense(torch.cat([dense, dense.flip(0)]), 16)
    assert layout.layouts == len(distinct)
    kept_once = sum(int(torch.frombuffer(bytearray(head), dtype=torch.int64).sum()) for head in distinct)
    assert layout.columns.numel() == kept_once
    assert layout.nnz == 2 * int(dense.sum())


@property_test
@given(pairs_of_layouts())
def test_set_algebra_is_that_of_the_dense_tensors(pair):
    a, b = pair
    assert torch.equal((a | b).to_dense(), a.to_dense() | b.to_dense())
    assert torch.equal((a & b).to_dense(), a.to_dense() & b.to_dense())
    assert torch.equal((~a).to_dense(), 1 - a.to_dense())
    for result in (a | b, a & b, ~a):
        assert (result.block, result.causal, result.lead) == (a.block, a.causal, a.lead)


@property_test
@given(pairs_of_layouts())
def test_laws_of_set_algebra(pair):
    a, b = pair
    assert ~~a == a
    assert ~(a | b) == ~a & ~b
    assert ~(a & b) == ~a | ~b
    assert a | b == b | a
    assert a & (a | b) == a
    assert (a & ~a).nnz == 0
    assert (a | ~a).density == 1


def test_intersection_is_causal_if_either_is():
    dense = torch.ones(1, 2, 2)
    plain, causal = BlockLayout.from_dense(dense, 4), BlockLayout.from_dense(dense, 4, causal=True)
    assert (plain & causal).causal
    assert (causal & plain).causal
    assert not (plain & plain).causal
    with pytest.raises(ValueError, match="causal"):
        plain | causal


@property_test
@given(dense_tensors(), st.integers(1, 4))
def test_transpose(dense, block):
    layout = BlockLayout.from_dense(dense, block)
    assert torch.equal(layout.transpose().to_dense(), dense.transpose(1, 2))
    assert layout.transpose().transpose() == layout


def test_transpose_of_a_causal_layout_is_not_causal_and_a_lead_has_none():
    dense = torch.tensor([[[1, 0], [1, 1]]])
    assert not BlockLayout.from_dense(dense, 4, causal=True).transpose().causal
    with pytest.raises(ValueError, match=r"lead \(3\)"):
        BlockLayout.from_dense(dense, 4, lead=3).transpose()


@property_test
@given(dense_tensors(), st.integers(-7, 7), st.integers(-7, 7))
def test_shift(dense, rows, columns):
    expected = torch.zeros_like(dense)
    for h, r, c in dense.nonzero().tolist():
        if 0 <= r + rows < dense.shape[1] and 0 <= c + columns < dense.shape[2]:
            expected[h, r + rows, c + columns] = 1
    layout = BlockLayout.from_dense(dense, 2, causal=True, lead=1)
    assert layout.shift(rows, columns) == BlockLayout.from_dense(expected, 2, causal=True, lead=1)


@property_test
@given(st.data(), st.integers(1, 5), st.booleans(), st.integers(1, 12), st.integers(1, 12))
def test_flops_count_each_kept_pair_of_tokens(data, block, causal, q_len, k_len):
    lead = data.draw(st.integers(0, block - 1))
    q_blocks, k_blocks = -(-(lead + q_len) // block), -(-k_len // block)
    dense = data.draw(dense_tensors(2, q_blocks, k_blocks))
    pairs = 0
    for h in range(2):
        for i in range(q_len):
            for j in range(k_len):
                seen = not causal or j <= i + k_len - q_len
                pairs += seen and int(dense[h, (i + lead) // block, j // block])
    layout = BlockLayout.from_dense(dense, block, causal=causal, lead=lead)
    assert layout.flops(k_len, 7, q_len) == 4 * 7 * pairs
    if q_len == k_len:
        assert layout.flops(k_len, 7) == 4 * 7 * pairs


def test_flops_refuses_lengths_of_another_layout():
    layout = BlockLayout.from_dense(torch.ones(1, 2, 3), 4)
    assert layout.flops(9, 1, 5) == 4 * 5 * 9
    with pytest.raises(ValueError, match="2 x 3 blocks of 4 tokens, but 9 queries and 9 keys need 3 x 3"):
        layout.flops(9, 1)


def test_check_lengths_counts_the_lead():
    layout = BlockLayout.from_dense(torch.ones(1, 2, 3), 4, lead=3)
    layout.check_lengths(2, 12)
    layout.check_lengths(5, 9)
    with pytest.raises(ValueError, match="lead of 3"):
        layout.check_lengths(1, 12)
    with pytest.raises(ValueError, match="6 queries and 12 keys need 3 x 3"):
        layout.check_lengths(6, 12)


def test_content_is_identity():
    dense = torch.tensor([[[1, 0], [1, 1]], [[1, 1], [0, 1]]])
    layout = BlockLayout.from_dense(dense, 4)
    same = BlockLayout.from_csr(
        torch.tensor([[0, 2, 3], [3, 4, 6]]),
        torch.tensor([0, 1, 1, 0, 0, 1]),
        torch.tensor([1, 0]),
        block=4,
        k_blocks=2,
    )
    assert same == layout  # whatever the order in which the layouts were given
    assert hash(same) == hash(layout)
    assert same.digest == layout.digest
    others = [
        BlockLayout.from_dense(dense, 8),
        BlockLayout.from_dense(dense, 4, causal=True),
        BlockLayout.from_dense(dense, 4, lead=1),
        BlockLayout.from_dense(dense.flip(0), 4),
        BlockLayout.from_dense(dense[:1], 4),
        BlockLayout.from_dense(torch.cat([dense, torch.zeros(2, 2, 1)], dim=2), 4),
    ]
    assert len({layout, *others}) == 7
    assert layout != "layout"


@property_test
@given(dense_tensors())
def test_pickle_and_copy_keep_the_content(dense):
    layout = BlockLayout.from_dense(dense, 4, causal=True, lead=2)
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert copy.deepcopy(layout) == layout
    assert copy.copy(layout) == layout


def test_pickles_of_earlier_versions_load():
    """They name the class where it stood, and `from_csr` with its keyword ``lead``."""
    layout = BlockLayout.from_dense(torch.eye(3)[None], 4, causal=True, lead=2)
    arrays = (layout.row_offsets, layout.columns, layout.head_layouts)
    shape = {"block": 4, "k_blocks": 3, "causal": True, "lead": 2}
    for module in ("longspan_kernels.layout", "longspan_kernels.layout.block_layout"):
        earlier = functools.partial(importlib.import_module(module).BlockLayout.from_csr, **shape)
        assert pickle.loads(pickle.dumps(earlier))(*arrays) == layout


def test_the_number_of_a_layout_is_that_of_its_digest():
    layout = BlockLayout.from_dense(torch.eye(3)[None], 4, lead=2)
    assert layout.handle.number == int(layout.digest, 16) >> (256 - 63)
    assert (layout.handle.query_offset, layout.query_offset, layout.lead) == (2, 2, 2)


def test_layouts_are_immutable():
    layout = BlockLayout.from_dense(torch.ones(1, 2, 2), 4)
    with pytest.raises(AttributeError, match="immutable"):
        layout.block = 8
    with pytest.raises(AttributeError, match="immutable"):
        del layout.columns
    with pytest.raises(AttributeError):
        layout.new = 1
    with pytest.raises(TypeError, match="from_csr"):
        BlockLayout(1)


@pytest.mark.parametrize("name", ["row_offsets", "columns", "head_layouts"])
def test_writing_into_a_tensor_of_a_layout_leaves_the_layout(name):
    layout = BlockLayout.from_dense(torch.eye(3)[None].expand(2, -1, -1), 4)
    dense, content = layout.to_dense(), getattr(layout, name)
    getattr(layout, name).fill_(1)
    assert torch.equal(getattr(layout, name), content)
    assert torch.equal(layout.to_dense(), dense)
    assert layout == BlockLayout.from_dense(dense, 4)


def test_the_given_arrays_are_not_shared():
    offsets = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    columns = torch.tensor([0, 1], dtype=torch.int32)
    heads = torch.tensor([0], dtype=torch.int32)
    layout = BlockLayout.from_csr(offsets, columns, heads, block=4, k_blocks=2)
    for array in (offsets, columns, heads):
        array.fill_(1)
    assert layout.to_dense().tolist() == [[[1, 0], [0, 1]]]


def test_layouts_that_no_head_uses_are_dropped():
    layout = BlockLayout.from_csr(
        torch.tensor([[0, 1], [1, 3]]), torch.tensor([1, 0, 2]), torch.tensor([1, 1]), block=4, k_blocks=3
    )
    assert layout.layouts == 1
    assert layout.to_dense().tolist() == [[[1, 0, 1]], [[1, 0, 1]]]


GOOD = {
    "row_offsets": torch.tensor([[0, 2, 3]]),
    "columns": torch.tensor([0, 1, 1]),
    "head_layouts": torch.tensor([0, 0]),
    "block": 4,
    "k_blocks": 2,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 0}, "block must be at least 1 token, got 0"),
        ({"lead": 4}, r"lead must lie in \[0, block\), got 4 with block 4"),
        ({"lead": -1}, r"lead must lie in \[0, block\), got -1"),
        ({"k_blocks": -1}, "k_blocks must not be negative, got -1"),
        ({"k_blocks": 1}, r"columns must lie in \[0, 1\), got 0..1"),
        ({"columns": torch.tensor([-1, 1, 1])}, r"columns must lie in \[0, 2\), got -1..1"),
        ({"columns": torch.tensor([1, 0, 1])}, "ascend strictly"),
        ({"columns": torch.tensor([0, 0, 1])}, "ascend strictly"),
        ({"columns": torch.tensor([0.0, 1.0, 1.0])}, "columns must be integers, got torch.float32"),
        ({"columns": torch.tensor([[0, 1, 1]])}, r"columns must be \[kept blocks\], got shape \(1, 3\)"),
        ({"columns": torch.tensor([0, 1])}, "row_offsets must rise"),
        ({"row_offsets": torch.tensor([0, 2, 3])}, r"row_offsets must be \[layouts, q_blocks \+ 1\]"),
        ({"row_offsets": torch.zeros(0, 3, dtype=torch.int64)}, "at least one layout"),
        ({"row_offsets": torch.zeros(1, 0, dtype=torch.int64)}, "one offset"),
        ({"row_offsets": torch.tensor([[1, 2, 3]])}, "row_offsets must rise from 0"),
        ({"row_offsets": torch.tensor([[0, 4, 3]])}, "row_offsets must rise from 0"),
        ({"row_offsets": torch.tensor([[0, 1], [2, 3]])}, "row_offsets must rise from 0"),
        ({"head_layouts": torch.tensor([0, 1])}, r"head_layouts must name one of 1 layouts .* got \[0, 1\]"),
        ({"head_layouts": torch.tensor([-1])}, "head_layouts must name"),
        ({"head_layouts": torch.tensor([], dtype=torch.int64)}, "head_layouts must name"),
        ({"head_layouts": torch.tensor([True])}, "head_layouts must be integers, got torch.bool"),
        ({"head_layouts": torch.tensor(0)}, r"head_layouts must be \[heads\]"),
    ],
)
def test_bad_arrays_are_refused(change, message):
    assert BlockLayout.from_csr(**GOOD).nnz == 6
    with pytest.raises(ValueError, match=message):
        BlockLayout.from_csr(**(GOOD | change))


@pytest.mark.parametrize("shape", [(2, 2), (0, 2, 2), (1, 1, 2, 2)])
def test_from_dense_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"dense must be \[heads, q_blocks, k_blocks\]"):
        BlockLayout.from_dense(torch.ones(shape), 4)


def test_set_algebra_refuses_other_geometry():
    layout = BlockLayout.from_dense(torch.ones(1, 2, 2), 4)
    for other, name in [
        (BlockLayout.from_dense(torch.ones(1, 2, 2), 8), "block"),
        (BlockLayout.from_dense(torch.ones(2, 2, 2), 4), "heads"),
        (BlockLayout.from_dense(torch.ones(1, 3, 2), 4), "q_blocks"),
        (BlockLayout.from_dense(torch.ones(1, 2, 3), 4), "k_blocks"),
        (BlockLayout.from_dense(torch.ones(1, 2, 2), 4, lead=1), "lead"),
    ]:
        with pytest.raises(ValueError, match=f"equal {name}"):
            layout | other
        with pytest.raises(ValueError, match=f"equal {name}"):
            layout & other
    with pytest.raises(TypeError, match="int"):
        layout | 1


@property_test
@given(dense_tensors(q_blocks=3, k_blocks=2), dense_tensors(q_blocks=3, k_blocks=2))
def test_stack_heads(first, second):
    layouts = [BlockLayout.from_dense(dense, 4, causal=True, lead=1) for dense in (first, second)]
    both = BlockLayout.from_dense(torch.cat([first, second]), 4, causal=True, lead=1)
    assert stack_heads(layouts) == both


def test_stack_heads_refuses_unlike_layouts():
    layout = BlockLayout.from_dense(torch.ones(1, 2, 2), 4)
    with pytest.raises(ValueError, match="agree on causal, got False and True"):
        stack_heads([layout, BlockLayout.from_dense(torch.ones(1, 2, 2), 4, causal=True)])
    with pytest.raises(ValueError, match="at least one"):
        stack_heads([])


def test_repr_names_the_shape():
    text = repr(BlockLayout.from_dense(torch.eye(2)[None], 4, causal=True))
    assert "heads=1" in text
    assert "causal=True" in text
    assert "density=0.5" in text
