"""What the tests of the kernels on a GPU share: patterns, inputs, layouts, and a call with its gradients."""

import torch

from longspan import sparsity
from longspan_kernels import Alibi, BlockLayout, T5Buckets, block_sparse_attention

HEADS = 2
PATTERNS = {
    "dense": lambda block: sparsity.DenseSparsityConfig(HEADS, block),
    "dense_causal": lambda block: sparsity.DenseSparsityConfig(HEADS, block, attention="unidirectional"),
    "fixed": lambda block: sparsity.FixedSparsityConfig(HEADS, block),
    "fixed_causal": lambda block: sparsity.FixedSparsityConfig(
        HEADS, block, True, attention="unidirectional", num_different_global_patterns=2
    ),
    "variable": lambda block: sparsity.VariableSparsityConfig(
        HEADS, block, True, num_random_blocks=1, local_window_blocks=(1, 4), horizontal_global_attention=True
    ),
    "bigbird": lambda block: sparsity.BigBirdSparsityConfig(HEADS, block, True),
    "bigbird_causal": lambda block: sparsity.BigBirdSparsityConfig(HEADS, block, attention="unidirectional"),
    "bslongformer": lambda block: sparsity.BSLongformerSparsityConfig(
        HEADS, block, global_block_indices=(0, 5)
    ),
    "local_sliding_window": lambda block: sparsity.LocalSlidingWindowSparsityConfig(HEADS, block),
}
Q_LEN, K_LEN = 1500, 2011


def options_of_calls():
    """Keyword arguments of `block_sparse_attention` by name; the last has nearly all of them."""
    generator = torch.Generator("cuda").manual_seed(3)

    def numbers(*shape):
        return torch.randn(shape, generator=generator, device="cuda")

    padding = torch.rand(2, K_LEN, generator=generator, device="cuda") < 0.7
    documents = torch.arange(K_LEN, device="cuda") // 300 + torch.tensor([[0], [100]], device="cuda")
    return {
        "plain": {},
        "causal": {"causal": True},
        "scale": {"scale": 0.3},
        "padding": {"key_padding_mask": padding},
        "padding_added": {"key_padding_mask": numbers(2, K_LEN)},
        "mask": {"attn_mask": numbers(Q_LEN, K_LEN) > -0.5},
        "mask_of_the_batch": {"attn_mask": numbers(2, 1, Q_LEN, K_LEN) > -0.5},
        "mask_of_heads": {"attn_mask": numbers(2, 4, Q_LEN, K_LEN)},
        "bias": {"bias": numbers(Q_LEN, K_LEN).requires_grad_()},
        "bias_of_heads": {"bias": numbers(1, 4, Q_LEN, K_LEN).requires_grad_()},
        "bias_of_the_batch": {"bias": numbers(2, 1, Q_LEN, K_LEN).requires_grad_()},
        "bias_of_both": {"bias": numbers(2, 4, Q_LEN, K_LEN).requires_grad_()},
        "bias_of_keys": {"bias": numbers(2, 1, 1, K_LEN).requires_grad_()},
        "bias_of_queries": {"bias": numbers(2, 4, Q_LEN, 1).requires_grad_()},
        "documents": {"document_ids": documents},
        "window": {"window": (200, 31)},
        "table_of_distances": {"relative_bias": T5Buckets(numbers(32, 4).requires_grad_())},
        "slopes": {"relative_bias": Alibi.of(4, "cuda")},
        "dropout": {"dropout_p": 0.3, "dropout_seed": 2**63 + 12345},
        "all": {
            "causal": True,
            "scale": 0.1,
            "key_padding_mask": padding,
            "attn_mask": numbers(2, 1, 1, K_LEN),
            "bias": numbers(4, Q_LEN, K_LEN).requires_grad_(),
            "document_ids": documents.int(),
            "window": (700, None),
            "dropout_p": 0.2,
            "dropout_seed": 7,
        },
    }


def inputs_of(batch, heads, kv_heads, q_len, k_len, dim, dtype, v_dim=None, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)

    def one(heads, length, dim):
        x = torch.randn(batch, heads, length, dim, generator=generator, device="cuda")
        return x.to(dtype).requires_grad_()

    return one(heads, q_len, dim), one(kv_heads, k_len, dim), one(kv_heads, k_len, v_dim or dim)


def weight_for(like, seed=1):
    """A gradient for a result."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device="cuda").to(like.dtype)


def error_of(x, exact):
    """The norm of the error in proportion to the norm of what is exact."""
    x, exact = x.detach().double(), exact.detach()
    return float((x - exact).norm() / exact.norm())


def layout_of(block, *, heads=4, q_len=Q_LEN, k_len=K_LEN, lead=0, seed=0):
    """Random blocks, a global row and a global column, a layout for each head; one row is empty."""
    shape = (heads, -(-(lead + q_len) // block), -(-k_len // block))
    dense = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    dense[:, 1] = dense[:, :, 2] = True
    dense[:, 3] = False
    return BlockLayout.from_dense(dense, block, lead=lead)


def results_of(inputs, layout, backend, weights=None, **options):
    """The context, the log-sum-exp and the gradients of all that requires one, by name."""
    out, lse = block_sparse_attention(*inputs, layout, return_lse=True, backend=backend, **options)
    leaves = dict(zip("qkv", inputs, strict=True))
    bias = options.get("bias")
    if bias is not None and bias.requires_grad:
        leaves["bias"] = bias
    if isinstance(options.get("relative_bias"), T5Buckets):
        leaves["table"] = options["relative_bias"].table
    if weights is None:
        weights = weight_for(out, 1), weight_for(lse, 2)
    weights = [w.to(x.dtype) for w, x in zip(weights, (out, lse), strict=True)]
    gradients = torch.autograd.grad((out, lse), list(leaves.values()), weights)
    return {"out": out, "lse": lse, **dict(zip(leaves, gradients, strict=True))}
