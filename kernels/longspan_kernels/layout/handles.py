"""Layouts by number: a custom op takes tensors and numbers alone, so a `BlockLayout` crosses as a handle.

A handle names a content: equal layouts share it, in whichever object they come, so that what a backend
prepares for a handle serves them all. The registry is weak: it keeps no layout alive. Whoever holds a handle
for later, as a backward or a compiled graph does, holds the layout too.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from longspan_kernels.layout import BlockLayout

Function = TypeVar("Function", bound=Callable[..., Any])

_lock = threading.Lock()
# All living layouts, by identity.
_living: weakref.WeakValueDictionary[int, BlockLayout] = weakref.WeakValueDictionary()
_handles: dict[str, int] = {}
# All living objects of a content that has a handle, by identity: it is good as long as one of them lives.
_layouts: dict[int, weakref.WeakValueDictionary[int, BlockLayout]] = {}
# The one of them that was asked for last: looking through all at each call would take longer than a launch.
_last: dict[int, weakref.ref[BlockLayout]] = {}
_pinned: dict[int, BlockLayout] = {}


class LayoutHandle(NamedTuple):
    """A layout in numbers: its handle, and what a call checks its tensors against."""

    number: int
    heads: int
    block: int
    q_blocks: int
    k_blocks: int
    lead: int
    causal: bool


def enter(layout: BlockLayout) -> None:
    """Note a new layout, weakly, for `find`."""
    with _lock:
        _living[id(layout)] = layout


def find(digest: str) -> BlockLayout:
    """Return a living layout by the digest of its content; it looks at each, so it is for tracing alone.

    Raises:
        RuntimeError: no layout of this content lives.

    """
    with _lock:
        for layout in _living.values():
            if layout.digest == digest:
                return layout
    raise RuntimeError(f"no BlockLayout of digest {digest} lives: keep the layout while it is compiled")


def handle_of(layout: BlockLayout) -> LayoutHandle:
    """Return the handle of a layout's content; it is valid as long as this layout lives."""
    if layout._handle is not None:
        return layout._handle
    with _lock:
        number = _handles.setdefault(layout.digest, len(_handles) + 1)
        _layouts.setdefault(number, weakref.WeakValueDictionary())[id(layout)] = layout
    handle = LayoutHandle(
        number, layout.heads, layout.block, layout.q_blocks, layout.k_blocks, layout.lead, layout.causal
    )
    object.__setattr__(layout, "_handle", handle)
    return handle


def pin(layout: BlockLayout) -> tuple[Any, ...]:
    """Return the fields of a layout's handle and keep the layout for good, as a compiled graph needs."""
    handle = handle_of(layout)
    _pinned[handle.number] = layout
    return tuple(handle)


def layout_of(number: int) -> BlockLayout:
    """Return the layout behind a handle's number.

    Raises:
        RuntimeError: no layout of this content lives any more.

    """
    last = _last.get(number)
    layout = None if last is None else last()
    if layout is not None:
        return layout
    with _lock:
        for layout in _layouts.get(number, {}).values():
            _last[number] = weakref.ref(layout)
            return layout
    raise RuntimeError(
        f"layout handle {number} names no living BlockLayout: keep the layout, or the pattern that made it, "
        "for as long as it is attended with"
    )


def constant_in_graphs(function: Function) -> Function:
    """Mark a function that Dynamo runs while it traces, to keep the result as a constant of the graph.

    What `torch.compiler.assume_constant_result` does, without importing torch's compiler and so Triton.

    Its arguments must be constants to Dynamo: numbers, strings, classes, tuples of them. Those it guards by
    value in all versions, so a graph is used again only where the result would be the same. Other objects it
    refuses (torch 2.11) or guards by identity (2.13); the object of a method it does not guard at all.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
