"""SIGTERM, as schedulers send it before they kill, and the end of the terminal: processes end cleanly, trainings save first."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from efficientllm.errors import Terminated

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def terminate_by_exception() -> Iterator[None]:
    """Lets the signals raise `Terminated` in the block, so that it leaves no temporary files behind."""

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    with _handled(raise_terminated):
        yield


@contextlib.contextmanager
def termination_noted() -> Iterator[Callable[[], bool]]:
    """Lets the signals only be noted in the block, which has to ask for them: it wants to save something first.

    Yields:
        Says whether one has come.
    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        del number, frame
        came = True

    with _handled(note):
        yield lambda: came


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    # what is ignored stays so: nohup has SIGHUP ignored
    taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Lets this process get a signal when the one that started it ends, by whatever; on Linux, elsewhere nothing."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def is_orphan() -> bool:
    """Whether the process that started this one had ended before `end_with_parent`, so that another session's has adopted it.

    Only for processes that were started in the session of their parent; one that a parent of the same session adopts is missed.
    One that leads a session, such as a preloaded process, was not: whoever started it sees to its end.
    """
    own = os.getsid(0)
    return own != os.getpid() and os.getsid(os.getppid()) != own
