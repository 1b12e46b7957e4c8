"""The training loop. Its single step is also the workload that the measurement stage times."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efficientllm.config.schema import TrainingSettings
from efficientllm.data.packing import IGNORED
from efficientllm.device import autocast_type, to_device
from efficientllm.distributed import world
from efficientllm.errors import CellFailure, Terminated
from efficientllm.termination import termination_noted
from efficientllm.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from efficientllm.training.display import Display
from efficientllm.training.losses import Targets, TrainingLoss
from efficientllm.training.optimizer import build_optimizer, learning_rate_at
from efficientllm.training.recorded_gradients import Batch, RecordedGradients, recorded


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, on what, and how it is judged on the way.

    Args:
        model: Module whose trainable parameters are optimised.
        decoder: The decoder inside it that is called; the same object where nothing is wrapped around it.
        batch: Returns micro-batch `i` as inputs and labels `[B, T]`; a pure function of `i`, so that resuming needs
            no state.
        evaluate: Returns the held-out loss in nats per token.
        groups: Makes the parameter groups for the optimizer; called once the parameters are where they will be trained.
        learning_rate: Peak learning rate.
        each_shape: Indices of micro-batches, one of each shape, for which blocks are compiled before a run begins.
    """

    model: nn.Module
    decoder: Any
    batch: Callable[[int], Batch]
    evaluate: Callable[[], float]
    groups: Callable[[], list[dict[str, Any]]]
    learning_rate: float
    each_shape: Sequence[int] = (0,)


def compiles_blocks(settings: TrainingSettings, device: torch.device) -> bool:
    """Whether training compiles the model's blocks: a program for each shape of batch, made when it first comes."""
    return settings.compile == "blocks" or (settings.compile == "auto" and device.type == "cuda")


@dataclass(frozen=True)
class StepResult:
    """Outcome of one optimizer step: mean loss and gradient norm, still on the device, and tokens that went in."""

    loss: torch.Tensor
    tokens: int
    gradient_norm: torch.Tensor


