"""Masks and biases of the scores of a chunk: lengths, bounds, padding, documents, attention masks, biases.

Shapes in this file: b batch entries, h heads, r segments of rows, n slots a segment, B tokens a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from longspan_kernels import philox
from longspan_kernels.arguments import Arguments
from longspan_kernels.torch_backend.chunks import Chunk, Geometry


class Masks:
    """The masks and biases of one call, read chunk by chunk; nothing of ``[q_len, k_len]`` is allocated."""

    def __init__(self, arguments: Arguments, geometry: Geometry) -> None:
        self.arguments = arguments
        self.geometry = geometry
        self.shift = geometry.k_len - geometry.q_len
        self.padding = self._key_blocks(arguments.key_padding_mask)
        self.key_documents = self._key_blocks(arguments.document_ids)
        self.query_documents: Tensor | None = None
        if arguments.document_ids is not None:
            tail = geometry.q_blocks * geometry.block - geometry.query_offset - geometry.q_len
            documents = pad(arguments.document_ids[:, self.shift :], (geometry.query_offset, tail))
            self.query_documents = documents.view(-1, geometry.q_blocks, geometry.block)

    def _key_blocks(self, x: Tensor | None) -> Tensor | None:
        """Per-key values ``[batch, k_len]`` as ``[batch, k_blocks, block]``."""
        if x is None:
            return None
        geometry = self.geometry
        tail = geometry.k_blocks * geometry.block - geometry.k_len
        return (pad(x, (0, tail)) if tail else x).reshape(-1, geometry.k_blocks, geometry.block)

    def apply(self, scores: Tensor, chunk: Chunk) -> None:
        """Mask scores ``[b, h, r, B, n B]`` in place and add biases."""
        arguments = self.arguments
        for mask in (arguments.attn_mask, arguments.bias):
            if mask is not None:
                _combine(scores, mask[self._index(mask, chunk)])
        if arguments.relative_table is not None:
            scores.add_(arguments.relative_table[self._buckets(chunk), chunk.heads])
        if arguments.slopes is not None:
            distance = (chunk.keys - chunk.queries - self.shift).abs()
            scores.sub_(arguments.slopes.to(scores.dtype)[chunk.heads] * distance)
        if self.padding is not None:
            _combine(scores, _of_keys(self.padding, chunk))
        if self.key_documents is not None and self.query_documents is not None:
            keys = _of_keys(self.key_documents, chunk)
            queries = self.query_documents[chunk.batch.flatten()[:, None], chunk.rows][:, None, ..., None]
            scores.masked_fill_(keys != queries, -math.inf)
        if chunk.masked_keys.numel():
            keys = chunk.masked_keys
            position = chunk.queries + self.shift
            hidden = keys >= self.geometry.k_len
            if arguments.right is not None:
                hidden = hidden | (keys > position + arguments.right)
            if arguments.left is not None:
                hidden = hidden | (keys < position - arguments.left)
            scores[..., scores.shape[-1] - keys.shape[-1] :].masked_fill_(hidden, -math.inf)

    def dropout(self, chunk: Chunk, dtype: torch.dtype) -> Tensor | None:
        """Return the factors ``[b, h, r, B, n B]`` of dropout, 0 or ``1 / (1 - p)``; None without dropout."""
        arguments = self.arguments
        if arguments.dropout_seed is None:
            return None
        keep = philox.keep_mask(
            arguments.dropout_seed,
            arguments.dropout_p,
            batch=chunk.batch,
            head=chunk.heads,
            query=chunk.queries + self.shift,
            key=chunk.keys,
            aligned=self.geometry.block % 4 == 0,
        )
        return keep.to(dtype).mul_(1 / (1 - arguments.dropout_p))

    def _index(self, mask: Tensor, chunk: Chunk) -> tuple[Tensor, ...]:
        """Index of the chunk's elements in a mask ``[batch or 1, heads or 1, q_len or 1, k_len or 1]``.

        Padding reads an element that is there; the mask of positions hides it afterwards.
        """
        indices = (chunk.batch, chunk.heads, chunk.queries, chunk.keys)
        return tuple(
            index.new_zeros(()) if size == 1 else index.clamp(0, size - 1)
            for index, size in zip(indices, mask.shape, strict=True)
        )

    def _buckets(self, chunk: Chunk) -> Tensor:
        """Bucket of each pair of the chunk, ``[r, B, n B]``."""
        buckets = self.arguments.relative_buckets
        assert buckets is not None
        span = buckets.numel() // 2
        return buckets[(chunk.keys - chunk.queries - self.shift).clamp(-span, span) + span]

    def add_table_gradient(self, gradient: Tensor, grad_scores: Tensor, chunk: Chunk) -> None:
        """Add the chunk's gradient of the scores ``[b, h, r, B, n B]`` to that of the table.

        Args:
            gradient: ``[buckets, heads]``, contiguous.
            grad_scores: zero where padding was.
            chunk: where the scores lie.

        """
        summed = grad_scores.sum(0)
        flat = self._buckets(chunk) * gradient.shape[1] + chunk.heads[0]
        gradient.view(-1).index_add_(0, flat.expand(summed.shape).reshape(-1), summed.reshape(-1))

    def add_bias_gradient(self, gradient: Tensor, grad_scores: Tensor, chunk: Chunk) -> None:
        """Add the chunk's gradient of the scores ``[b, h, r, B, n B]``, summed over what the bias broadcasts.

        Args:
            gradient: the bias's own shape, contiguous.
            grad_scores: zero where padding was.
            chunk: where the scores lie.

        """
        index = self._index(gradient, chunk)
        sides = (0, 1, 3, 4)
        summed = [side for side, size in zip(sides, gradient.shape, strict=True) if size == 1]
        if summed:
            grad_scores = grad_scores.sum(summed, keepdim=True)
        flat = torch.zeros((), dtype=torch.int64, device=gradient.device)
        for one, size in zip(index, gradient.shape, strict=True):
            flat = flat * size + one
        gradient.view(-1).index_add_(0, flat.expand(grad_scores.shape).reshape(-1), grad_scores.reshape(-1))


def _of_keys(blocks: Tensor, chunk: Chunk) -> Tensor:
    """Gather per-key values ``[batch, k_blocks, B]`` for a chunk: ``[b, 1, r, 1, n B]``."""
    return blocks[chunk.batch.flatten()[:, None, None], chunk.columns].flatten(2)[:, None, :, None]


def _combine(scores: Tensor, mask: Tensor) -> None:
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, -math.inf)
    else:
        scores.add_(mask)
