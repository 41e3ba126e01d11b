"""A bounded cache of layouts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from longspan_kernels.layout import BlockLayout


class LayoutCache:
    """The layouts used last, as many as the bounds allow; the latest one is always kept.

    Args:
        max_layouts: layouts kept at the most.
        max_bytes: bytes kept at the most, counting the tensors of the layouts.

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
        """Return the layout kept under ``key``, or build and keep it."""
        with self._lock:
            if key in self._layouts:
                self._layouts.move_to_end(key)
                return self._layouts[key]
        layout = build()  # outside of the lock: a long build does not hold up other threads
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
