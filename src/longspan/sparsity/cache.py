"""A cache of layouts with bounds on their number and bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from longspan_kernels.layout import BlockLayout


class LayoutCache:
    """A cache of the most recently used layouts; the latest one is always kept.

    Args:
        max_layouts: largest number of cached layouts.
        max_bytes: largest total size of the tensors of the cached layouts.

    """

    def __init__(self, max_layouts: int, max_bytes: int) -> None:
        self.max_layouts = max_layouts
        self.max_bytes = max_bytes
        self._layouts: OrderedDict[Hashable, BlockLayout] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._layouts)

    def get(self, key: Hashable, build: Callable[[], BlockLayout]) -> BlockLayout:
        """Return the layout cached under ``key``, or build and cache it."""
        with self._lock:
            if key in self._layouts:
                self._layouts.move_to_end(key)
                return self._layouts[key]
        layout = build()  # without the lock, so that a long build does not block other threads
        with self._lock:
            if key in self._layouts:
                return self._layouts[key]
            self._layouts[key] = layout
            self._bytes += layout.nbytes
            while len(self._layouts) > 1 and (
                len(self._layouts) > self.max_layouts or self._bytes > self.max_bytes
            ):
                _, oldest = self._layouts.popitem(last=False)
                self._bytes -= oldest.nbytes
        return layout
