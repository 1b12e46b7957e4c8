"""Python's garbage collector, kept from interrupting steps that are timed."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def existing_objects_exempt() -> Iterator[None]:
    """Keeps Python's garbage collector to the objects that are made inside.

    The libraries and `torch.compile` leave hundreds of thousands of objects behind. A full collection looks through all
    of them: 0.25 s and more in which no kernel is launched, as long as several training steps, and which of the compared
    windows it falls into is chance. Garbage that waits to be collected waits until the end.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