class Trainer:
    """Trains a task under `TrainingSettings`; where this process has joined others, together with them.

    Args:
        task: What is trained.
        settings: Budget, optimizer and schedule.
        device: Where the model lies.
    """

    def __init__(self, task: TrainingTask, settings: TrainingSettings, device: torch.device) -> None:
        self.task = task
        self.settings = settings
        self.device = device
        self.autocast = autocast_type(settings.autocast, device)
        self.world = world.current()
        if compiles_blocks(settings, device):
            task.decoder.compile_blocks(inside_hooks=self.world is not None and self.world.strategy == "fsdp")
        if self.autocast is not None and device.type == "cuda":
            # what stays in float32 under autocast may use TF32, whose significand is wider than bfloat16's
            torch.set_float32_matmul_precision("high")
        task.decoder.gradient_checkpointing = settings.recompute_activations
        loss = TrainingLoss(task.model, task.decoder, task.evaluate)
        self._loss: nn.Module = loss
        if self.world is not None:
            from efficientllm.distributed.strategies import distribute

            torch.manual_seed(torch.initial_seed() + self.world.rank)  # dropout differs between processes
            self._loss = distribute(loss, task.decoder, self.world, device, self.autocast)
        self._held_out = loss.evaluate  # FSDP has put its own in the place of it
        self.optimizer = build_optimizer(task.groups(), settings, task.learning_rate)
        self._trainable = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self._recorded: RecordedGradients | None = None
        self._launches = "kernel by kernel"

    def kernels(self) -> dict[str, str]:
        """Names the implementations that training runs."""
        with self._mixed_precision():  # which can run depends on the type
            described: dict[str, str] = self.task.decoder.kernels(self.device)
        names = {"adamw": "torch fused AdamW", "adamw_8bit": "bitsandbytes 8-bit AdamW"}
        levers = {"activations": "recomputed in the backward pass"} if self.settings.recompute_activations else {}
        shared = {"parallel": f"{self.world.strategy}, {self.world.size} processes"} if self.world is not None else {}
        launches = {"training launches": self._launches} if self.device.type == "cuda" else {}
        return {**described, "optimizer": names[self.settings.optimizer], **levers, **shared, **launches}

    def step(self, index: int) -> StepResult:
        """Runs optimizer step `index`: gradients of the accumulated micro-batches, clipping, AdamW."""
        rate = learning_rate_at(index, self.task.learning_rate, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        losses, tokens = [], 0
        count = self.settings.gradient_accumulation
        batches = [self.task.batch(index * count + micro) for micro in range(count)]
        for micro, (batch, weight) in enumerate(zip(batches, _shares_of_labels(batches), strict=True)):
            tokens += batch[0].numel()
            losses.append(self._add_gradients(batch, weight, until_next=micro + 1 < count))
        norm = torch.nn.utils.clip_grad_norm_(self._trainable, self.settings.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.stack(losses).mean()
        if self.world is not None:
            from efficientllm.distributed.strategies import whole

            mean, norm = self.world.mean(mean), whole(norm)
        return StepResult(mean, tokens, norm)

    def prepare(self) -> None:
        """Compiles and records what a run will launch again and again; weights, optimizer and random numbers stay as they are."""
        self.compile_ahead()
        self.record()

    def compile_ahead(self) -> None:
        """Compiles the blocks for each shape of batch, where they are compiled, so that a run's time and energy leave it out.

        It takes as long as dozens of steps, longer where the compiler's cache is empty: the first of two equal runs would
        look dearer than the second. Weights, optimizer and random numbers stay as they are.
        """
        if not compiles_blocks(self.settings, self.device):
            return
        self.task.model.train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for index in self.task.each_shape:
                self._add_gradients(self.task.batch(index), until_next=False)
        self.optimizer.zero_grad(set_to_none=True)

    def record(self) -> None:
        """Has steps from now on launch their forward and backward pass as one CUDA graph, where that can be.

        That is on a GPU, by a single process, where blocks are compiled and have run for the batch's shape, and where the
        first two batches are of one shape, as all of pretraining's are. `kernels` says what became of it.
        """
        if not compiles_blocks(self.settings, self.device) or self.device.type != "cuda":
            return
        if self.world is not None or self.settings.gradient_accumulation > 1:
            self._launches = "kernel by kernel: a graph would hold the work of one process and one micro-batch"
            return
        if self.task.decoder.balances_experts and bool((self.task.batch(0)[1] == IGNORED).any()):
            self._launches = "kernel by kernel: which tokens are balanced among the experts differs from batch to batch"
            return
        with torch.random.fork_rng([self.device]):
            self._recorded, self._launches = recorded(
                self._backward,
                [self.task.batch(0), self.task.batch(1)],
                self._trainable,
                self.device,
                lambda: self.task.decoder.twin_generators(self.device),
            )

    def _add_gradients(self, batch: Batch, weight: float = 1.0, *, until_next: bool) -> torch.Tensor:
        """Adds a micro-batch's share of a step's gradients; returns its cross-entropy, times its weight."""
        replayed = None if self._recorded is None else self._recorded(batch)
        if replayed is not None:
            return replayed
        inputs, labels = batch
        if self.world is not None:
            inputs, labels, share = self.world.share(inputs, labels)
            weight *= share
        with self._gradients_kept(until_next=until_next):
            # labels stay where they are: the loss leaves out ignored ones without waiting for the device
            return self._backward(to_device(inputs, self.device), labels, weight)

    def _backward(self, inputs: torch.Tensor, labels: torch.Tensor | Targets, weight: float = 1.0) -> torch.Tensor:
        with self._mixed_precision():
            loss, cross_entropy = self._loss(inputs, labels, weight)
        (loss / self.settings.gradient_accumulation).backward()
        assert isinstance(cross_entropy, torch.Tensor)
        return cross_entropy

    def run(
        self,
        *,
        checkpoints: Path,
        fingerprint: str,
        description: str,
        joules: Callable[[], float | None],
    ) -> Progress:
        """Trains to the last step, from the last checkpoint where a killed run left one.

        Args:
            checkpoints: Folder for the run's checkpoint.
            fingerprint: Hash of everything that the run's result depends on.
            description: The run's name on the progress bar.
            joules: Reads the energy that this process has used since the run began, or None where it cannot be read.

        Returns:
            The finished run's progress and curve.

        Raises:
            CellFailure: The loss is no longer a finite number.
            Terminated: SIGTERM has come to this process or to one that trains with it; a checkpoint has been written.
        """
        found = load_checkpoint(checkpoints, fingerprint, self.task.model, self.optimizer, self.device)
        before = found or Progress(step=0, curve=[], seconds=0.0, joules=0.0, resumed=0)
        if found is not None and world.is_first():
            print(f"resuming {description} at step {found.step} of {self.settings.steps}")
        started = saved = time.perf_counter()
        curve = list(before.curve)

        def progress(step: int) -> Progress:
            used = joules()
            total = None if used is None or before.joules is None else before.joules + used
            seconds = before.seconds + time.perf_counter() - started
            return Progress(step, curve, seconds, total, before.resumed + (found is not None))

        def save(step: int) -> None:
            save_checkpoint(checkpoints, fingerprint, self.task.model, self.optimizer, progress(step))

        self.task.model.train()
        quiet = not world.is_first()
        with (
            termination_noted() as noted,
            Display(description, self.settings.steps, before.step, quiet=quiet) as display,
        ):
            stops = noted if self.world is None else self.world.noted_by_any(noted, self.device)
            for index in range(before.step, self.settings.steps):
                result = self.step(index)
                display.advance(result.loss, result.tokens)
                last = index + 1 == self.settings.steps
                evaluated = last or (index + 1) % self.settings.evaluation_steps == 0
                if evaluated or index % self._curve_interval == 0:
                    curve.append(self._curve_row(index, result, evaluated, progress(index + 1)))
                if stops():
                    save(index + 1)
                    raise Terminated(f"{description} is saved at step {index + 1} of {self.settings.steps}")
                if not last and self._is_due(index, time.perf_counter() - saved):
                    save(index + 1)
                    saved = time.perf_counter()
        self.task.model.eval()
        return progress(self.settings.steps)

    def _is_due(self, index: int, seconds: float) -> bool:
        """Whether to save a checkpoint; several processes have to agree, and do so as often as the curve has points."""
        due = seconds > self.settings.checkpoint_seconds
        if self.world is None:
            return due
        return index % self._curve_interval == 0 and self.world.decided(due, self.device)

    def gather(self) -> None:
        """Ends a training in several processes: the first one's model becomes whole, to be saved."""
        if self.world is not None:
            from efficientllm.distributed.strategies import gather_to_first

            gather_to_first(self._loss, self.world)

    @property
    def _curve_interval(self) -> int:
        """Steps between two points of the training curve: about a hundred points, whatever the budget."""
        return max(1, self.settings.steps // 100)

    def _curve_row(self, index: int, result: StepResult, evaluated: bool, so_far: Progress) -> dict[str, Any]:
        loss = float(result.loss)
        if not loss < float("inf"):
            raise CellFailure(
                f"the training loss is {loss} at step {index + 1}: lower the learning rate (now {self.task.learning_rate:g})"
            )
        return {
            "step": index + 1,
            "loss": loss,
            "validation_loss": self._held_out_loss() if evaluated else None,
            "learning_rate": learning_rate_at(index, self.task.learning_rate, self.settings),
            "seconds": so_far.seconds,
            "joules": so_far.joules,
        }

    def _held_out_loss(self) -> float:
        self.task.model.eval()
        with torch.no_grad(), self._mixed_precision():
            loss: float = self._held_out()
        if self.world is not None:
            from efficientllm.distributed.strategies import reshard

            reshard(self._loss)
        self.task.model.train()
        return loss

    def _gradients_kept(self, *, until_next: bool) -> contextlib.AbstractContextManager[None]:
        """Lets a process keep its own gradients until the last micro-batch of a step, where the strategy gains by it."""
        if self.world is None or not until_next:
            return contextlib.nullcontext()
        from efficientllm.distributed.strategies import accumulating

        return accumulating(self._loss)

    @contextlib.contextmanager
    def _mixed_precision(self) -> Iterator[None]:
        if self.autocast is None:
            yield
        else:
            with torch.autocast(self.device.type, dtype=self.autocast):
                yield


def _shares_of_labels(batches: Sequence[Batch]) -> list[float]:
    """Weights of the micro-batches' mean losses whose mean is that over all labels, however unevenly they lie."""
    if len(batches) == 1:  # as where a step is recorded: nothing is counted then
        return [1.0]
    labels = [int((labels != IGNORED).sum()) for _, labels in batches]
    return [count * len(batches) / sum(labels) for count in labels]
