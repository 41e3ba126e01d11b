"""SparseSelfAttention: the original's forward, and what it could not do."""

import copy
import math
import pickle
from dataclasses import dataclass, field

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing

import longspan
from longspan.attention import SparseSelfAttention
from longspan.sparsity import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    HeadMixtureSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    RandomSparsityConfig,
    VerticalSlashSparsityConfig,
)

HEADS, BLOCK, LENGTH = 2, 8, 61


@pytest.fixture
def pattern():
    return BigBirdSparsityConfig(HEADS, BLOCK)


def _inputs(batch=2, length=LENGTH, heads=HEADS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, length, 4)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]


def _dense(pattern, q, k, v, *added):
    """Softmax of the scaled scores and all that is added, over the kept blocks: the original's definition."""
    length = q.shape[2]
    kept = pattern.make_layout(length).bool()
    kept = kept.repeat_interleave(pattern.block, 1).repeat_interleave(pattern.block, 2)[:, :length, :length]
    scores = q @ k.mT / math.sqrt(q.shape[3]) + sum(added)
    return scores.masked_fill(~kept, -math.inf).softmax(-1).nan_to_num(0) @ v


def test_plain(pattern):
    q, k, v = _inputs()
    torch.testing.assert_close(SparseSelfAttention(pattern)(q, k, v), _dense(pattern, q, k, v))


@pytest.mark.parametrize("attention", ["bidirectional", "unidirectional"])
@pytest.mark.parametrize("length", [1, 5, 2 * BLOCK])
def test_a_text_too_short_for_the_pattern_is_attended_densely(length, attention):
    """BigBird is not defined for fewer than three blocks; a model reads short texts all the same."""
    pattern = BigBirdSparsityConfig(HEADS, BLOCK, attention=attention)
    module = SparseSelfAttention(pattern)
    q, k, v = (x.detach() for x in _inputs(length=length))
    causal = attention == "unidirectional"
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert not pattern.defined_for(length)
    with pytest.warns(UserWarning, match=r"bigbird is not defined for .* [12] block\(s\) of 8 tokens"):
        torch.testing.assert_close(module(q, k, v), expected)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), expected)
    # From three blocks on it is the pattern's own.
    assert pattern.defined_for(2 * BLOCK + 1)
    inputs = _inputs(length=2 * BLOCK + 1)
    layout = pattern.layout(2 * BLOCK + 1)
    torch.testing.assert_close(module(*inputs), longspan.block_sparse_attention(*inputs, layout))


def test_modes_of_masks(pattern):
    q, k, v = _inputs()
    padding = torch.arange(LENGTH).expand(2, -1) % 5 != 3
    mask = torch.arange(LENGTH)[:, None] % 7 != torch.arange(LENGTH) % 7

    def struck(keep):
        return torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -math.inf)

    expected = _dense(pattern, q, k, v, struck(padding)[:, None, None], struck(mask))
    default = SparseSelfAttention(pattern)
    numbers = padding.double() * 3, mask.double() * -2
    torch.testing.assert_close(
        default(q, k, v, key_padding_mask=struck(padding), attn_mask=numbers[1]), expected
    )
    torch.testing.assert_close(
        default(q, k, v, key_padding_mask=struck(padding)[:, None, None], attn_mask=mask.long()), expected
    )
    swapped = SparseSelfAttention(pattern, key_padding_mask_mode="mul", attn_mask_mode="add")
    torch.testing.assert_close(
        swapped(q, k, v, key_padding_mask=numbers[0], attn_mask=struck(mask)), expected
    )
    for module in (default, swapped):
        torch.testing.assert_close(module(q, k, v, key_padding_mask=padding, attn_mask=mask), expected)
    added = torch.randn(LENGTH, LENGTH, dtype=torch.float64)
    torch.testing.assert_close(swapped(q, k, v, attn_mask=added), _dense(pattern, q, k, v, added))


