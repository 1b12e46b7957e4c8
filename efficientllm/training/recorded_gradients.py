"""A training step's forward and backward pass as one CUDA graph.

A step launches hundreds to thousands of kernels, those of a small model, of adapters or of a mixture's experts faster done
than launched: then the host sets the speed, and whatever else it does meanwhile shows in the time. A graph is launched at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from efficientllm.device import to_device
from efficientllm.models.cuda_graphs import RecordingError, record
from efficientllm.models.second_context import speed_up_replays
from efficientllm.training.losses import Targets, targets

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and labels `[B, T]`."""


@dataclass(frozen=True)
class _Shape:
    """What a graph is bound to, but for the numbers themselves."""

    inputs: torch.Size
    labels: torch.Size
    any_ignored: bool
    drops: bool

    @classmethod
    def of(cls, inputs: torch.Tensor, found: Targets) -> "_Shape":
        return cls(inputs.shape, found.labels_n.shape, found.any_ignored, found.rows_n is not None)


def alike(first: Batch, second: Batch) -> bool:
    """Whether one recording serves both batches."""
    shapes = [_Shape.of(inputs, targets(labels, labels.device)) for inputs, labels in (first, second)]
    return shapes[0] == shapes[1]


class RecordedGradients:
    """The recorded gradients of micro-batches that are alike.

    Args:
        compute: Computes the gradients of inputs `[B, T]` and targets on the device, and returns the cross-entropy. It has
            run for such a batch before, so that all that is prepared at first use is there.
        batch: The batch to record.
        parameters: Those that get gradients.
        device: The CUDA device.
        generators: Those that `compute` draws random numbers from beside the device's own.

    Raises:
        RecordingError: The computation waits for the device, or does something else that a graph cannot hold.
        torch.OutOfMemoryError: A graph keeps its memory to itself, which was too much.
    """

    def __init__(
        self,
        compute: Callable[[torch.Tensor, Targets], torch.Tensor],
        batch: Batch,
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        inputs, labels = batch
        self._device = device
        self._parameters = parameters
        self._inputs = inputs.to(device, copy=True)
        self._targets = targets(labels.clone(), device)
        self._shape = _Shape.of(self._inputs, self._targets)

        def step() -> None:
            self._cross_entropy = compute(self._inputs, self._targets)
            if not torch.cuda.is_current_stream_capturing():
                self._clear()  # the recorded gradients have memory of their own

        self._clear()
        try:
            (self._replay,) = record([step], device, prepared=True, generators=generators)
            self._gradients = [parameter.grad for parameter in parameters]
        finally:
            self._clear()

    def __call__(self, batch: Batch) -> torch.Tensor | None:
        """Puts a batch's gradients in the place of the parameters', and returns its cross-entropy.

        Both are overwritten by the next call. None is returned, and nothing done, for a batch of another shape.
        """
        inputs, labels = batch
        found = targets(labels, self._device)
        if _Shape.of(inputs, found) != self._shape:
            return None
        self._inputs.copy_(to_device(inputs, self._device))
        self._targets.labels_n.copy_(found.labels_n)
        if self._targets.rows_n is not None and found.rows_n is not None:
            self._targets.rows_n.copy_(found.rows_n)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._cross_entropy

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def recorded(
    compute: Callable[[torch.Tensor, Targets], torch.Tensor],
    first_batches: Sequence[Batch],
    parameters: Sequence[nn.Parameter],
    device: torch.device,
    generators: Callable[[], Sequence[torch.Generator]],
) -> tuple[RecordedGradients | None, str]:
    """Records gradients where a run's batches are alike and memory suffices.

    Args:
        compute: As `RecordedGradients` takes it.
        first_batches: The run's first two batches.
        parameters: Those that get gradients.
        device: The CUDA device.
        generators: Makes those that `compute` draws from beside the device's own; called if there is something to record.

    Returns:
        The recording or None, and how the gradients are launched, in words.
    """
    if not alike(*first_batches):
        return None, "kernel by kernel: each batch has a shape of its own"
    try:
        made = RecordedGradients(compute, first_batches[0], parameters, device, generators())
    except RecordingError as error:
        return None, f"kernel by kernel: {error}"
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None, "kernel by kernel: the memory that a CUDA graph keeps to itself was too much"
    launched = "forward and backward pass as one CUDA graph"
    if (obstacle := speed_up_replays(device)) is not None:
        launched += f", at the slower of two speeds: {obstacle}"
    return made, launched
