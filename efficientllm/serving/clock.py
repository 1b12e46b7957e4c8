"""A clock on the device's own time line."""

import time

import torch


class Clock:
    """Notes moments between pieces of work: on a GPU by events in its own queue, for which the host does not wait.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self._on_gpu = device.type == "cuda"

    def mark(self) -> None:
        """Notes a moment."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Returns the time from the first mark to each later one; the device has to have finished."""
        if self._on_gpu:
            return [self._events[0].elapsed_time(event) / 1000 for event in self._events[1:]]
        return [moment - self._times[0] for moment in self._times[1:]]