@pytest.mark.parametrize("shape", [(2, HEADS, LENGTH, LENGTH), (HEADS, LENGTH, LENGTH), (HEADS, 1, LENGTH)])
def test_rpe_is_learned_and_broadcasts(pattern, shape):
    q, k, v = _inputs()
    rpe = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    mine, theirs = SparseSelfAttention(pattern)(q, k, v, rpe), _dense(pattern, q, k, v, rpe)
    torch.testing.assert_close(mine, theirs)
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v, rpe)) for out in (mine, theirs)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(SparseSelfAttention(pattern)(q, k, v, bias=rpe), mine)


def test_queries_at_the_end_see_what_they_see_among_all():
    pattern = BigBirdSparsityConfig(HEADS, BLOCK, attention="unidirectional")
    module = SparseSelfAttention(pattern)
    q, k, v = _inputs()
    whole = module(q, k, v)
    for last in (1, 7, 8, 30):
        torch.testing.assert_close(module(q[:, :, -last:], k, v), whole[:, :, -last:])


def test_causal_overrides_the_pattern_and_window_narrows_it(pattern):
    q, k, v = _inputs()
    distance = torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]

    def allowed(keep):
        return torch.zeros(LENGTH, LENGTH, dtype=torch.float64).masked_fill(~keep, -math.inf)

    module = SparseSelfAttention(pattern)
    torch.testing.assert_close(
        module(q, k, v, causal=True, scale=0.25), _dense(pattern, q * 0.5, k, v, allowed(distance <= 0))
    )
    torch.testing.assert_close(
        module(q, k, v, window=(3, 2)),
        _dense(pattern, q, k, v, allowed((distance >= -3) & (distance <= 2))),
    )
    documents = torch.arange(LENGTH) // 20
    torch.testing.assert_close(
        module(q, k, v, document_ids=documents.expand(2, -1)),
        _dense(pattern, q, k, v, allowed(documents[:, None] == documents)),
    )


def test_dropout_in_training_alone(pattern):
    q, k, v = _inputs()
    module = SparseSelfAttention(pattern, dropout_p=0.5)
    plain = _dense(pattern, q, k, v)
    assert (module(q, k, v) - plain).abs().max() > 0.01
    torch.testing.assert_close(module(q, k, v, dropout_p=0.0), plain)
    module.eval()
    torch.testing.assert_close(module(q, k, v), plain)
    assert (module(q, k, v, dropout_p=0.3) - plain).abs().max() > 0.01


def test_two_patterns_of_one_length_do_not_share_a_layout(pattern):
    q, k, v = _inputs()
    other = FixedSparsityConfig(HEADS, BLOCK, num_local_blocks=2)
    torch.testing.assert_close(SparseSelfAttention(other)(q, k, v), _dense(other, q, k, v))
    torch.testing.assert_close(SparseSelfAttention(pattern)(q, k, v), _dense(pattern, q, k, v))


def test_nothing_in_the_state_dict_and_no_limit_of_length(pattern):
    module = SparseSelfAttention(pattern, max_seq_length=16)
    module(*_inputs())
    assert not module.state_dict()
    assert not list(module.parameters())


def test_compiles_without_a_graph_break(pattern):
    torch._dynamo.reset()
    module = SparseSelfAttention(pattern)
    q, k, v = _inputs()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for length in (LENGTH, 40):
        parts = [x[:, :, :length] for x in (q, k, v)]
        torch.testing.assert_close(compiled(*parts), module(*parts))
    grads = [torch.autograd.grad(f(q, k, v).square().sum(), (q, k, v)) for f in (compiled, module)]
    torch.testing.assert_close(*grads)


@dataclass(frozen=True)
class Shares(BigBirdSparsityConfig):
    """A pattern of a user's own, with arguments of all plain types, one of them by keyword alone."""

    share: float = 0.5
    windows: tuple[int, ...] = ()
    label: str | None = field(default=None, kw_only=True)

    name = "shares"


