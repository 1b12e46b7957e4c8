"""Progress of a training run: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

_LOG_INTERVAL_S = 10.0


class Display:
    """Shows loss, tokens per second and the time left.

    The loss is read from the device at most every quarter of a second, so that watching a run does not slow it down.

    Args:
        description: Name of the run.
        steps: Steps in all.
        done: Steps done before this process began.
        quiet: Show nothing: another process does.
    """

    _READ_INTERVAL_S = 0.25

    def __init__(self, description: str, steps: int, done: int, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._description = description
        self._steps = steps
        self._step = done
        self._first = done
        self._tokens = 0
        self._started = self._read = self._logged = time.perf_counter()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty() and not self._quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            )  # fmt: skip
            self._bar.start()
            self._bar.add_task(self._description, total=self._steps, completed=self._step, loss="?", speed="?")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, loss: "torch.Tensor", tokens: int) -> None:
        """Counts one finished step."""
        if self._quiet:
            return
        self._step += 1
        self._tokens += tokens
        now = time.perf_counter()
        last = self._step == self._steps
        if not last and now - self._read < self._READ_INTERVAL_S:
            return
        self._read = now
        speed = self._tokens / max(now - self._started, 1e-9)
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=self._step, loss=f"{float(loss):.3f}", speed=f"{speed:,.0f}")
        elif last or now - self._logged > _LOG_INTERVAL_S:
            self._logged = now
            left = (now - self._started) / max(1, self._step - self._first) * (self._steps - self._step)
            print(
                f"{self._description}: step {self._step}/{self._steps}  loss {float(loss):.3f}  "
                f"{speed:,.0f} tokens/s  {left:.0f} s left",
                flush=True,
            )
