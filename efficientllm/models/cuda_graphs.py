"""Recording of steps as CUDA graphs, or the reason why they cannot be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from efficientllm.errors import first_line

Step = Callable[[], None]


class RecordingError(Exception):
    """A step cannot be recorded; the message says why."""


def record(
    steps: Sequence[Step],
    device: torch.device,
    *,
    prepared: bool = False,
    generators: Sequence[torch.Generator] = (),
) -> list[Step]:
    """Records each step as a CUDA graph; the graphs share one pool of memory and have to be replayed in this order.

    Before anything is recorded, all steps run while PyTorch reports every wait of the host for the device. A step that
    waits (LLM.int8() looking for outliers, a mixture that loops over its experts) could not be recorded, and a
    recording that is broken off leaves more behind than one that was never begun.

    Args:
        steps: Steps that leave their results in tensors of their own, or in some that exist already.
        device: The CUDA device that they run on.
        prepared: Whether the first of them have run before, so that all that is prepared at first use is there.
        generators: Those that the steps draw random numbers from beside the device's own; every replay draws others.

    Raises:
        RecordingError: A step waits for the device, or does something else that a graph cannot hold.
    """
    for step in () if prepared else steps[:2]:
        step()  # what is prepared at first use (tables, handles, compiled kernels) must be neither judged nor recorded
    torch.cuda.synchronize(device)
    try:
        with _waits_are_errors():
            for step in steps:
                step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RecordingError(f"the host waits for the device within a step: {first_line(_origin(error))}") from error
    torch.cuda.synchronize(device)
    pool = torch.cuda.graph_pool_handle()
    graphs = []
    try:
        for step in steps:
            graph = torch.cuda.CUDAGraph()
            for generator in generators:
                graph.register_generator_state(generator)
            # another thread, such as a power meter's, may use the driver meanwhile
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                step()
            graphs.append(graph)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        graphs.clear()
        torch.cuda.synchronize(device)
        raise RecordingError(f"a step cannot be recorded: {first_line(_origin(error))}") from error
    return [graph.replay for graph in graphs]


@contextmanager
def _waits_are_errors() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _origin(error: BaseException) -> BaseException:
    """The first error: what follows from it is a consequence."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error
