"""A thread that reads a sensor at intervals and keeps only what is asked of it: mean, highest value and number."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from efficientllm.errors import MeasurementError


class Samples:
    """Running summary of a sensor's readings; its size does not grow with their number."""

    def __init__(self) -> None:
        self.count = 0
        self.highest = float("-inf")
        self._total = 0.0

    def add(self, value: float) -> None:
        """Takes one reading in."""
        self.count += 1
        self.highest = max(self.highest, value)
        self._total += value

    @property
    def mean(self) -> float:
        """Mean of the readings, of which there is at least one."""
        return self._total / self.count


@contextlib.contextmanager
def sampled(sensor: str, read: Callable[[], float], interval_s: float) -> Iterator[Samples]:
    """Reads a sensor in a thread of its own while the block runs.

    Args:
        sensor: What is read, for the error.
        read: Returns one reading.
        interval_s: Seconds between two readings.

    Yields:
        The readings' summary, complete when the block has ended.

    Raises:
        MeasurementError: The sensor failed while the block ran.
    """
    samples, stop, failures = Samples(), threading.Event(), list[Exception]()

    def sample() -> None:
        while not stop.wait(interval_s):
            try:
                samples.add(read())
            except Exception as error:  # noqa: BLE001 - handed to the measuring thread, which raises it
                failures.append(error)
                return

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield samples
    finally:
        stop.set()
        sampler.join()
    if failures:
        raise MeasurementError(f"{sensor} failed in the middle of a window ({failures[0]})") from failures[0]
