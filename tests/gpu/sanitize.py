"""A small case of every kernel, to be run as ``compute-sanitizer python tests/gpu/sanitize.py``.

Lengths that nothing divides, head dimensions that are no power of two, an empty row, and all options, so
that each load and store meets its bound.
Also for ``compute-sanitizer --tool racecheck`` and ``--tool initcheck``.

Most of the time goes into compiling: ``make gpu`` first runs each case in a process of its own, all of them
at once, which leaves the kernels in Triton's cache.
"""

import os
import sys

# Each tensor an allocation of its own: an access out of bounds cannot land in a neighbour of the pool.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

import torch

from longspan_kernels import BlockLayout, block_sparse_attention


def run(block: int, dtype: torch.dtype, dim: int, q_len: int, k_len: int, every_option: bool) -> None:
    """Attend and differentiate once."""
    generator = torch.Generator().manual_seed(block)
    dense = torch.rand(4, -(-q_len // block), -(-k_len // block), generator=generator) < 0.5
    dense[:, 0] = dense[:, :, 0] = True
    dense[:, 1:2] = False
    layout = BlockLayout.from_dense(dense, block, causal=every_option)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).cuda()

    q, k, v = (numbers(2, heads, n, dim).to(dtype) for heads, n in ((4, q_len), (2, k_len), (2, k_len)))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    options = {}
    if every_option:
        leaves.append(numbers(4, q_len, k_len).requires_grad_())
        options = {
            "bias": leaves[-1],
            "key_padding_mask": numbers(2, k_len) > -0.5,
            "attn_mask": numbers(2, 1, q_len, k_len) > -1.0,
            "document_ids": torch.arange(k_len, device="cuda").expand(2, -1) // 100,
            "window": (150, None),
            "dropout_p": 0.2,
            "dropout_seed": 3,
        }
    out, lse = block_sparse_attention(*leaves[:3], layout, return_lse=True, backend="triton", **options)
    gradients = torch.autograd.grad((out, lse), leaves, (torch.randn_like(out), torch.randn_like(lse)))
    torch.cuda.synchronize()
    for x in (out, *gradients):
        if not torch.isfinite(x).all():
            raise SystemExit(f"not finite: block {block}, {dtype}, dim {dim}, {every_option=}")


CASES = [
    *(
        (block, torch.bfloat16, 64, 203, 263, options)
        for block in (16, 32, 64, 128)
        for options in (False, True)
    ),
    (16, torch.float16, 40, 263, 203, False),
    (64, torch.float32, 72, 131, 131, True),
]


def main() -> None:
    """Run the cases of the numbers given, or all."""
    for number in map(int, sys.argv[1:] or range(len(CASES))):
        run(*CASES[number])
    print("done")


if __name__ == "__main__":
    main()
