"""Starts a stage's training in several processes, and turns what one of them reports into one error."""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from efficientllm.config.schema import ParallelSettings, Profile, TrainingSettings
from efficientllm.distributed.world import joined, started_by_torchrun
from efficientllm.errors import ArtifactError, CellFailure, EfficientLLMError, ParameterError, Terminated
from efficientllm.stage import INTERRUPTED, TERMINATED, cell_errors
from efficientllm.termination import end_with_parent, terminate_by_exception

_REPORT = "EFFICIENTLLM_WORKER_REPORT"
_REPORTED = 3
"""Exit code of a worker whose error stands in the report."""

_LAST_STEP_S = 120
"""Seconds that the processes have, once they are told to end, for the step at hand and a checkpoint."""

_GRACE_S = 10.0
"""Seconds that a process without its peers waits for its end, before it raises its own error after all."""


class WorkerError(EfficientLLMError):
    """One of the processes that train together has ended before its time."""


def process_count(settings: ParallelSettings) -> int:
    """Resolves the number of processes on this machine.

    Raises:
        ParameterError: More processes are asked for than there are GPUs.
    """
    import torch

    if settings.strategy == "none":
        return 1
    gpus = torch.cuda.device_count()
    if settings.processes == "auto":
        return max(1, gpus)
    if gpus and settings.processes > gpus:
        raise ParameterError(f"parallel.processes is {settings.processes}, and this machine has {gpus} GPUs: lower it")
    return settings.processes


def check_shares(settings: ParallelSettings, batch_size: int, parameter: str) -> None:
    """Checks that the processes can share a batch.

    Args:
        settings: How many processes there are.
        batch_size: The batch.
        parameter: Where it stands in the profile.

    Raises:
        ParameterError: The batch cannot be divided, or there are more processes than GPUs.
    """
    count = process_count(settings)
    if batch_size % count:
        raise ParameterError(
            f"{parameter} is {batch_size}, which {count} processes cannot share: change it or parallel.processes"
        )


def train_in_parallel(
    profile: Profile, training: TrainingSettings, module: str, arguments: list[str], work: Callable[[], None]
) -> None:
    """Runs a training: here, or in as many processes as the profile asks for.

    The processes run the same stage again, started by torchrun's launcher; in them this function joins the others and
    does the work. They may also have been started by torchrun itself, on several machines.

    Args:
        profile: The run's profile; one of random weights trains nothing, which takes one process.
        training: Supplies the batch that the processes share.
        module: The stage's module, for example `stages.pretrain`.
        arguments: Its command line.
        work: Trains; in several processes every one of them runs it.

    Raises:
        ParameterError: The processes cannot share a batch, or are more than there are GPUs.
        CellFailure: The training cannot run on this hardware, see `work`.
        WorkerError: A process was killed or crashed; the others have been stopped.
        Terminated: SIGTERM has come; a checkpoint has been written where the training had begun.
    """
    if started_by_torchrun():
        _work_with_others(profile.parallel, work)
        return
    count = 1 if profile.random_weights else process_count(profile.parallel)
    if count == 1:
        work()
        return
    check_shares(profile.parallel, training.batch_size, "training.batch_size")
    _launch(count, module, arguments)


def _work_with_others(settings: ParallelSettings, work: Callable[[], None]) -> None:
    if settings.strategy == "none":
        raise ParameterError("torchrun has started this process, and parallel.strategy is none: set it to ddp or fsdp")
    report = os.environ.get(_REPORT)
    if report is not None:
        end_with_parent(signal.SIGKILL)  # a killed launcher cannot end its processes
    try:
        with cell_errors(), joined(settings.strategy):
            work()
    except Terminated as stop:
        if report is None and os.environ["RANK"] == "0":
            raise
        if report is not None and stop.args:
            _leave(report, stop)
        raise SystemExit(TERMINATED) from stop
    except KeyboardInterrupt as stop:
        if report is None:
            raise
        raise SystemExit(INTERRUPTED) from stop
    except EfficientLLMError as error:
        if report is None:
            raise WorkerError(str(error)) from error  # not recorded as a cell's failure: the others may be elsewhere
        _leave(report, error)
        raise SystemExit(_REPORTED) from error
    except RuntimeError as error:
        if _REPORT in os.environ and _lost_another(error):
            time.sleep(_GRACE_S)  # the launcher ends this process, and tells what became of the other
        raise


def _leave(report: str, error: BaseException) -> None:
    """Leaves an error for the launcher to tell; the first process' counts."""
    with contextlib.suppress(FileExistsError), Path(report).open("x", encoding="utf-8") as stream:
        json.dump({"kind": type(error).__name__, "message": str(error)}, stream)


def _lost_another(error: RuntimeError) -> bool:
    """Whether the error is but the consequence of another process' end."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _launch(count: int, module: str, arguments: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # its own account of a failure is a page long; the one line that matters comes from here
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.run").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="efficientllm-") as folder:
        report = Path(folder) / "report.json"
        environment = {_REPORT: str(report)}
        if sys.platform == "linux":
            environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
        os.environ.update(environment)
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2, shutdown_timeout=_LAST_STEP_S,
        )  # fmt: skip
        try:
            with terminate_by_exception():  # which the launcher replaces, and leaves replaced
                elastic_launch(config, sys.executable)("-u", "-m", module, *arguments)
        except SignalException as stop:
            if stop.sigval == signal.SIGINT:
                raise KeyboardInterrupt from stop
            raise Terminated(_reported(report).get("message", "")) from stop
        except ChildFailedError as failed:
            raise _error(report, failed, count) from failed
        finally:
            for name in environment:
                os.environ.pop(name, None)


def _reported(report: Path) -> dict[str, str]:
    """What a worker has left for the launcher: the error's kind and message; empty where nothing."""
    found: dict[str, str] = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return found


def _error(report: Path, failed: object, count: int) -> BaseException:
    """The error that a worker has reported; else which one ended, and how."""
    if found := _reported(report):
        kinds = {kind.__name__: kind for kind in (CellFailure, ParameterError, ArtifactError, Terminated)}
        kind: type[BaseException] = kinds.get(found["kind"], WorkerError)
        return kind(found["message"])
    rank, failure = failed.get_first_failure()  # type: ignore[attr-defined]
    code = failure.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return WorkerError(
        f"process {rank} of {count} {how}, and the others were stopped: run the same command again to continue from the "
        "last checkpoint"
    )
