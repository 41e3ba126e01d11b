"""The time of the phases of a training step, on the host or, without waiting for it, on a CUDA device."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

PHASES: tuple[str, ...] = ("data", "forward", "backward", "optimizer")

Step = dict[str, float]


class StepClock:
    """Times the phases of steps.

    On a CUDA device a phase is the time between two events in its stream, so it is time of the device,
    however far the host is ahead; it is read when both events have passed. Elsewhere it is time of the host.

    Args:
        device: what the steps are computed on.

    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._mark: Any = None
        self._laps: list[tuple[str, Any, Any]] = []
        self._finished: deque[list[tuple[str, Any, Any]]] = deque()

    def start(self) -> None:
        """Begin the next phase; the time since the end of the last one counts in no phase."""
        self._mark = self._now()

    def lap(self, phase: str) -> None:
        """End a phase of the present step and begin the next; a step may have a phase several times."""
        if self._mark is None:
            return
        now = self._now()
        self._laps.append((phase, self._mark, now))
        self._mark = now

    def finish(self) -> None:
        """End the step with the last phase."""
        if self._laps:
            self._finished.append(self._laps)
        self._laps = []

    def drop(self) -> None:
        """Forget the present step."""
        self._laps = []

    def steps(self) -> list[Step]:
        """Return the seconds of each phase of the steps that have finished since the last call."""
        steps = []
        while self._finished and self._passed(self._finished[0][-1][2]):
            step: Step = dict.fromkeys(PHASES, 0.0)
            for phase, start, end in self._finished.popleft():
                step[phase] += self._seconds(start, end)
            steps.append(step)
        return steps

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _passed(self, mark: Any) -> bool:
        return mark.query() if self._on_cuda else True

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self._on_cuda else end - start