PATTERNS_BY_NUMBER = [
    lambda number: BigBirdSparsityConfig(HEADS, BLOCK, seed=number),
    lambda number: BSLongformerSparsityConfig(HEADS, BLOCK, global_block_indices=(number,)),
    lambda number: Shares(HEADS, BLOCK, share=number / 7, windows=(number, 4), label=f"{number}"),
    lambda number: (
        DenseSparsityConfig(HEADS, BLOCK)
        - (
            RandomSparsityConfig(HEADS, BLOCK, True, density=number / 7, seed=number)
            | VerticalSlashSparsityConfig(HEADS, BLOCK, vertical_blocks=(number,))
        )
    ),
    lambda number: HeadMixtureSparsityConfig(
        HEADS, BLOCK, patterns=f"bigbird(seed={number}) local(num_sliding_window_blocks={2 * number})"
    ),
]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("make", PATTERNS_BY_NUMBER)
def test_modules_compile_once_for_each_pattern(make, dynamic):
    """One piece of code for all the layers of a model: equal patterns share a graph, others do not."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(
        lambda module, q, k, v: module(q, k, v), fullgraph=True, backend=counter, dynamic=dynamic
    )
    inputs = _inputs()
    for number in (1, 2, 3, 2, 1):
        module = SparseSelfAttention(make(number))
        out = compiled(module, *inputs)
        torch.testing.assert_close(out, _dense(module.sparsity_config, *inputs))
        grads = [torch.autograd.grad(x.square().sum(), inputs) for x in (out, module(*inputs))]
        torch.testing.assert_close(*grads)
    assert counter.frame_count == 3
    module.sparsity_config = copy.deepcopy(pickle.loads(pickle.dumps(make(2))))
    torch.testing.assert_close(compiled(module, *inputs), _dense(module.sparsity_config, *inputs))
    assert counter.frame_count == 3


def test_a_pattern_class_defined_anew_compiles_again():
    """As in a notebook: equal in name and arguments, another class nonetheless."""

    def define(reach):
        @dataclass(frozen=True)
        class Again(LocalSlidingWindowSparsityConfig):
            name = "again"

            def intervals(self, rows, num_blocks, head):
                first, past = super().intervals(rows, num_blocks, head)
                return first - reach, past + reach

        return Again

    torch._dynamo.reset()
    compiled = torch.compile(lambda module, q, k, v: module(q, k, v), fullgraph=True, backend="eager")
    inputs = _inputs()
    for reach in (0, 1):
        module = SparseSelfAttention(define(reach)(HEADS, BLOCK, attention="bidirectional"))
        torch.testing.assert_close(compiled(module, *inputs), _dense(module.sparsity_config, *inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"key_padding_mask_mode": "times"},
            "key_padding_mask_mode must be 'add' or 'mul', got 'times'",
        ),
        ({"attn_mask_mode": "no"}, "attn_mask_mode must be 'add' or 'mul', got 'no'"),
        ({"dropout_p": 1.5}, r"dropout_p must lie in \[0, 1\), got 1.5"),
    ],
)
def test_refused_options(pattern, options, message):
    with pytest.raises(ValueError, match=message):
        SparseSelfAttention(pattern, **options)


def test_refused_calls(pattern):
    module = SparseSelfAttention(pattern)
    q, k, v = _inputs()
    with pytest.raises(ValueError, match=r"num_heads=2, got \[2, 3, 61, 4\]"):
        module(*_inputs(heads=3))
    with pytest.raises(ValueError, match="a mask of 0 and 1 wants the mode 'mul'"):
        module(q, k, v, key_padding_mask=torch.ones(2, LENGTH, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[batch, k_len\] or \[batch, 1, 1, k_len\], got \[61\]"):
        module(q, k, v, key_padding_mask=torch.ones(LENGTH))
    with pytest.raises(ValueError, match="rpe and bias are the same argument"):
        module(q, k, v, torch.zeros(1), bias=torch.zeros(1))
