"""Layouts by number: a custom op takes only tensors and numbers, so it takes a layout as a number.

The number is 63 bits of the digest of the layout: equal layouts share it in every process. This module finds
the layout of a number through weak references, so it keeps no layout alive. A caller that keeps a number for
later (a backward, a compiled graph) keeps the layout too.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from longspan_kernels.layout.csr import BlockCSR, number_of

Function = TypeVar("Function", bound=Callable[..., Any])

_lock = threading.Lock()
# One layout of each content. Equal layouts made later hold a reference to it, so it lives as long as any.
_living: weakref.WeakValueDictionary[int, BlockCSR] = weakref.WeakValueDictionary()
_kept_for_graphs: dict[int, BlockCSR] = {}


def note(layout: BlockCSR) -> BlockCSR | None:
    """Register a new layout under its number, without keeping it alive.

    Returns:
        The equal layout that is registered already; the new one must hold a reference to it. None if the new
        one is the first.

    Raises:
        RuntimeError: a layout with other content has the same number.

    """
    with _lock:
        first = _living.get(layout.handle.number)
        if first is None:
            _living[layout.handle.number] = layout
        elif first.digest != layout.digest:
            raise RuntimeError(
                f"two different layouts have the number {layout.handle.number}: their digests "
                f"{first.digest} and {layout.digest} begin with the same 63 bits. Let go of {first!r} before "
                f"making {layout!r}, or change either of them"
            )
    return first


def by_digest(digest: str) -> BlockCSR:
    """Return a living layout by the digest of its content.

    Raises:
        RuntimeError: no layout of this content lives.

    """
    layout = _living.get(number_of(digest))
    if layout is None or layout.digest != digest:
        raise RuntimeError(f"no BlockLayout of digest {digest} lives: keep the layout while it is compiled")
    return layout


def keep_for_graph(layout: BlockCSR) -> tuple[Any, ...]:
    """Keep a layout as long as the process, as a compiled graph needs; return its handle's fields."""
    _kept_for_graphs[layout.handle.number] = layout
    return tuple(layout.handle)


def layout_of(number: int) -> BlockCSR:
    """Return the layout of a number.

    Raises:
        RuntimeError: no layout of this content lives any more.

    """
    layout = _living.get(number)
    if layout is None:
        raise RuntimeError(
            f"layout handle {number} names no living BlockLayout: keep the layout, or the pattern that made "
            "it, for as long as it is attended with"
        )
    return layout


def constant_in_graphs(function: Function) -> Function:
    """Mark a function that Dynamo runs while it traces, to keep the result as a constant of the graph.

    `torch.compiler.assume_constant_result` does the same, but imports torch's compiler and with it Triton.

    The arguments must be constants to Dynamo: numbers, strings, classes, tuples of them. Dynamo guards those
    by value in all versions, so a graph is used again only where the result would be the same. It refuses
    other objects (torch 2.11) or guards them by identity (2.13); the object of a method it does not guard.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
